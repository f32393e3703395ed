//! What can be said without a server: of the documents, of what is shipped in `deploy/`, and of how the sources use each other.

mod documents;
mod layers;
mod shipped;
