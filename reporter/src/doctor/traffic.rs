//! What the components write: whether it is what this reporter counts.

use std::collections::BTreeSet;

use redis::RedisResult;
use verve_protocol::{Id, Keys, SpoolState, Window, WindowLength};

use super::Finding;
use super::redis::State;
use crate::clock::now_ms;
use crate::store::{Server, Store};
use crate::windows::WindowsConfig;

/// Keys looked through at most on each Redis, some milliseconds of its time a thousand.
const LOOKED_THROUGH: usize = 200_000;
const PAGE: usize = 1000;
/// What ended longer ago, in seconds, does not tell what is written now.
const RECENT_S: u64 = 120;
/// Ids asked for of a server. That so many have one hash modulo 2 by chance does not happen.
const SAMPLE: usize = 64;
/// A list of servers that is longer than this is not guessed at.
const MOST_SERVERS: usize = 16;

/// What is written now.
#[derive(Debug, Default)]
struct Written {
    /// Namespaces, and lengths of windows, in seconds.
    sets: BTreeSet<(String, u64)>,
    /// The latest start of a window with ids, in Unix seconds.
    latest: u64,
    /// Ids of this reporter's windows on each server, or nothing of those that did not answer.
    samples: Vec<Option<Vec<Id>>>,
    /// Whether there were too many keys to look at all of them.
    partly: bool,
    /// Ids and jobs in spools.
    spooled: u64,
}

/// Looks at what is written. Servers that did not answer for their state are not asked.
pub async fn examine(store: &Store, states: &[Option<State>], windows: &WindowsConfig) -> Vec<Finding> {
    let now = now_ms() / 1000;
    let mut written = Written::default();
    for (server, state) in store.servers().iter().zip(states) {
        let sample = match state {
            Some(_) => match look(server, &store.keys, windows.length, now, &mut written).await {
                Ok(sample) => Some(sample),
                Err(error) => return vec![Finding::problem(error.to_string(), LOOK_RIGHTS).of(&server.to_string())],
            },
            None => None,
        };
        written.samples.push(sample);
    }
    if written.samples.iter().all(Option::is_none) {
        // Nothing is known, and that was said.
        return Vec::new();
    }
    judge(&written, store.keys.namespace().as_str(), windows.length, now)
}

const LOOK_RIGHTS: &str = "let the reporter's Redis user run SCAN, SRANDMEMBER and HVALS";

/// Looks at one server, and answers some ids of this reporter's latest window on it.
async fn look(
    server: &Server,
    keys: &Keys,
    length: WindowLength,
    now: u64,
    written: &mut Written,
) -> RedisResult<Vec<Id>> {
    let (mut cursor, mut looked_through) = (0u64, 0);
    let mut newest: Option<Window> = None;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg("*:ids:*:*")
            .arg("COUNT")
            .arg(PAGE)
            .arg("TYPE")
            .arg("set");
        let (next, found): (u64, Vec<String>) = server.command(&scan).await?;
        for (namespace, seconds, start) in found.iter().filter_map(|key| parts(key)) {
            if start + seconds + RECENT_S < now {
                continue;
            }
            written.sets.insert((namespace.to_owned(), seconds));
            if namespace == keys.namespace().as_str() && seconds == length.seconds() {
                written.latest = written.latest.max(start);
                newest = newest.max(length.window_starting(start));
            }
        }
        looked_through += PAGE;
        cursor = next;
        if cursor == 0 {
            break;
        }
        if looked_through >= LOOKED_THROUGH {
            written.partly = true;
            break;
        }
    }
    let spools: Vec<String> = server.command(redis::cmd("HVALS").arg(keys.spools())).await?;
    let states = spools.iter().filter_map(|text| text.parse::<SpoolState>().ok());
    written.spooled += states.map(|state| state.depth).sum::<u64>();
    let Some(newest) = newest else { return Ok(Vec::new()) };
    let mut sample = redis::cmd("SRANDMEMBER");
    let ids: Vec<String> = server.command(sample.arg(keys.ids(newest)).arg(SAMPLE)).await?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

/// Namespace, length and start of the window whose ids are under this key.
fn parts(key: &str) -> Option<(&str, u64, u64)> {
    let mut parts = key.rsplitn(3, ':');
    let (start, seconds, rest) = (parts.next()?, parts.next()?, parts.next()?);
    Some((rest.strip_suffix(":ids")?, seconds.parse().ok()?, start.parse().ok()?))
}

fn judge(written: &Written, namespace: &str, length: WindowLength, now: u64) -> Vec<Finding> {
    let seconds = length.seconds();
    let ours = written.sets.contains(&(namespace.to_owned(), seconds));
    let mut findings = Vec::new();
    let lengths = (written.sets.iter()).filter(|(other, length)| other == namespace && *length != seconds);
    let lengths: Vec<String> = lengths.map(|(_, length)| length.to_string()).collect();
    if !lengths.is_empty() {
        let what = format!(
            "components write windows of {} s; this reporter counts those of {seconds} s",
            lengths.join(", ")
        );
        let fix = "the same --window-seconds here as window_seconds there; or another reporter for the others";
        findings.push(Finding::problem(what, fix));
    } else if !ours {
        let others: BTreeSet<&str> = written.sets.iter().map(|(namespace, _)| namespace.as_str()).collect();
        findings.push(if others.is_empty() {
            let what = if written.partly {
                "no ids of these minutes are among the keys that were looked through; there are more"
            } else {
                "no component wrote ids in the last minutes"
            };
            Finding::warning(
                what,
                "nothing to do if no requests came; or else compare the components' redis_urls with --redis-urls",
            )
        } else {
            let others = Vec::from_iter(others).join(", ");
            let what = format!("no component writes to the namespace {namespace}, but some write to {others}");
            Finding::problem(what, "the same --namespace here as namespace there")
        });
    }
    if written.latest > now + 1 {
        let ahead = written.latest - now;
        findings.push(Finding::problem(
            format!("components write to a window that begins in {ahead} s"),
            "let the hosts keep their time by NTP",
        ));
    }
    findings.extend(order(&written.samples));
    if written.spooled > 0 {
        findings.push(Finding::warning(
            format!("{} ids and jobs are in spools, not in Redis yet", written.spooled),
            "they come once Redis answers the components, with the next requests to each; a host that is gone brings them only when it is started again",
        ));
    }
    if ours && findings.is_empty() {
        findings.push(Finding::fine(format!(
            "components write windows of {seconds} s to the namespace {namespace}"
        )));
    }
    findings
}

