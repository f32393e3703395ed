//! Statistics by window: counted in memory, flushed to Redis after responses.
//!
//! The counts are exact unless the instance is killed before it flushes. Then the counts of up to
//! [`FLUSH_AFTER`] are lost. No id is lost, and the unique count of a window does not depend on the
//! statistics.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use verve_protocol::keys::{INDEX_SECONDS, UNREPORTED_SECONDS, indexed, stats};
use verve_protocol::{Keys, Window};

use crate::spooled::Batch;

/// How long after a response its counts are flushed.
///
/// The counts of the responses since then are flushed with them.
pub const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// Counts that are not yet flushed.
#[derive(Debug, Default)]
pub struct Stats {
    windows: RefCell<BTreeMap<Window, Counts>>,
    /// Failed flushes, each with its idempotency key.
    kept: RefCell<VecDeque<Batch>>,
    /// Whether a flush is scheduled and has not taken the counts yet.
    flush_due: Cell<bool>,
}

/// The fields of [`verve_protocol::Keys::stats`], with the increment of each.
pub type Counts = BTreeMap<&'static str, i64>;

/// Counts a request, under one of the fields of [`stats`].
pub fn count(counts: &mut Counts, field: &'static str) {
    *counts.entry(stats::REQUESTS).or_default() += 1;
    *counts.entry(field).or_default() += 1;
}

