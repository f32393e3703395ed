//! What the leader's loop needs of Redis.
//!
//! This is so little that the model of the tests can implement it. What the loop needs of Kafka is
//! `kafka::Publish`.

use std::time::Duration;

use redis::RedisResult;
use verve_protocol::{Report, Window, WindowRecord};

use super::ended::Ended;
use super::ledger::{Ledger, PendingRevision, RecordedRevision, Stored};
use crate::clock::RedisClock;

/// The most windows in one script.
pub const BATCH: usize = 200;

/// What a sweep of Redis has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Final windows to which ids were added, and how many since the last search.
    pub late: Vec<(Window, u64)>,
    /// The revisions to publish for such windows.
    pub revisions: Vec<PendingRevision>,
    /// Windows that have ids and no report in Redis.
    ///
    /// They were never reported, or Redis has lost the report.
    pub unreported: Vec<Window>,
    /// Windows that have ids and have not begun.
    pub ahead: Vec<Window>,
    /// How many partitions hosts have, if these are more than are counted.
    /// The outer `Option` is `None` if the search failed before that was known.
    pub most_partitions: Option<Option<u16>>,
    /// Whether no window has ids that a search may find.
    pub is_empty: bool,
}

/// An acquired lease.
pub trait Held: Send + Sync {
    /// Returns whether the lease is certainly still held.
    fn is_held(&self) -> bool;
}

/// The ids, statistics and reports of windows.
/// A change of what is reported requires the lease. Without it, the change fails and the leader
/// stops.
pub trait ReportStore: Send + Sync + 'static {
    /// The proof that this replica is the leader.
    type Lease: Held;

    /// Reads Redis' clock.
    fn clock(&self) -> impl Future<Output = RedisResult<RedisClock>> + Send;

    /// Waits for `time`.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// Loads the state that a leader resumes from, at `now_ms`.
    /// Of the reports, it loads only those that may change and those that `known` knows: others may
    /// have made these final since.
    fn load(&self, known: Option<&Ledger>, now_ms: u64) -> impl Future<Output = RedisResult<Stored>> + Send;

    /// Reopens windows that were made final before they ended, to count them again.
    /// `stored` has their reports.
    fn reopen(
        &self,
        lease: &Self::Lease,
        stored: &Stored,
        windows: &[Window],
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Renews the expiry of the ids that the leader still needs, and notes when.
    /// From that time, the next leader knows which ids may have expired.
    fn keep(&self, ledger: &Ledger, now_ms: u64) -> impl Future<Output = RedisResult<()>> + Send;

    /// Returns how many ids each of these windows has.
    fn counts(&self, windows: &[Window]) -> impl Future<Output = RedisResult<Vec<u64>>> + Send;

    /// Closes windows: moves their ids to closed sets and counts them a last time.
    /// No ids are added to closed sets.
    fn close(&self, windows: &[Window]) -> impl Future<Output = RedisResult<Vec<u64>>> + Send;

    /// Returns the records of these pending revisions.
    fn records(&self, revisions: &[PendingRevision]) -> impl Future<Output = RedisResult<Vec<WindowRecord>>> + Send;

    /// Stores records as pending before they are published.
    fn prepare(&self, lease: &Self::Lease, records: &[WindowRecord]) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Records in Redis the revisions that Kafka has.
    fn record(
        &self,
        lease: &Self::Lease,
        changes: &[RecordedRevision],
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Makes windows final.
    fn finish(
        &self,
        lease: &Self::Lease,
        finals: &[(Window, Report)],
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Removes the closed sets of final windows.
    fn remove(&self, windows: &[Window]) -> impl Future<Output = RedisResult<()>> + Send;

    /// Notes that a named counter needs no leader until it is registered again.
    ///
    /// It is not reported from `next` on. `used_ms` is when it was last registered, in Unix
    /// milliseconds: if it was registered since, it still needs a leader.
    fn retire(&self, lease: &Self::Lease, used_ms: u64, next: Window)
    -> impl Future<Output = Result<(), Ended>> + Send;

    /// Searches for ids in windows in which none are expected, at `now_ms`.
    /// Ids of final windows are kept apart as late ids, even if some of their sets fail. `ledger`
    /// is what the leader knew when the search began: a window that was past then is still past.
    fn sweep(&self, ledger: &Ledger, now_ms: u64) -> impl Future<Output = Swept> + Send;
}
