//! How long reports are kept, and how many.
//!
//! The leader of a counter removes reports that are too old. Once a minute, all counters are looked
//! at together, also those that are idle: if they have too many reports, those with the most lose
//! their oldest ones. The reports of two days stay in any case: late ids may still change them, and
//! without its report a window would be counted again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use redis::{RedisError, RedisResult};
use verve_protocol::keys::progress;
use verve_protocol::{CounterName, Window};

use super::RedisReportStore;
use crate::clock::millis;
use crate::store::{AT_ONCE, BATCH, Store, is_away};
use crate::windows::WindowsConfig;

/// The most windows that are looked at to remove old reports, in one sweep.
const TRIMMED_AT_ONCE: usize = 50_000;

/// How long each report is kept in any case, after the end of its window: two days.
///
/// A window that has ended within a day and has no report is counted.
pub const REPORTS_KEPT: Duration = Duration::from_secs(2 * 86_400);

/// How long reports are kept, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepReports {
    /// The time from the end of their window.
    pub time: Duration,
    /// The number of all counters together, for each window length.
    ///
    /// There are more if the counters have more in two days.
    pub most: u64,
}

impl Default for KeepReports {
    /// A week, and a million.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(7 * 86_400),
            most: 1_000_000,
        }
    }
}

impl fmt::Display for KeepReports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.time.as_secs(), self.most)
    }
}

impl FromStr for KeepReports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (seconds, most) = match text.split_once(',') {
            Some((seconds, most)) => (seconds, Some(most)),
            None => (text, None),
        };
        let seconds = seconds.trim().parse().ok();
        let seconds = seconds.filter(|seconds| (REPORTS_KEPT.as_secs()..=315_360_000).contains(seconds));
        let seconds = seconds.ok_or("expected a number of seconds from 172800 (two days) to 315360000 (ten years)")?;
        let most = most.map(|most| most.trim().parse().ok().filter(|most| *most >= 1000));
        let most = most.unwrap_or(Some(Self::default().most));
        Ok(Self {
            time: Duration::from_secs(seconds),
            most: most.ok_or("expected a number of reports of at least 1000 after the comma")?,
        })
    }
}

impl RedisReportStore {
    /// Removes reports that are too old, and returns how many.
    ///
    /// `first_open` is the first window whose report may change. The newest report stays, since a
    /// leader resumes from it.
    pub(super) async fn trim_old(&self, first_open: Window, now_ms: u64) -> RedisResult<u64> {
        let old = self.ago(self.config.keep_reports.time, now_ms);
        self.trim(old.min(first_open), 0).await
    }

    /// Returns the window that was open so long before `now_ms`.
    fn ago(&self, time: Duration, now_ms: u64) -> Window {
        self.length().window_at_ms(now_ms.saturating_sub(millis(time)))
    }

    /// Removes the oldest reports until so many are left.
    async fn trim_oldest(&self, most: u64, now_ms: u64) -> RedisResult<u64> {
        let mut open = redis::cmd("ZRANGE");
        open.arg(self.store.keys.reports_open(self.length())).arg(0).arg(0);
        let open: Vec<u64> = self.store.redis().command(&open).await?;
        let open = open
            .into_iter()
            .filter_map(|start| self.length().window_starting(start));
        self.trim(open.fold(self.ago(REPORTS_KEPT, now_ms), Window::min), most)
            .await
    }

    /// Removes reports of windows before `until`, oldest first, until so many are left.
    async fn trim(&self, until: Window, most: u64) -> RedisResult<u64> {
        let Some(newest) = self.store.newest(self.length()).await? else {
            return Ok(0);
        };
        let until = until.min(newest);
        let first = match self.store.kept_from(self.length()).await? {
            Some(trimmed) => trimmed,
            // A version before the note has written these reports.
            None => {
                let mut first = until;
                self.each_report(|window, _| first = first.min(window)).await?;
                self.set_progress(progress::TRIMMED, first.start()).await?;
                first
            }
        };
        let windows = std::iter::successors(Some(first), |window| Some(window.next()));
        let mut windows = windows.take_while(|window| *window < until).take(TRIMMED_AT_ONCE);
        let mut removed = 0;
        loop {
            let batch: Vec<Window> = windows.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            let mut trim = self.trim_reports.key(self.store.keys.reports(self.length()));
            trim.key(self.store.keys.reports_progress(self.length()));
            trim.arg(most).arg(self.length().seconds());
            for window in &batch {
                trim.arg(window.start());
            }
            let (now_removed, looked_at): (u64, usize) = self.store.redis().script(&trim).await?;
            removed += now_removed;
            if looked_at < batch.len() {
                break;
            }
        }
        Ok(removed)
    }
}

