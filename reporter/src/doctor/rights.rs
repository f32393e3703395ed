//! Checks that the Redis user may run every command that the reporter needs.

use redis::{RedisResult, Script};
use verve_protocol::scripts::TRY_COMMANDS;

use super::Finding;
use crate::store::Store;

/// Each command that the reporter runs.
///
/// In this form it changes nothing if the key does not exist.
const COMMANDS: [&str; 42] = [
    "DEL",
    "EXISTS",
    "EXPIRE 1",
    "GET",
    "HDEL f",
    "HGET f",
    "HGETALL",
    "HLEN",
    "HMGET f",
    "HSCAN 0",
    "HVALS",
    "PEXPIRE 1",
    "SCARD",
    "SET 1 XX",
    "SRANDMEMBER 1",
    "SREM m",
    "TIME",
    "TTL",
    "UNLINK",
    "XACK reporter 1-1",
    "XADD NOMKSTREAM * f v",
    "XDEL 1-1",
    "XLEN",
    "XRANGE - +",
    "XREVRANGE + -",
    "XTRIM MAXLEN 0",
    "ZADD XX 1 m",
    "ZCARD",
    "ZRANGE 0 0",
    "ZRANGEBYSCORE 0 0",
    "ZREM m",
    "ZSCAN 0",
    "ZSCORE m",
    // These fail, because the key or the group does not exist.
    "XAUTOCLAIM reporter doctor 1 0",
    "RENAME KEY",
    "XGROUP|CREATE reporter 0",
    "XGROUP|DELCONSUMER reporter doctor",
    "XINFO|CONSUMERS reporter",
    "XREADGROUP",
    // These write, and the written keys are removed.
    "SUNIONSTORE KEY",
    "HSET f v",
    "HSETNX f v",
];

const FIX: &str = "give the reporter's Redis user the rights that docs/deploy.md lists";

/// Tries each command on an unused key of the namespace.
pub async fn examine(store: &Store) -> Option<Finding> {
    let key = store.keys.doctor();
    let script = Script::new(TRY_COMMANDS);
    let mut tried = script.key(key);
    for command in COMMANDS {
        tried.arg(command);
    }
    let refused: RedisResult<Vec<String>> = store.redis().script(&tried).await;
    let finding = match refused {
        Ok(refused) if refused.is_empty() => return None,
        Ok(refused) => Finding::problem(format!("its user may not run {}", refused.join(", ")), FIX),
        Err(error) => Finding::problem(
            format!("its user may run no scripts (EVALSHA, SCRIPT LOAD): {error}"),
            FIX,
        ),
    };
    Some(finding.of(&store.redis().to_string()))
}
