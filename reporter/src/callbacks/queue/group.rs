//! Creates the consumer group of all replicas, and removes old consumers.

use std::time::Duration;

use redis::{RedisResult, Script};
use verve_protocol::scripts::REMOVE_CONSUMERS;

use super::{GROUP, Queue};

/// How long a consumer must be idle before it counts as gone.
///
/// A replica reads about once a second, and has a new name in each run.
const GONE_AFTER: Duration = Duration::from_secs(3600);

impl Queue {
    /// Removes the consumers of former replicas from the group.
    pub async fn remove_gone(&self) -> RedisResult<u64> {
        self.remove_consumers(GONE_AFTER, None).await
    }

    /// Removes this replica from the group, if it has no unsettled jobs.
    pub async fn leave(&self) {
        // If this fails, another replica removes the name later.
        let _ = self.remove_consumers(Duration::ZERO, Some(&self.replica)).await;
    }

    async fn remove_consumers(&self, idle: Duration, name: Option<&str>) -> RedisResult<u64> {
        let script = Script::new(REMOVE_CONSUMERS);
        let mut remove = script.key(self.store.keys.callbacks());
        remove.arg(GROUP).arg(idle.as_millis() as u64).arg(name);
        self.store.redis().script(&remove).await
    }

    /// Creates the group if it is missing.
    ///
    /// It is missing on a new Redis, and on one that has lost its data.
    pub(super) async fn with_group<T>(&self, reply: RedisResult<T>) -> RedisResult<Option<T>> {
        match reply {
            Ok(reply) => Ok(Some(reply)),
            // A reader that waits while the stream is deleted receives UNBLOCKED.
            Err(error) if matches!(error.code(), Some("NOGROUP" | "UNBLOCKED")) => {
                let mut create = redis::cmd("XGROUP");
                create
                    .arg("CREATE")
                    .arg(self.store.keys.callbacks())
                    .arg(GROUP)
                    .arg("0")
                    .arg("MKSTREAM");
                match self.store.redis().command::<()>(&create).await {
                    Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error),
        }
    }
}
