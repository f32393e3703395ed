//! Tests the counts: 20,000 requests with overlapping ids to two instances.
//!
//! Each window's record is exact, on one Redis and on three.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{Id, Window};
use verve_tests::clock;
use verve_tests::host::{Instance, Kind};
use verve_tests::load::{self, Answer};
use verve_tests::reporter::Reporter;
use verve_tests::wait;

use crate::ledger::{Ledger, windows};
use crate::site::{SOON, Site};

const CONNECTIONS: usize = 40;

/// The traffic of one test, and its results.
struct Traffic {
    site: Site,
    ledger: Ledger,
    instances: Vec<Instance>,
    _reporter: Reporter,
    sent: Vec<(i64, Answer)>,
    first: Window,
}

impl Traffic {
    async fn new(kinds: [Kind; 2], window_seconds: u32, partitions: u16) -> Result<Self> {
        let site = Site::new(window_seconds).await?.partitioned(partitions);
        let ledger = Ledger::new().await?;
        let mut instances = Vec::new();
        for kind in kinds {
            instances.push(site.host(kind).start().await?);
        }
        let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        // The reporter may begin a moment after it is ready. Earlier windows without ids have no
        // record.
        let first = wait::until("the first window", SOON, || async {
            let mut get = redis::cmd("GET");
            get.arg(site.keys().reports_from(site.length));
            get.query_async(&mut site.connection().await.ok()?).await.ok()?
        });
        let first: u64 = first.await?;
        Ok(Self {
            first: site.length.window_at_ms(first * 1000),
            site,
            ledger,
            instances,
            _reporter: reporter,
            sent: Vec::new(),
        })
    }

    /// Sends these ids to both instances concurrently; every id must be accepted.
    async fn send(&mut self, ids: &[i64]) -> Result<()> {
        let addresses: Vec<_> = self.instances.iter().map(Instance::addr).collect();
        let targets = ids.iter().map(|id| format!("/api/verve/accept?id={id}")).collect();
        let answers = load::run(&addresses, CONNECTIONS, targets).await?;
        for (id, answer) in ids.iter().zip(answers) {
            anyhow::ensure!(answer.status == 200, "id {id}: {answer:?}");
            self.sent.push((*id, answer));
        }
        Ok(())
    }

    /// Counts the requests with this outcome.
    fn outcomes(&self, outcome: &str) -> usize {
        let is = |(_, answer): &&(i64, Answer)| answer.outcome.as_deref() == Some(outcome);
        self.sent.iter().filter(is).count()
    }

    /// Checks sets, records and statistics against the requests.
    ///
    /// Returns the sum of all windows.
    async fn check(&mut self) -> Result<usize> {
        let last = clock::current_window(self.site.length);
        let mut ids: BTreeMap<Window, BTreeSet<i64>> = BTreeMap::new();
        for window in windows(self.first, last) {
            let mut all = BTreeSet::new();
            let sets = self.site.members(window).await?;
            for (partition, members) in self.site.partitions.all().zip(sets) {
                for member in members {
                    let id: i64 = member.parse()?;
                    assert_eq!(
                        Id(id).partition(self.site.partitions),
                        partition,
                        "{window}: {id} is in the wrong set"
                    );
                    all.insert(id);
                }
            }
            ids.insert(window, all);
        }
        self.check_sets(&ids);
        self.check_records(&ids).await?;
        self.check_statistics(&ids).await?;
        Ok(ids.values().map(BTreeSet::len).sum())
    }

    /// Checks that each id is in a window that was open while its request ran.
    ///
    /// The windows contain no other ids.
    fn check_sets(&self, ids: &BTreeMap<Window, BTreeSet<i64>>) {
        let mut unexplained = ids.clone();
        for (id, answer) in &self.sent {
            let at = |ms| self.site.length.window_at_ms(ms);
            let open = windows(at(answer.sent_ms), at(answer.answered_ms));
            assert!(
                open.iter().any(|w| ids.get(w).is_some_and(|set| set.contains(id))),
                "id {id} was answered `ok` and is in no set of {open:?}"
            );
            for window in open {
                unexplained.get_mut(&window).map(|set| set.remove(id));
            }
        }
        assert!(unexplained.values().all(BTreeSet::is_empty), "{unexplained:?}");
        let total: usize = ids.values().map(BTreeSet::len).sum();
        assert_eq!(total, self.outcomes("new"), "each `new` is one member");
        assert_eq!(self.sent.len(), self.outcomes("new") + self.outcomes("duplicate"));
    }

    /// Checks that each window's last record is the size of its set.
    async fn check_records(&mut self, ids: &BTreeMap<Window, BTreeSet<i64>>) -> Result<()> {
        let expected: BTreeMap<String, String> = ids
            .iter()
            .map(|(window, set)| (window.to_string(), set.len().to_string()))
            .collect();
        let is_right = |ledger: &Ledger| {
            let last = ledger.last();
            let right = |(key, count): (&String, &String)| last.get(key.as_str()).is_some_and(|r| r.value == *count);
            expected.iter().all(right)
        };
        let read = self.ledger.read_until(Duration::from_secs(30), is_right).await;
        read.with_context(|| format!("expected {expected:#?}"))
    }

