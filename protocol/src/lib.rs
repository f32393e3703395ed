//! What the component and the reporter agree on, and nothing else.
//!
//! - [`window`]: how time is cut into windows
//! - [`id`]: what an id is, and which of a window's [`partitions`] it is in
//! - [`redis_urls`]: where Redis is
//! - [`counter_name`]: what counters are called beside the one without a name
//! - [`keys`]: the names of the Redis keys; [`slot`]: where a cluster has them
//! - [`endpoint`] and [`callback`]: the jobs that requests ask for
//! - [`scripts`]: what Redis runs by itself
//! - [`report`]: what is known and published of a closed window
//!
//! ```
//! use verve_protocol::{Id, Keys, Partition, WindowLength};
//!
//! let minutes = WindowLength::try_new(60).expect("from 1 s to a day");
//! let window = minutes.window_at_ms(1_795_383_012_345);
//! assert_eq!(window.to_string(), "2026-11-22T21:30:00Z");
//!
//! // Where the window's ids are in Redis: `SCARD` counts them.
//! let keys = Keys::new("verve".parse().expect("a namespace"));
//! assert_eq!(keys.ids(window, Partition::Whole), "verve:ids:60:1795383000");
//!
//! // The number counts, not its spelling.
//! assert_eq!("007".parse(), Ok(Id(7)));
//! ```
//!
//! Everything here is pure: no I/O, no clock, no async. Whoever changes a format here changes it for both sides.

pub mod callback;
pub mod counter_name;
pub mod endpoint;
pub mod id;
pub mod keys;
pub mod partitions;
pub mod redis_urls;
pub mod report;
pub mod scripts;
pub mod slot;
pub mod spool_state;
pub mod window;

pub use callback::{CallbackJob, Method};
pub use counter_name::CounterName;
pub use endpoint::Endpoint;
pub use id::Id;
pub use keys::{Keys, Namespace};
pub use partitions::{Partition, Partitions};
pub use redis_urls::{RedisUrl, RedisUrls};
pub use report::{Report, WindowRecord};
pub use spool_state::SpoolState;
pub use window::{Window, WindowLength};
