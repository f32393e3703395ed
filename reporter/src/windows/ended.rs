//! Why a leader stops leading.

use redis::RedisError;

/// The reason why a replica stopped leading.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A stop was requested.
    #[error("stopped")]
    Stopped,
    /// Another replica has the lease, or none has it.
    #[error("lost the lease")]
    LeaseLost,
    /// Another replica has begun to publish, for which it needs the lease.
    #[error("another replica publishes")]
    Fenced,
    /// A request to Redis failed.
    #[error("reporting interrupted: {0}")]
    Failed(#[from] RedisError),
}

impl Ended {
    /// Returns the error if a key of the counter has a wrong type.
    ///
    /// Other errors are of a server, and not of one counter.
    pub fn wrong_type(&self) -> Option<&RedisError> {
        match self {
            // Before 7.0, Redis gives another code to an error within a script.
            Self::Failed(error) if error.to_string().contains("WRONGTYPE") => Some(error),
            _ => None,
        }
    }
}
