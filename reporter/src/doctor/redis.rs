//! Each Redis: checks that it answers, keeps what it acknowledges, and its time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisError};

use verve_protocol::slot::SLOTS;

use super::Finding;
use crate::clock::{machine_ms, millis};
use crate::store::{Node, OLDEST, Store};

/// The share of `maxmemory` in use, in percent, from which on there is a warning.
const FULL: u64 = 80;
/// The difference of clocks above which there is a finding.
const SKEW: Duration = Duration::from_millis(500);

/// What a Redis reports about itself.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The fields of `INFO`.
    info: BTreeMap<String, String>,
    /// Its clock minus ours, and the round-trip time, both in milliseconds.
    ahead_ms: i64,
    asked_ms: u64,
    /// Whether it makes snapshots, if it reports that.
    saves: Option<bool>,
}

impl State {
    fn text(&self, field: &str) -> &str {
        self.info.get(field).map_or("", String::as_str)
    }

    fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_default()
    }
}

/// Checks each node of Redis.
///
/// Returns whether all of them answered, and the findings.
pub async fn examine(store: &Store, grace: Duration) -> (bool, Vec<Finding>) {
    let server = store.redis();
    let nodes = match server.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => return (false, vec![away(&error, server.is_tls()).of(&server.to_string())]),
    };
    let mut findings = Vec::new();
    let mut answered = true;
    for node in &nodes {
        let answer = ask(node).await;
        answered &= answer.is_ok();
        let name = node.to_string();
        let found = match &answer {
            Ok(state) => judge(state, grace),
            Err(error) => vec![away(error, server.is_tls())],
        };
        findings.extend(found.into_iter().map(|finding| finding.of(&name)));
    }
    if nodes.iter().any(Node::is_of_cluster) {
        let info: Result<String, RedisError> = server.command(redis::cmd("CLUSTER").arg("INFO")).await;
        let found = match info {
            Ok(info) => coverage(&fields(&info), nodes.len()),
            Err(error) => away(&error, server.is_tls()),
        };
        findings.push(found.of("Redis Cluster"));
    }
    (answered, findings)
}

/// Checks whether every slot has a node.
fn coverage(info: &BTreeMap<String, String>, primaries: usize) -> Finding {
    let number = |field: &str| {
        info.get(field)
            .and_then(|text| text.parse::<u16>().ok())
            .unwrap_or_default()
    };
    let missing = SLOTS.saturating_sub(number("cluster_slots_ok"));
    if info.get("cluster_state").is_some_and(|state| state == "ok") && missing == 0 {
        return Finding::fine(format!("{primaries} primaries have all {SLOTS} slots"));
    }
    Finding::problem(
        format!(
            "{missing} of {SLOTS} slots have no node that answers: ids of these wait in spools, and windows are not reported"
        ),
        "start the nodes again, or fail over to replicas; redis-cli --cluster check and --cluster fix",
    )
}

async fn ask(server: &Node<'_>) -> Result<State, RedisError> {
    // Opens the connection first, so that the time for it is not measured as a clock difference.
    server.command::<String>(&redis::cmd("PING")).await?;
    let info: String = server.command(redis::cmd("INFO").arg("everything")).await?;
    // Not every user may run this command, and the checks work without its answer.
    let save: Result<Vec<String>, RedisError> = server.command(redis::cmd("CONFIG").arg("GET").arg("save")).await;
    let saves = save
        .ok()
        .and_then(|answer| answer.get(1).map(|schedule| !schedule.is_empty()));
    let (before, start) = (machine_ms(), Instant::now());
    let (seconds, micros): (i64, i64) = server.command(&redis::cmd("TIME")).await?;
    let asked = start.elapsed();
    let asked_ms = millis(asked);
    let ours = before.cast_signed() + (asked / 2).as_millis().try_into().unwrap_or(0);
    Ok(State {
        info: fields(&info),
        ahead_ms: seconds * 1000 + micros / 1000 - ours,
        asked_ms,
        saves,
    })
}