/// Whether ids are on the servers on which this reporter would have put them.
fn order(samples: &[Option<Vec<Id>>]) -> Option<Finding> {
    let servers = samples.len();
    let fix = "the same servers in the same order in --redis-urls as in the components' redis_urls";
    let of = |at: usize| samples[at].iter().flatten();
    if (0..servers).any(|at| of(at).any(|id| id.shard(servers) != at)) {
        let what =
            "ids are not on the servers where the order of --redis-urls has them: the components' order is another one";
        return Some(Finding::problem(what, fix));
    }
    let [Some(sample)] = samples else { return None };
    let share = (2..=MOST_SERVERS).find(|servers| {
        let shards: BTreeSet<usize> = sample.iter().map(|id| id.shard(*servers)).collect();
        shards.len() == 1
    })?;
    (sample.len() >= SAMPLE).then(|| {
        let what =
            format!("the ids here are one share of {share}: the components have more servers than this reporter");
        Finding::problem(what, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const NOW: u64 = 1_795_383_000;

    fn minute() -> WindowLength {
        WindowLength::try_new(60).expect("valid")
    }

    fn ids(of: impl Fn(Id) -> bool) -> Vec<Id> {
        let all = (0..).map(|n: i64| n.to_string().parse().expect("an id"));
        all.filter(|id| of(*id)).take(SAMPLE).collect()
    }

    fn written(sets: &[(&str, u64)], samples: Vec<Option<Vec<Id>>>) -> Written {
        Written {
            sets: sets
                .iter()
                .map(|(namespace, length)| ((*namespace).to_owned(), *length))
                .collect(),
            latest: NOW - NOW % 60,
            samples,
            ..Written::default()
        }
    }

    #[test]
    fn keys_of_ids_are_known() {
        assert_eq!(parts("verve:ids:60:1795383000"), Some(("verve", 60, 1_795_383_000)));
        assert_eq!(parts("a:b:ids:5:0"), Some(("a:b", 5, 0)));
        for other in [
            "verve:stats:60:0",
            "verve:ids:60",
            "ids:60:0",
            "verve:ids:x:0",
            "verve:ids:60:",
        ] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    /// What is written, and what is found.
    type Case = (&'static [(&'static str, u64)], Level, &'static str);

    #[test]
    fn settings_that_differ_are_found() {
        use Level::{Fine, Problem, Warning};
        let cases: [Case; 5] = [
            (&[("verve", 60)], Fine, "windows of 60 s"),
            (&[], Warning, "no component"),
            (&[("verve", 5)], Problem, "windows of 5 s"),
            (&[("verve", 5), ("verve", 60)], Problem, "windows of 5 s"),
            (&[("shop", 60)], Problem, "shop"),
        ];
        for (sets, level, word) in cases {
            let found = judge(&written(sets, vec![Some(ids(|_| true))]), "verve", minute(), NOW);
            assert_eq!(found.len(), 1, "{sets:?}: {found:?}");
            assert_eq!(found[0].level, level, "{sets:?}");
            assert!(found[0].what.contains(word), "{sets:?}: {}", found[0].what);
        }
        let both = judge(
            &written(&[("shop", 5), ("verve", 60)], vec![Some(vec![])]),
            "verve",
            minute(),
            NOW,
        );
        assert_eq!(both[0].level, Level::Fine);
    }

    #[test]
    fn components_ahead_of_time_and_spools_are_found() {
        let mut seen = written(&[("verve", 60)], vec![Some(vec![])]);
        seen.latest = NOW + 30;
        seen.spooled = 7;
        let found = judge(&seen, "verve", minute(), NOW);
        assert!(
            found[0].what.contains("in 30 s") && found[1].what.starts_with("7 ids"),
            "{found:?}"
        );
    }

    #[test]
    fn another_order_or_number_of_servers_is_found() {
        let of = |shard: usize, shards: usize| Some(ids(move |id| id.shard(shards) == shard));
        assert_eq!(order(&[of(0, 2), of(1, 2)]), None);
        assert_eq!(order(&[of(0, 2), None]), None);
        assert_eq!(order(&[of(0, 1)]), None);
        assert_eq!(order(&[None]), None);
        for wrong in [
            vec![of(1, 2), of(0, 2)],
            vec![of(0, 3), of(1, 3)],
            vec![of(0, 2)],
            vec![of(2, 3)],
        ] {
            assert!(order(&wrong).is_some(), "{wrong:?}");
        }
        // Few ids tell nothing.
        assert_eq!(order(&[Some(ids(|id| id.shard(2) == 0)[..5].to_vec())]), None);
    }
}
