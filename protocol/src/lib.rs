//! The contract between the component and the reporter, and nothing else.
//!
//! - [`window`]: the division of time into windows; [`window_lengths`]: their lengths
//! - [`id`]: ids, and the [`partitions`] of a window that contain them
//! - [`redis_urls`]: the addresses of Redis
//! - [`counter_name`]: the names of counters
//! - [`keys`]: the names of the Redis keys; [`slot`]: their slots in a cluster
//! - [`endpoint`] and [`callback`]: the jobs that requests ask for
//! - [`scripts`]: the scripts that Redis runs
//! - [`report`]: the stored report and the published record of a closed window
//!
//! ```
//! use verve_protocol::{Id, Keys, Partition, WindowLength};
//!
//! let minutes = WindowLength::try_new(60).expect("from 1 s to a day");
//! let window = minutes.window_at_ms(1_795_383_012_345);
//! assert_eq!(window.to_string(), "2026-11-22T21:30:00Z");
//!
//! // The Redis set with the ids of the window: `SCARD` counts them.
//! let keys = Keys::new("verve".parse().expect("a namespace"));
//! assert_eq!(keys.ids(window, Partition::Whole), "verve:ids:60:1795383000");
//!
//! // The value matters, not the spelling.
//! assert_eq!("007".parse(), Ok(Id(7)));
//! ```
//!
//! Everything here is pure: no I/O, no clock, no async. A format that changes here changes for both
//! sides.

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
pub mod window_lengths;

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
pub use window_lengths::WindowLengths;