    /// Checks that the statistics of all windows add up to the requests.
    async fn check_statistics(&self, ids: &BTreeMap<Window, BTreeSet<i64>>) -> Result<()> {
        let sum = async || -> Result<HashMap<String, usize>> {
            let mut sum = HashMap::new();
            let mut redis = self.site.connection().await?;
            for window in ids.keys() {
                let stats: HashMap<String, usize> = redis.hgetall(self.site.keys().stats(*window)).await?;
                stats
                    .into_iter()
                    .for_each(|(name, n)| *sum.entry(name).or_default() += n);
            }
            Ok(sum)
        };
        let expected = [
            ("requests", self.sent.len()),
            ("new", self.outcomes("new")),
            ("duplicate", self.outcomes("duplicate")),
        ];
        let arrived = wait::until("the statistics", SOON, || async {
            let sum = sum().await.ok()?;
            expected
                .iter()
                .all(|(name, n)| sum.get(*name).copied().unwrap_or_default() == *n)
                .then_some(())
        })
        .await;
        let sum = sum().await?;
        arrived.with_context(|| format!("expected {expected:?}, came {sum:?}"))?;
        assert!(
            sum.values().sum::<usize>() == 2 * self.sent.len(),
            "nothing else happened: {sum:?}"
        );
        Ok(())
    }
}

/// Returns `count` ids, at most `distinct` of them different.
///
/// The order looks random, but is the same each time.
fn overlapping(count: usize, distinct: u64, seed: u64) -> Vec<i64> {
    let mut state = seed;
    let mut next = || {
        // Knuth's MMIX generator; its upper bits are good enough to mix requests.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((state >> 33) % distinct).unwrap_or_default()
    };
    (0..count).map(|_| next()).collect()
}

/// Sends 20,000 requests and checks the counts.
///
/// The ids of the first 10,000 repeat across window boundaries. The other 10,000 are sent in
/// batches that each stay within one window, so that the sum of the windows is known in advance.
async fn count_exactly(kinds: [Kind; 2], partitions: u16) -> Result<()> {
    let mut traffic = Traffic::new(kinds, 3, partitions).await?;
    traffic.send(&overlapping(10_000, 4_000, 1)).await?;
    traffic
        .check()
        .await
        .with_context(|| format!("{kinds:?}, across boundaries"))?;

    // The instances' dedup caches must not outlive the window.
    let before = traffic.check().await?;
    let mut distinct: BTreeMap<Window, BTreeSet<i64>> = BTreeMap::new();
    // For ids sent while a window ends, the window is not known.
    let (mut between, mut took) = (0, Duration::from_millis(200));
    for batch in 0..10 {
        let ids: Vec<i64> = overlapping(1_000, 600, batch + 7)
            .into_iter()
            .map(|id| -1 - id - 1_000 * i64::try_from(batch).unwrap_or_default())
            .collect();
        for ids in ids.chunks(250) {
            let mut window = clock::current_window(traffic.site.length);
            let left = Duration::from_millis(window.end_ms().saturating_sub(clock::now_ms()));
            if left < 4 * took {
                window = clock::next_window(traffic.site.length).await;
            }
            let begun = Instant::now();
            traffic.send(ids).await?;
            took = begun.elapsed();
            if clock::current_window(traffic.site.length) == window {
                distinct.entry(window).or_default().extend(ids);
            } else {
                between += ids.len();
            }
        }
    }
    assert_eq!(traffic.sent.len(), 20_000);
    let sum = traffic
        .check()
        .await
        .with_context(|| format!("{kinds:?}, in batches"))?;
    let distinct: usize = distinct.values().map(BTreeSet::len).sum();
    assert!(
        (distinct..=distinct + between).contains(&(sum - before)),
        "{kinds:?}: the windows have {} ids, of {distinct} and {between} distinct ones",
        sum - before
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_set() -> Result<()> {
    for kind in Kind::every() {
        count_exactly([kind; 2], 1).await?;
    }
    Ok(())
}

/// Simulates a site that moves from one build of the component to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_instances_of_both_builds() -> Result<()> {
    count_exactly([Kind::VerveHost, Kind::VerveHostP2], 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_three_partitions() -> Result<()> {
    for kind in Kind::every() {
        count_exactly([kind; 2], 3).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boundary_in_the_middle_of_traffic() -> Result<()> {
    for kind in Kind::every() {
        let mut traffic = Traffic::new([kind; 2], 1, 1).await?;
        let mut ids = 0;
        // Until the traffic has crossed three boundaries; each id is sent only once.
        while clock::current_window(traffic.site.length).start() < traffic.first.start() + 4 {
            let batch: Vec<i64> = (ids..ids + 500).collect();
            traffic.send(&batch).await?;
            ids += 500;
        }
        let sum = traffic.check().await?;
        assert_eq!(sum, traffic.sent.len(), "{kind:?}: each id is in one window");
        assert_eq!(traffic.outcomes("duplicate"), 0, "{kind:?}");
    }
    Ok(())
}
