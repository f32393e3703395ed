//! Checks that this reporter counts what the components write.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;
use verve_protocol::keys::{UNREPORTED_SECONDS, ids_parts};
use verve_protocol::{Id, Partition, Partitions, SpoolState, Window, WindowLength, WindowLengths};

use super::Finding;
use crate::store::Store;

/// The maximum number of keys to scan.
///
/// A thousand take some milliseconds of Redis' time.
const LOOKED_THROUGH: usize = 200_000;
const PAGE: usize = 1000;
/// The age in seconds from which on a window does not show current writes.
const RECENT_S: u64 = 120;
/// The number of ids read from a set.
const SAMPLE: usize = 64;
/// The maximum number of sets to read.
const SETS: usize = 16;

/// What the components write now.
#[derive(Debug, Default)]
struct Written {
    /// The namespaces, and the window lengths in seconds.
    sets: BTreeSet<(String, u64)>,
    /// The latest start of a window with ids, in Unix seconds.
    latest: u64,
    /// The end of the latest window for which ids came too late in the last minutes.
    ///
    /// In Unix seconds; 0 if there is none.
    over: u64,
    /// The newest window reported with ids in the last hour, and their number.
    reported: Option<(Window, u64)>,
    /// Ids of this reporter's latest window, by their set.
    samples: BTreeMap<Partition, Vec<Id>>,
    /// Whether there were too many keys to scan all of them.
    partly: bool,
    /// Ids and jobs in spools.
    spooled: u64,
}

/// Checks what the components write.
pub async fn examine(store: &Store, lengths: &WindowLengths) -> Vec<Finding> {
    match look(store, lengths.main()).await {
        Ok((written, now)) => judge(
            &written,
            store.keys.namespace().as_str(),
            (lengths, store.partitions()),
            now,
        ),
        Err(error) => vec![Finding::problem(error.to_string(), LOOK_RIGHTS).of(&store.redis().to_string())],
    }
}

const LOOK_RIGHTS: &str = "let the reporter's Redis user run SCAN, SRANDMEMBER and HVALS";