/// Removes the oldest reports of all counters, if there are too many.
///
/// They are of windows of one length. Returns how many it has removed.
///
/// # Errors
/// If Redis fails. Then it has not looked at all counters.
pub async fn keep_reports(config: &WindowsConfig, store: &Store) -> RedisResult<u64> {
    let named = store.registered().await?.into_iter().map(Some);
    let sizes = std::iter::once(None).chain(named).map(|counter| async move {
        let size = store.of(counter.as_ref()).number_of_reports(config.length).await;
        (counter, size)
    });
    let mut sizes = stream::iter(sizes).buffered(AT_ONCE);
    let mut counters: Vec<(Option<CounterName>, u64)> = Vec::new();
    while let Some((counter, size)) = sizes.next().await {
        match size {
            Ok(size) => counters.push((counter, size)),
            Err(error) => skip(counter.as_ref(), error)?,
        }
    }
    let now_ms = store.clock().await?.now_ms();
    let most = most_of_each(counters.iter().map(|(_, size)| *size), config.keep_reports.most);
    let mut removed = 0;
    for (counter, _) in counters.iter().filter(|(_, size)| *size > most) {
        let store = RedisReportStore::new(config.clone(), store.of(counter.as_ref()));
        match store.trim_oldest(most, now_ms).await {
            Ok(trimmed) => removed += trimmed,
            Err(error) => skip(counter.as_ref(), error)?,
        }
    }
    Ok(removed)
}

/// Logs why a counter is skipped.
///
/// # Errors
/// If Redis is unreachable: then the others are too.
fn skip(counter: Option<&CounterName>, error: RedisError) -> RedisResult<()> {
    if is_away(&error) {
        return Err(error);
    }
    let counter = counter.map(CounterName::as_str);
    tracing::warn!(counter, "the oldest reports cannot be removed: {error}");
    Ok(())
}

/// Returns how many reports each counter may have.
///
/// All together then have at most `most`, and each as many as possible: what counters with fewer
/// reports leave, the others may have.
fn most_of_each(sizes: impl IntoIterator<Item = u64>, most: u64) -> u64 {
    let mut sizes: Vec<u64> = sizes.into_iter().collect();
    sizes.sort_unstable();
    let (mut left, mut counters) = (most, sizes.len() as u64);
    for size in sizes {
        if size > left / counters {
            return left / counters;
        }
        left -= size;
        counters -= 1;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_may_have_what_the_others_leave() {
        for (sizes, most, expected) in [
            (vec![], 10, u64::MAX),
            (vec![4, 6], 10, u64::MAX),
            (vec![4, 7], 10, 6),
            (vec![1, 2, 100, 100], 13, 5),
            (vec![7, 7, 7], 2, 0),
        ] {
            assert_eq!(most_of_each(sizes.clone(), most), expected, "{sizes:?} {most}");
        }
    }

    #[test]
    fn a_time_and_a_number() {
        let kept = |text: &str| text.parse().map(|kept: KeepReports| (kept.time.as_secs(), kept.most));
        assert_eq!(KeepReports::default().to_string().parse(), Ok(KeepReports::default()));
        assert_eq!(kept("172800"), Ok((172_800, 1_000_000)));
        assert_eq!(kept(" 31536000 , 5000000 "), Ok((31_536_000, 5_000_000)));
        for (text, word) in [
            ("", "seconds"),
            ("7d", "seconds"),
            ("172799", "seconds"),
            ("315360001", "seconds"),
            ("604800,", "reports"),
            ("604800,999", "reports"),
            ("604800,1000,1", "reports"),
        ] {
            assert!(kept(text).is_err_and(|error| error.contains(word)), "{text}");
        }
    }
}