/// Returns the flush of a window's counts, at `now_ms` in Unix milliseconds.
///
/// `name` is its idempotency key: the flush counts once, even if it is sent several times. If the
/// window may have ids, the flush also adds it to the index again, with this many `partitions`: the
/// leader removes a final window from the index, and ids may have arrived since. It also registers
/// a named counter again, if the leader has removed it from those in use or Redis has lost its
/// name. In a cluster, the instance need not notice that.
#[must_use]
pub fn flush(keys: &Keys, window: Window, counts: &Counts, name: String, now_ms: u64, partitions: u16) -> Batch {
    let key = keys.stats(window);
    // Neither keys nor fields have characters that JSON would escape.
    let increments = counts
        .iter()
        .map(|(field, n)| format!(r#"["HINCRBY","{key}","{field}","{n}"]"#));
    let expiry = format!(r#"["EXPIRE","{key}","{}","NX"]"#, kept_seconds(window, now_ms / 1000));
    let has_ids = [stats::NEW, stats::DUPLICATE]
        .iter()
        .any(|field| counts.contains_key(field));
    let index = index(keys, window, now_ms, partitions);
    let registration = keys.counter().into_iter().flat_map(|counter| {
        let now_s = now_ms / 1000;
        let counters = [keys.counters(), keys.counters_in_use(window.length())];
        counters.map(|key| format!(r#"["ZADD","{key}","NX","{now_s}","{counter}"]"#))
    });
    let of_ids = index.into_iter().chain(registration).filter(|_| has_ids);
    Batch::new(keys, name, increments.chain(of_ids).chain([expiry]).collect())
}

/// Returns the commands, as in a [`Batch`], that add a window to the index.
///
/// `now_ms` is in Unix milliseconds. The window may have ids in this many `partitions`.
#[must_use]
pub fn index(keys: &Keys, window: Window, now_ms: u64, partitions: u16) -> [String; 2] {
    let (windows, indexed) = (keys.windows(window.length()), indexed(window, partitions));
    [
        format!(r#"["ZADD","{windows}","{now_ms}","{indexed}"]"#),
        format!(r#"["EXPIRE","{windows}","{INDEX_SECONDS}"]"#),
    ]
}

/// Returns how long a window's statistics are kept from `now_s` on, in seconds.
///
/// They are kept until [`UNREPORTED_SECONDS`] after the end of the window, or after now if it has
/// ended. `now_s` is in Unix seconds, by the clock that determines the window.
#[must_use]
pub const fn kept_seconds(window: Window, now_s: u64) -> u64 {
    window.end().saturating_sub(now_s) + UNREPORTED_SECONDS
}

impl Stats {
    /// Counts a request, under one of the fields of [`stats`].
    ///
    /// Returns whether it is the first since the last [`Stats::take`], so that a flush must be
    /// scheduled.
    #[must_use]
    pub fn count(&self, window: Window, field: &'static str) -> bool {
        let mut windows = self.windows.borrow_mut();
        count(windows.entry(window).or_default(), field);
        !self.flush_due.replace(true)
    }

    /// Takes all counts to flush them.
    #[must_use]
    pub fn take(&self) -> BTreeMap<Window, Counts> {
        self.flush_due.set(false);
        self.windows.take()
    }

    /// Notes that the scheduled flush was given up.
    ///
    /// The next count requests another one.
    pub fn is_due_no_more(&self) {
        self.flush_due.set(false);
    }

    /// Keeps a failed flush until it is tried again.
    pub fn keep(&self, batch: Batch) {
        self.kept.borrow_mut().push_back(batch);
    }

    /// Returns the number of kept flushes.
    #[must_use]
    pub fn kept_len(&self) -> usize {
        self.kept.borrow().len()
    }

    /// Takes the next kept flush.
    #[must_use]
    pub fn kept(&self) -> Option<Batch> {
        self.kept.borrow_mut().pop_front()
    }

    /// Puts back counts that were not flushed.
    ///
    /// The next answer schedules another flush.
    pub fn put_back(&self, window: Window, counts: Counts) {
        let mut windows = self.windows.borrow_mut();
        let present = windows.entry(window).or_default();
        for (field, n) in counts {
            *present.entry(field).or_default() += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Limit, NotCounted, Outcome, statistic};
    use verve_protocol::WindowLength;

    #[test]
    fn answers_are_counted_by_window() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let stats = Stats::default();
        let answers = [
            Ok(Outcome::New),
            Ok(Outcome::Duplicate),
            Ok(Outcome::New),
            Ok(Outcome::Spooled),
            Err(NotCounted::Limited(Limit::Window)),
            Err(NotCounted::Unavailable),
        ];
        let first: Vec<bool> = answers.iter().map(|a| stats.count(window, statistic(*a))).collect();
        assert_eq!(first, [true, false, false, false, false, false]);
        assert!(!stats.count(window.next(), statistic(Err(NotCounted::Unavailable))));

        let mut taken = stats.take();
        let expected = [
            ("duplicate", 1),
            ("failed", 1),
            ("limited", 1),
            ("new", 2),
            ("requests", 6),
            ("spooled", 1),
        ];
        assert_eq!(taken.remove(&window), Some(Counts::from(expected)));
        assert_eq!(
            taken.remove(&window.next()),
            Some(Counts::from([("failed", 1), ("requests", 1)]))
        );
        assert!(stats.take().is_empty());
    }

    #[test]
    fn statistics_are_kept_by_the_end_of_their_window() {
        let day = WindowLength::try_new(86_400).expect("valid").window_at_ms(0);
        for (now, kept) in [(0, 2 * 86_400), (86_399, 86_401), (86_400, 86_400), (500_000, 86_400)] {
            assert_eq!(kept_seconds(day, now), kept, "{now}");
            let keys = Keys::new("verve".parse().expect("valid"));
            let flush = flush(
                &keys,
                day,
                &Counts::from([(stats::NEW, 1)]),
                "name".to_owned(),
                now * 1000,
                4,
            );
            let expiry = format!(r#"["EXPIRE","{{verve}}:stats:86400:0","{kept}","NX"]"#);
            assert_eq!(flush.commands.last(), Some(&expiry));
            let index = format!(r#"["ZADD","{{verve}}:windows:86400","{}","0:4"]"#, now * 1000);
            assert!(flush.commands.contains(&index), "{flush:?}");
        }
    }

    #[test]
    fn a_flush_of_ids_registers_a_named_counter_again() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let unnamed = Keys::new("verve".parse().expect("valid"));
        let named = unnamed.named("a".parse().expect("valid"));
        let is_registered = |keys: &Keys, field| {
            let flush = flush(keys, window, &Counts::from([(field, 1)]), "name".to_owned(), 5000, 1);
            ["counters", "counters:in-use:60"].iter().all(|key| {
                let registration = format!(r#"["ZADD","{{verve}}:{key}","NX","5","a"]"#);
                flush.commands.contains(&registration)
            })
        };
        assert!(is_registered(&named, stats::NEW) && is_registered(&named, stats::DUPLICATE));
        assert!(!is_registered(&named, stats::FAILED) && !is_registered(&unnamed, stats::NEW));
    }

    #[test]
    fn rows_that_could_not_be_flushed_are_kept() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let stats = Stats::default();
        assert!(stats.count(window, stats::NEW));
        let taken = stats.take();
        assert!(stats.count(window, stats::NEW));
        for (window, counts) in taken {
            stats.put_back(window, counts);
        }
        assert_eq!(
            stats.take().remove(&window),
            Some(Counts::from([("new", 2), ("requests", 2)]))
        );
    }

    #[test]
    fn after_a_failed_flush_the_next_answer_asks_for_another() {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let stats = Stats::default();
        assert!(stats.count(window, stats::FAILED));
        for (window, counts) in stats.take() {
            stats.put_back(window, counts);
        }
        assert!(stats.count(window, stats::FAILED));
        assert!(!stats.count(window, stats::FAILED));
    }
}