/// Reads what the components write, with some ids of this reporter's latest window.
async fn look(store: &Store, length: WindowLength) -> RedisResult<(Written, u64)> {
    let now = store.clock().await?.now_ms() / 1000;
    let (server, keys) = (store.redis(), &store.keys);
    let mut written = Written::default();
    let mut looked_through = 0;
    let mut newest: Option<Window> = None;
    let mut sets = BTreeSet::new();
    for node in server.nodes().await? {
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor)
                .arg("MATCH")
                .arg("*:ids:*")
                .arg("COUNT")
                .arg(PAGE)
                .arg("TYPE")
                .arg("set");
            let (next, found): (u64, Vec<String>) = node.command(&scan).await?;
            for (namespace, seconds, start, set) in found.iter().filter_map(|key| ids_parts(key)) {
                let is_ours = namespace == keys.namespace().as_str() && seconds == length.seconds();
                if start + seconds + RECENT_S < now {
                    continue;
                }
                // A named counter belongs to its namespace.
                let in_namespace = namespace.split('/').next().unwrap_or(namespace);
                written.sets.insert((in_namespace.to_owned(), seconds));
                if is_ours {
                    written.latest = written.latest.max(start);
                    let window = length.window_starting(start);
                    if window > newest {
                        newest = window;
                        sets.clear();
                    }
                    sets.extend((window == newest).then_some(set));
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
    }
    let too_late: Vec<u64> = server
        .command(redis::cmd("ZRANGE").arg(keys.windows_late(length)).arg(-1).arg(-1))
        .await?;
    let too_late = too_late.first().and_then(|start| length.window_starting(*start));
    if let Some(window) = too_late.filter(|window| window.end() + RECENT_S < now) {
        for set in store.sets() {
            // Late ids are kept for a day after the last one arrived.
            let left: i64 = server.command(redis::cmd("TTL").arg(keys.late(window, set))).await?;
            if left > UNREPORTED_SECONDS.cast_signed() - RECENT_S.cast_signed() {
                written.over = window.end();
            }
        }
    }
    written.reported = reported(store, length, now).await?;
    let spools: Vec<String> = server.command(redis::cmd("HVALS").arg(keys.spools())).await?;
    let states = spools.iter().filter_map(|text| text.parse::<SpoolState>().ok());
    written.spooled += states.map(|state| state.depth).sum::<u64>();
    if let Some(newest) = newest {
        for set in sets.into_iter().take(SETS) {
            let mut sample = redis::cmd("SRANDMEMBER");
            let ids: Vec<String> = server.command(sample.arg(keys.ids(newest, set)).arg(SAMPLE)).await?;
            written
                .samples
                .insert(set, ids.iter().filter_map(|id| id.parse().ok()).collect());
        }
    }
    Ok((written, now))
}

/// Returns the newest window reported with ids in the last hour, and their number.
async fn reported(store: &Store, length: WindowLength, now: u64) -> RedisResult<Option<(Window, u64)>> {
    let current = length.window_at_ms(now * 1000);
    let windows = std::iter::successors(current.previous(), |window| window.previous());
    let windows: Vec<Window> = windows.take_while(|window| window.end() + 3600 > now).collect();
    let reports = store.reports(&windows).await?;
    let mut counts = windows.into_iter().zip(reports);
    Ok(counts.find_map(|(window, report)| {
        let count = report?.count;
        (count > 0).then_some((window, count))
    }))
}

fn judge(
    written: &Written,
    namespace: &str,
    (lengths, partitions): (&WindowLengths, Partitions),
    now: u64,
) -> Vec<Finding> {
    let seconds = lengths.main().seconds();
    let is_counted = |length: u64| lengths.all().any(|counted| counted.seconds() == length);
    let ours = written.sets.contains(&(namespace.to_owned(), seconds));
    let mut findings = Vec::new();
    let others = (written.sets.iter()).filter(|(other, length)| other == namespace && !is_counted(*length));
    let others: Vec<String> = others.map(|(_, length)| length.to_string()).collect();
    let missing = lengths.longer().iter().map(|length| length.seconds());
    let missing =
        missing.filter(|length| ours && !written.partly && !written.sets.contains(&(namespace.to_owned(), *length)));
    let missing: Vec<String> = missing.map(|length| length.to_string()).collect();
    if !missing.is_empty() {
        let what = format!(
            "this reporter counts windows of {lengths} s; components write none of {} s",
            missing.join(", ")
        );
        findings.push(Finding::problem(
            what,
            "the same window_seconds there as --window-seconds here",
        ));
    }
    if !others.is_empty() {
        let what = format!(
            "components write windows of {} s; this reporter counts those of {lengths} s",
            others.join(", ")
        );
        let fix = "the same --window-seconds here as window_seconds there; or another reporter for the others";
        findings.push(Finding::problem(what, fix));
    } else if !ours && written.over > 0 {
        let what = format!(
            "components write to windows that are over: ids came for one that ended {} s ago, and none to that of now",
            now.saturating_sub(written.over)
        );
        let fix = "let the hosts keep their time by NTP; or a host was unreachable for long and has drained its spool";
        findings.push(Finding::problem(what, fix));
    } else if !ours {
        let others: BTreeSet<&str> = written.sets.iter().map(|(namespace, _)| namespace.as_str()).collect();
        findings.push(if others.is_empty() {
            let what = if written.partly {
                "no ids of these minutes are among the keys that were looked through; there are more"
            } else {
                "no component wrote ids in the last minutes"
            };
            let fix = "nothing to do if no requests came; or else compare the components' redis_urls with --redis-urls, and see whether they answer with verve-outcome: spooled: then they do not reach Redis";
            Finding::warning(
                match written.reported {
                    Some((window, count)) => format!("{what}, and {count} in the window {window}"),
                    None => what.to_owned(),
                },
                fix,
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
    findings.extend(partitioned(&written.samples, partitions));
    if written.spooled > 0 {
        findings.push(Finding::warning(
            format!("{} ids and jobs are in spools, not in Redis yet", written.spooled),
            "components drain them once Redis answers, with the next requests to each; a stopped host drains them only after it is started again",
        ));
    }
    if ours && findings.is_empty() {
        findings.push(Finding::fine(format!(
            "components write windows of {lengths} s to the namespace {namespace}"
        )));
    }
    findings
}

/// Checks that ids are in the sets into which this reporter would have put them.
fn partitioned(samples: &BTreeMap<Partition, Vec<Id>>, partitions: Partitions) -> Option<Finding> {
    let elsewhere = |(set, ids): (&Partition, &Vec<Id>)| ids.iter().any(|id| id.partition(partitions) != *set);
    let fix = "the same --partitions here as partitions there";
    let numbered = samples.keys().any(|set| *set != Partition::Whole);
    if samples.len() > 1 && samples.contains_key(&Partition::Whole) {
        let what =
            "some components write whole windows, and some partitions: an id that comes to both is counted twice";
        return Some(Finding::problem(what, "one number of partitions in all components"));
    }
    if !samples.iter().any(elsewhere) {
        return None;
    }
    Some(if numbered {
        let what = format!(
            "components write other partitions than the {partitions} of this reporter: not all ids are counted"
        );
        Finding::problem(what, fix)
    } else {
        let what = format!(
            "components write whole windows, and not {partitions} partitions: they are counted, but on one node"
        );
        Finding::warning(what, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const NOW: u64 = 1_795_383_000;

    fn minute() -> WindowLengths {
        "60".parse().expect("valid")
    }

    fn ids(of: impl Fn(Id) -> bool) -> Vec<Id> {
        let all = (0..).map(|n: i64| n.to_string().parse().expect("an id"));
        all.filter(|id| of(*id)).take(SAMPLE).collect()
    }

    fn written(sets: &[(&str, u64)]) -> Written {
        Written {
            sets: sets
                .iter()
                .map(|(namespace, length)| ((*namespace).to_owned(), *length))
                .collect(),
            latest: NOW - NOW % 60,
            ..Written::default()
        }
    }

    fn found(written: &Written) -> Vec<Finding> {
        judge(written, "verve", (&minute(), Partitions::default()), NOW)
    }

    /// What is written, and the expected finding.
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
            let found = found(&written(sets));
            assert_eq!(found.len(), 1, "{sets:?}: {found:?}");
            assert_eq!(found[0].level, level, "{sets:?}");
            assert!(found[0].what.contains(word), "{sets:?}: {}", found[0].what);
        }
        let both = found(&written(&[("shop", 5), ("verve", 60)]));
        assert_eq!(both[0].level, Level::Fine);
    }

    #[test]
    fn components_ahead_of_time_and_spools_are_found() {
        let mut seen = written(&[("verve", 60)]);
        seen.latest = NOW + 30;
        seen.spooled = 7;
        let found = found(&seen);
        assert!(
            found[0].what.contains("in 30 s") && found[1].what.starts_with("7 ids"),
            "{found:?}"
        );
    }

    #[test]
    fn silent_hosts_and_hosts_with_a_slow_clock_are_found() {
        let mut seen = written(&[("shop", 60)]);
        seen.over = NOW - 600;
        let past = found(&seen);
        assert_eq!((past.len(), past[0].level), (1, Level::Problem));
        assert!(past[0].what.contains("ended 600 s ago"), "{past:?}");
        let mut silent = written(&[]);
        silent.reported = Some((minute().main().window_at_ms((NOW - 300) * 1000), 7));
        let silent = found(&silent);
        assert_eq!((silent.len(), silent[0].level), (1, Level::Warning));
        assert!(silent[0].what.contains("and 7 in the window"), "{silent:?}");
    }

    #[test]
    fn another_number_of_partitions_is_found() {
        use Level::{Problem, Warning};
        let counted = |count| Partitions::try_new(count).expect("valid");
        let of = |set: Partition, count| (set, ids(move |id| id.partition(counted(count)) == set));
        let level = |samples: &[(Partition, Vec<Id>)], count| {
            let samples = samples.iter().cloned().collect();
            partitioned(&samples, counted(count)).map(|finding| finding.level)
        };
        let [part_0, part_1, part_3] = [0, 1, 3].map(Partition::Part);
        assert_eq!(level(&[], 1), None);
        assert_eq!(level(&[of(Partition::Whole, 1)], 1), None);
        assert_eq!(level(&[of(part_0, 2), of(part_1, 2)], 2), None);
        // Not all ids are counted.
        assert_eq!(level(&[of(part_0, 2)], 1), Some(Problem));
        assert_eq!(level(&[of(part_3, 4)], 2), Some(Problem));
        assert_eq!(level(&[of(part_0, 4), of(part_1, 4)], 3), Some(Problem));
        // All ids are counted, but not with the intended partitions.
        assert_eq!(level(&[of(Partition::Whole, 1)], 4), Some(Warning));
        // Ids are counted twice.
        assert_eq!(level(&[of(Partition::Whole, 1), of(part_0, 2)], 2), Some(Problem));
    }
}