fn fields(info: &str) -> BTreeMap<String, String> {
    let fields = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn away(error: &RedisError, tls: bool) -> Finding {
    let text = error.to_string();
    let capitals = text.to_ascii_uppercase();
    let contains = |word: &str| capitals.contains(word);
    let fix = if error.kind() == ErrorKind::AuthenticationFailed || contains("WRONGPASS") || contains("NOAUTH") {
        "correct the user and the password in --redis-urls, redis://user:password@host:6379 (characters such as @ or / as %40, %2F)"
    } else if contains("NOPERM") {
        "give the reporter's Redis user the rights that docs/deploy.md lists"
    } else if contains("LOADING") {
        "wait: it reads its data"
    } else if error.kind() == ErrorKind::ClusterConnectionNotFound {
        "start its nodes, or correct --redis-urls; and where names are preferred (cluster-preferred-endpoint-type hostname), have each node announce one that this machine can look up (cluster-announce-hostname)"
    } else if contains("CERTIFICATE") || contains("TLS") || contains("SSL") {
        "rediss:// is for a Redis that speaks TLS, with a certificate of that host name by an authority that this machine trusts"
    } else if tls {
        "start it, or correct --redis-urls: rediss:// is for a port that speaks TLS, and one that does not never answers; see that the network lets this machine through"
    } else {
        "start it, or correct --redis-urls; see that the network lets this machine through"
    };
    Finding::problem(text, fix)
}

/// Judges whether the state permits exact counts.
fn judge(state: &State, grace: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = state.text("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let name = match state.text("valkey_version") {
        "" => format!("Redis {version}"),
        valkey => format!("Valkey {valkey}"),
    };
    if major.is_none_or(|major| major < OLDEST) {
        findings.push(Finding::problem(
            format!("{name} is too old: sets of ids would never expire"),
            "Redis 7 or newer, or Valkey",
        ));
    }
    if state.text("role") == "slave" {
        findings.push(Finding::problem(
            format!(
                "is a replica, of {}:{}",
                state.text("master_host"),
                state.text("master_port")
            ),
            "name the primary in --redis-urls, and in the components' redis_urls",
        ));
    }
    // A primary of a cluster, without a replica.
    if state.number("cluster_enabled") == 1 && state.text("role") == "master" && state.number("connected_slaves") == 0 {
        findings.push(Finding::warning(
            "has no replica: while it is unreachable, ids of its slots wait in spools, and windows are not reported",
            "a replica for each primary, and redis_wait_replicas = 1 in the components",
        ));
    }
    findings.extend(durability(state));
    findings.extend(memory(state));
    findings.extend(clock(state, grace));
    if findings.is_empty() {
        let kept = "keeps what it acknowledges, evicts nothing";
        let skew = state.ahead_ms.unsigned_abs();
        findings.push(Finding::fine(format!(
            "{name}, answers in {} ms, {kept}, clock within {} ms",
            state.asked_ms.max(1),
            skew.max(1)
        )));
    }
    findings
}

fn durability(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    if state.number("aof_enabled") == 0 {
        let fix = "appendonly yes, with appendfsync everysec or always";
        // A Redis that does not report its setting may make snapshots.
        findings.push(if state.saves.unwrap_or(true) {
            Finding::warning(
                "no append-only file: what it acknowledged since its last snapshot is lost when it ends",
                fix,
            )
        } else {
            Finding::problem(
                "neither append-only file nor snapshots: all that it acknowledged is lost when it ends",
                fix,
            )
        });
    }
    let failed = |field: &str| state.text(field) == "err";
    if failed("aof_last_write_status") || failed("aof_last_bgrewrite_status") {
        findings.push(Finding::problem(
            "could not write its append-only file",
            "check its disk: space, rights, errors; its log has more",
        ));
    }
    if failed("rdb_last_bgsave_status") {
        findings.push(Finding::problem(
            "could not save its last snapshot, and refuses what would be written if stop-writes-on-bgsave-error is on",
            "check its disk and memory (vm.overcommit_memory); its log has more",
        ));
    }
    findings
}

fn memory(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (used, most) = (state.number("used_memory"), state.number("maxmemory"));
    let policy = state.text("maxmemory_policy");
    if most > 0 && policy != "noeviction" {
        findings.push(Finding::problem(
            format!(
                "maxmemory-policy {policy}: when it is full it drops ids, and counts are too low without a warning"
            ),
            "maxmemory-policy noeviction: then what does not fit is spooled",
        ));
    }
    if most > 0 && used.saturating_mul(100) / most >= FULL {
        let percent = used.saturating_mul(100) / most;
        findings.push(Finding::warning(
            format!("{percent}% of maxmemory is in use"),
            "a larger maxmemory, a shorter --late-seconds, or a cluster with more nodes (docs/operations.md)",
        ));
    }
    findings
}

fn clock(state: &State, grace: Duration) -> Option<Finding> {
    let skew = Duration::from_millis(state.ahead_ms.unsigned_abs());
    // The difference is only certain beyond half of the round-trip time.
    let sure = skew.saturating_sub(Duration::from_millis(state.asked_ms / 2));
    if sure <= SKEW {
        return None;
    }
    let side = if state.ahead_ms > 0 { "ahead of" } else { "behind" };
    let what = format!("its clock is {:.1} s {side} this machine's", skew.as_secs_f64());
    let fix = "let every machine keep its time by NTP: a request's window is that of the clock where it arrives";
    Some(if sure > grace {
        Finding::problem(what, fix)
    } else {
        Finding::warning(what, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    fn state(changed: &[(&str, &str)]) -> State {
        let info = "# Server\r\nredis_version:7.2.4\r\nrun_id:a\r\nrole:master\r\naof_enabled:1\r\naof_last_write_status:ok\r\n\
            aof_last_bgrewrite_status:ok\r\nrdb_last_bgsave_status:ok\r\nused_memory:10\r\nmaxmemory:100\r\n\
            maxmemory_policy:noeviction\r\ncluster_enabled:0\r\n";
        let mut info = fields(info);
        info.extend(
            changed
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        State {
            info,
            ahead_ms: 3,
            asked_ms: 2,
            saves: None,
        }
    }

    /// The changed fields, and the expected finding.
    type Case = (&'static [(&'static str, &'static str)], Level, &'static str);

    #[test]
    fn slots_without_a_node_are_found() {
        let info = |text: &str| coverage(&fields(text), 3).level;
        assert_eq!(info("cluster_state:ok\r\ncluster_slots_ok:16384\r\n"), Level::Fine);
        assert_eq!(info("cluster_state:fail\r\ncluster_slots_ok:16384\r\n"), Level::Problem);
        assert_eq!(info("cluster_state:ok\r\ncluster_slots_ok:16000\r\n"), Level::Problem);
    }

    #[test]
    fn each_mistake_is_found() {
        use Level::{Fine, Problem, Warning};
        let cases: [Case; 14] = [
            (&[], Fine, "Redis 7.2.4"),
            (&[("valkey_version", "8.1.0")], Fine, "Valkey 8.1.0"),
            (
                &[("maxmemory", "0"), ("maxmemory_policy", "allkeys-lru")],
                Fine,
                "evicts nothing",
            ),
            (&[("redis_version", "6.2.14")], Problem, "too old"),
            (&[("redis_version", "")], Problem, "too old"),
            (
                &[("role", "slave"), ("master_host", "h"), ("master_port", "1")],
                Problem,
                "of h:1",
            ),
            (&[("cluster_enabled", "1")], Warning, "no replica"),
            (&[("aof_enabled", "0")], Warning, "last snapshot"),
            (&[("aof_last_write_status", "err")], Problem, "append-only"),
            (&[("aof_last_bgrewrite_status", "err")], Problem, "append-only"),
            (&[("rdb_last_bgsave_status", "err")], Problem, "snapshot"),
            (&[("maxmemory_policy", "volatile-ttl")], Problem, "volatile-ttl"),
            (&[("maxmemory_policy", "allkeys-lru")], Problem, "allkeys-lru"),
            (&[("used_memory", "80")], Warning, "80%"),
        ];
        for (changed, level, word) in cases {
            let found = judge(&state(changed), GRACE);
            assert_eq!(found.len(), 1, "{changed:?}: {found:?}");
            assert_eq!(found[0].level, level, "{changed:?}");
            assert!(found[0].what.contains(word), "{changed:?}: {}", found[0].what);
        }
    }

    #[test]
    fn a_redis_without_snapshots_keeps_nothing() {
        for (saves, expected) in [(Some(true), Level::Warning), (Some(false), Level::Problem)] {
            let state = State {
                saves,
                ..state(&[("aof_enabled", "0")])
            };
            assert_eq!(durability(&state)[0].level, expected);
        }
    }

    #[test]
    fn refusals_are_distinguished() {
        let server = |text: &str| {
            let error =
                redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).and_then(redis::Value::extract_error);
            error.expect_err("an error")
        };
        for (error, tls, word) in [
            (
                server("NOPERM this user has no permissions to run the 'info' command"),
                false,
                "rights",
            ),
            (server("NOAUTH Authentication required."), false, "password"),
            (
                server("WRONGPASS invalid username-password pair or user is disabled."),
                false,
                "password",
            ),
            (server("LOADING Redis is loading the dataset in memory"), false, "wait"),
            (RedisError::from((ErrorKind::Io, "timed out")), true, "never answers"),
            (RedisError::from((ErrorKind::Io, "timed out")), false, "start it"),
        ] {
            let found = away(&error, tls);
            assert!(found.fix.as_ref().is_some_and(|fix| fix.contains(word)), "{found:?}");
        }
    }

    #[test]
    fn a_clock_is_judged_by_certain_bounds() {
        for (ahead_ms, asked_ms, expected) in [
            (0, 0, None),
            (-500, 0, None),
            (501, 0, Some(Level::Warning)),
            // Half of the round-trip time can explain the excess.
            (501, 4, None),
            (-1999, 0, Some(Level::Warning)),
            (2001, 0, Some(Level::Problem)),
            (-60_000, 100, Some(Level::Problem)),
        ] {
            let state = State {
                ahead_ms,
                asked_ms,
                ..state(&[])
            };
            let found = clock(&state, GRACE);
            assert_eq!(
                found.as_ref().map(|found| found.level),
                expected,
                "{ahead_ms} {asked_ms}"
            );
            let side = found.map(|found| found.what.contains("ahead of"));
            assert_eq!(side, expected.map(|_| ahead_ms > 0), "{ahead_ms}");
        }
    }
}
