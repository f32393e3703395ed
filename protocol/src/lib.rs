//! What the component and the reporter agree on, and nothing else.
//!
//! - [`window`]: how time is cut into windows
//! - [`id`]: what an id is, and which of a window's [`partitions`] it is in
//! - [`redis_urls`]: where Redis is
//! - [`keys`]: the names of the Redis keys; [`slot`]: where a cluster has them
//! - [`endpoint`] and [`callback`]: the jobs that requests ask for
//! - [`report`]: what is known and published of a closed window
//!
//! Everything here is pure: no I/O, no clock, no async. Whoever changes a format here changes it for both sides.

pub mod callback;
pub mod endpoint;
pub mod id;
pub mod keys;
pub mod partitions;
pub mod redis_urls;
pub mod report;
pub mod slot;
pub mod spool_state;
pub mod window;

pub use callback::{CallbackJob, Method};
pub use endpoint::Endpoint;
pub use id::Id;
pub use keys::{Keys, Namespace};
pub use partitions::{Partition, Partitions};
pub use redis_urls::{RedisUrl, RedisUrls};
pub use report::{Report, WindowRecord};
pub use spool_state::SpoolState;
pub use window::{Window, WindowLength};
