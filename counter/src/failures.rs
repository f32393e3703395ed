//! How failures of Redis are told, in each build.

use crate::answer::Limit;

/// The host does not connect there.
pub const INVALID_ADDRESS: &str = "the address is invalid or not among allowed_outbound_hosts";
/// The host opens no more.
pub const TOO_MANY_CONNECTIONS: &str = "too many open connections";
/// Something else than Redis may be there.
pub const TYPE_ERROR: &str = "the answer has an unexpected type";
/// Several servers are named that are not one.
pub const NO_CLUSTER: &str =
    "redis_urls names several servers, which are no cluster; expected one Redis, or nodes of one cluster";
/// A node of a cluster has sent a command on without an address.
pub const SENT_NOWHERE: &str = "sends on to a node that has announced no name (cluster-preferred-endpoint-type hostname, and no cluster-announce-hostname)";
/// A set of ids that was just added to was removed.
pub const SET_GONE: &str = "the set of ids was removed meanwhile";
/// The stream of callback jobs is full.
pub const TOO_MANY_JOBS: &str = "too many callback jobs wait";

/// Something is beyond a limit.
#[must_use]
pub const fn beyond(limit: Limit) -> &'static str {
    match limit {
        Limit::Window => "its window has as many ids as it may have (window_limit)",
        Limit::Endpoint => "its endpoint has as many callback jobs in the window as it may have (endpoint_limit)",
        Limit::Counters => "its namespace has as many named counters as it may have (100)",
    }
}

/// Fewer replicas than `redis_wait_replicas` have what was recorded, within so many milliseconds.
#[must_use]
pub fn too_few_replicas(replicas: i64, wanted: u32, within_ms: i64) -> String {
    format!("{replicas} of {wanted} replicas have it within {within_ms} ms (redis_wait_replicas)")
}

/// A script that adds ids to a set has not answered for each of them.
#[must_use]
pub fn unexpected_length(key: &str) -> String {
    format!("{key}: the answer has an unexpected length")
}

/// Two attempts failed.
#[must_use]
pub fn both(first: String, second: &str) -> String {
    if first == second {
        first
    } else {
        format!("{first}; on a fresh connection: {second}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_twice_is_told_once() {
        assert_eq!(both("broken pipe".to_owned(), "broken pipe"), "broken pipe");
        assert_eq!(
            both("broken pipe".to_owned(), "refused"),
            "broken pipe; on a fresh connection: refused"
        );
    }
}
