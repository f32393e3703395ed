//! Why a leader leads no more.

use redis::RedisError;

/// What has ended the leading of a replica.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A stop was asked for.
    #[error("stopped")]
    Stopped,
    /// The lease is another replica's, or nobody's.
    #[error("lost the lease")]
    LeaseLost,
    /// Another replica has begun to publish, which it does with the lease alone.
    #[error("another replica publishes")]
    Fenced,
    /// Redis does not do what it has to.
    #[error("reporting interrupted: {0}")]
    Failed(#[from] RedisError),
}
