//! What Redis replies.

/// A part of what Redis replies. Hosts put what is nested in it one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No value.
    Nothing,
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}
