//! The consumer group of all replicas: made where it is missing, rid of consumers that are no more.

use std::time::Duration;

use redis::{RedisResult, Script};
use verve_protocol::scripts::REMOVE_CONSUMERS;

use super::{GROUP, Queue};

/// After what time a consumer that was not heard of is taken for gone. A replica reads about once a second, and its name
/// is new with each run.
const GONE_AFTER: Duration = Duration::from_secs(3600);

impl Queue {
    /// Takes out of the group the consumers of replicas that are no more.
    pub async fn remove_gone(&self) -> RedisResult<u64> {
        self.remove_consumers(GONE_AFTER, None).await
    }

    /// Takes this replica out of the group, if it owes nothing.
    pub async fn leave(&self) {
        // A name that stays behind is removed by another replica.
        let _ = self.remove_consumers(Duration::ZERO, Some(&self.replica)).await;
    }

    async fn remove_consumers(&self, idle: Duration, name: Option<&str>) -> RedisResult<u64> {
        let script = Script::new(REMOVE_CONSUMERS);
        let mut remove = script.key(self.store.keys.callbacks());
        remove.arg(GROUP).arg(idle.as_millis() as u64).arg(name);
        self.store.redis().script(&remove).await
    }

    /// Makes the group where it is missing: on a new Redis, or one that came back without its data.
    pub(super) async fn with_group<T>(&self, reply: RedisResult<T>) -> RedisResult<Option<T>> {
        match reply {
            Ok(reply) => Ok(Some(reply)),
            // The second is for whoever waits while the stream is deleted.
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
