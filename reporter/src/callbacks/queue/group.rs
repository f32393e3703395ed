//! The consumer group of all replicas: made where it is missing, rid of consumers that are no more.

use std::time::Duration;

use redis::{RedisResult, Script};

use super::{GROUP, Queue};

/// After what time a consumer that was not heard of is taken for gone. A replica reads about once a second, and its name
/// is new with each run.
const GONE_AFTER: Duration = Duration::from_secs(3600);

/// Removes consumers that have been idle for some time. One that still has jobs stays until these are claimed: removed with
/// them, they would be pending with nobody.
///
/// KEYS: stream. ARGV: group, milliseconds, and a name if only that one is meant. Answers how many were removed.
const REMOVE_CONSUMERS: &str = r"
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end
local removed = 0
for _, fields in ipairs(consumers) do
  local consumer = {}
  for n = 1, #fields, 2 do consumer[fields[n]] = fields[n + 1] end
  local meant = ARGV[3] == nil or ARGV[3] == consumer.name
  if meant and consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed";

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
