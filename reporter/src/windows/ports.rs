//! What the leader's loop needs of Redis: little enough for its model to be that. What it needs of Kafka is `kafka::Publish`.

use std::time::Duration;

use redis::RedisResult;
use verve_protocol::{Report, Window, WindowRecord};

use super::ended::Ended;
use super::ledger::{Change, Ledger, News, Stored};
use crate::clock::RedisClock;

/// The most windows in one script.
pub const BATCH: usize = 200;

/// What a search for ids that nobody expects has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Windows with ids that came after they were final, and how many since the last search.
    pub late: Vec<(Window, u64)>,
    /// What to publish of such windows.
    pub news: Vec<News>,
    /// Windows that were never reported, and have ids.
    pub unreported: Vec<Window>,
    /// Windows that have not begun, and have ids.
    pub ahead: Vec<Window>,
    /// How many partitions hosts have, if there are more than are counted. Nothing if the search failed before that was known.
    pub most_partitions: Option<Option<u16>>,
}

/// A lease that was acquired.
pub trait Held: Send + Sync {
    /// Whether it is certainly held still.
    fn is_held(&self) -> bool;
}

/// Windows' ids, statistics and reports. Whatever changes what is reported is done with the lease alone, and ends the leading without it.
pub trait Books: Send + Sync + 'static {
    /// What shows that this is the leader.
    type Lease: Held;

    /// Redis' clock.
    fn clock(&self) -> impl Future<Output = RedisResult<RedisClock>> + Send;

    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// What a leader has to know to go on, at `now_ms`. Of reports only those that may change, and those that `known` has something of: others may have
    /// made them final since.
    fn load(&self, known: Option<&Ledger>, now_ms: u64) -> impl Future<Output = RedisResult<Stored>> + Send;

    /// Has windows counted again that were made final before they had ended, of which these are the reports.
    fn reopen(
        &self,
        lease: &Self::Lease,
        stored: &Stored,
        windows: &[Window],
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Keeps the ids of windows from expiring that the leader still needs, and notes when: the next one knows by that what may have expired.
    fn keep(&self, ledger: &Ledger, now_ms: u64) -> impl Future<Output = RedisResult<()>> + Send;

    /// How many ids each of these windows has.
    fn counts(&self, windows: &[Window]) -> impl Future<Output = RedisResult<Vec<u64>>> + Send;

    /// Moves the ids of windows aside, where none comes to them any more, and counts them for the last time.
    fn close(&self, windows: &[Window]) -> impl Future<Output = RedisResult<Vec<u64>>> + Send;

    /// The records of these news.
    fn records(&self, news: &[News]) -> impl Future<Output = RedisResult<Vec<WindowRecord>>> + Send;

    /// Writes down what is about to be published.
    fn prepare(&self, lease: &Self::Lease, records: &[WindowRecord]) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Records what Kafka has.
    fn record(&self, lease: &Self::Lease, changes: &[Change]) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Makes windows final.
    fn finish(
        &self,
        lease: &Self::Lease,
        finals: &[(Window, Report)],
    ) -> impl Future<Output = Result<(), Ended>> + Send;

    /// Removes what final windows were counted by.
    fn remove(&self, windows: &[Window]) -> impl Future<Output = RedisResult<()>> + Send;

    /// Looks for ids in windows that nobody expects them in, at `now_ms`. Those of final windows are put aside, also when some of their
    /// sets fail. `ledger` is what the leader knew when the search began: what was past then is past still.
    fn sweep(&self, ledger: &Ledger, now_ms: u64) -> impl Future<Output = Swept> + Send;
}
