//! Tests that need no server.
//!
//! They check the documents, the files in `deploy/`, and how the sources use each other.

mod documents;
mod layers;
mod shipped;
mod words;
