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

impl Reply {
    /// A text of these bytes. What is not UTF-8 in it, which nothing of ours is, is replaced.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self::Text(String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes())))
    }
}
