//! The replies of Redis.

/// A part of a reply of Redis. Hosts flatten nested replies.
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
    /// Returns a text of these bytes.
    ///
    /// Invalid UTF-8, which never occurs in the data of Verve, is replaced.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self::Text(String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes())))
    }
}
