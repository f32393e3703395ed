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
