//! The metrics of windows, by counter.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use verve_protocol::{CounterName, WindowLength};

use super::{OUTCOMES, gauge};

/// Upper bounds in seconds: from immediate to a day without a report.
const WAITS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0, 86_400.0];

/// The name in the label of counters without metrics of their own.
pub const OTHERS: &str = "other";

/// The labels of a metric of windows.
///
/// The counter without a name has no label `counter`; a named one has its name. Windows that are
/// longer than the main ones have the label `window_seconds`. Other labels follow.
type Labels = Vec<(&'static str, String)>;

/// The metrics of windows, by counter.
#[derive(Clone, Debug)]
pub struct OfWindows {
    late_ids: Family<Labels, Counter>,
    windows_reported: Family<Labels, Counter>,
    window_revisions: Family<Labels, Counter>,
    windows_lost: Family<Labels, Counter>,
    windows_ahead: Family<Labels, Counter>,
    uncounted_partitions: Family<Labels, Gauge>,
    window_lag: Family<Labels, Histogram, fn() -> Histogram>,
    window_overdue: Family<Labels, Gauge>,
    lease_held: Family<Labels, Gauge>,
    unique_ids: Family<Labels, Gauge>,
    requests: Family<Labels, Counter>,
}

/// The metrics of one counter's windows.
#[derive(Clone, Debug)]
pub struct WindowMetrics {
    /// Ids that arrived after their window was final, and were dropped.
    pub late_ids: Counter,
    /// Windows reported for the first time.
    pub windows_reported: Counter,
    /// Corrections of reported windows.
    pub window_revisions: Counter,
    /// Windows that can no longer be reported.
    pub windows_lost: Counter,
    /// Windows that had ids before they had begun.
    pub windows_ahead: Counter,
    /// 1 while there are ids in partitions that are not counted, else 0.
    pub uncounted_partitions: Gauge,
    /// The time from a window being due to the acknowledgement of its first record.
    pub window_lag: Histogram,
    /// How long the oldest due window has not been reported, in seconds.
    pub window_overdue: Gauge,
    /// 1 while this replica reports windows, else 0.
    pub lease_held: Gauge,
    /// Whether several counters share them.
    pub are_shared: bool,
    all: OfWindows,
    labels: Labels,
}

impl Default for OfWindows {
    fn default() -> Self {
        Self {
            late_ids: Family::default(),
            windows_reported: Family::default(),
            window_revisions: Family::default(),
            windows_lost: Family::default(),
            windows_ahead: Family::default(),
            uncounted_partitions: Family::default(),
            window_lag: Family::new_with_constructor(|| Histogram::new(WAITS)),
            window_overdue: Family::default(),
            lease_held: Family::default(),
            unique_ids: Family::default(),
            requests: Family::default(),
        }
    }
}

impl OfWindows {
    /// Returns the metrics of a counter's windows.
    ///
    /// They are of a length, if that is not the main one.
    pub fn of(&self, counter: Option<&CounterName>, longer: Option<WindowLength>) -> WindowMetrics {
        self.with(counter.map(ToString::to_string), longer)
    }

    fn with(&self, counter: Option<String>, longer: Option<WindowLength>) -> WindowMetrics {
        let counter = counter.map(|name| ("counter", name));
        let length = longer.map(|length| ("window_seconds", length.to_string()));
        let labels: Labels = counter.into_iter().chain(length).collect();
        let all = self.clone();
        let windows = WindowMetrics {
            late_ids: all.late_ids.get_or_create_owned(&labels),
            windows_reported: all.windows_reported.get_or_create_owned(&labels),
            window_revisions: all.window_revisions.get_or_create_owned(&labels),
            windows_lost: all.windows_lost.get_or_create_owned(&labels),
            windows_ahead: all.windows_ahead.get_or_create_owned(&labels),
            uncounted_partitions: all.uncounted_partitions.get_or_create_owned(&labels),
            window_lag: all.window_lag.get_or_create_owned(&labels),
            window_overdue: all.window_overdue.get_or_create_owned(&labels),
            lease_held: all.lease_held.get_or_create_owned(&labels),
            are_shared: false,
            all,
            labels,
        };
        // Each request is counted once, in its main window.
        if longer.is_none() {
            OUTCOMES.iter().for_each(|outcome| windows.requests(outcome, 0));
        }
        windows
    }

    /// Returns the metrics of all counters without metrics of their own.
    pub fn of_others(&self, longer: Option<WindowLength>) -> WindowMetrics {
        let shared = self.with(Some(OTHERS.to_owned()), longer);
        self.uncounted_partitions.remove(&shared.labels);
        self.lease_held.remove(&shared.labels);
        WindowMetrics {
            are_shared: true,
            // These are of each counter alone.
            uncounted_partitions: Gauge::default(),
            lease_held: Gauge::default(),
            ..shared
        }
    }

    /// Registers the metrics.
    pub fn register(&self, r: &mut Registry) {
        r.register(
            "requests",
            "Requests by outcome, counted by the replica that reports windows",
            self.requests.clone(),
        );
        r.register(
            "unique_ids",
            "Unique ids of the current and the last window",
            self.unique_ids.clone(),
        );
        for (name, help, counter) in [
            (
                "late_ids",
                "Ids that arrived after their window was final",
                &self.late_ids,
            ),
            (
                "windows_reported",
                "Windows reported for the first time",
                &self.windows_reported,
            ),
            (
                "window_revisions",
                "Corrections of windows reported before",
                &self.window_revisions,
            ),
            (
                "windows_ahead",
                "Windows that had ids before they had begun, since the clock of an edge host is ahead",
                &self.windows_ahead,
            ),
            (
                "windows_lost",
                "Windows not reported because their ids had expired",
                &self.windows_lost,
            ),
        ] {
            r.register(name, help, counter.clone());
        }
        r.register(
            "uncounted_partitions",
            "Whether there are ids in partitions that are not counted, since edge hosts have more of them than the reporter",
            self.uncounted_partitions.clone(),
        );
        let lag = "From a window being due to its first record being acknowledged";
        r.register_with_unit("window_lag", lag, Unit::Seconds, self.window_lag.clone());
        let overdue = "How long the oldest due window has not been reported";
        r.register_with_unit("window_overdue", overdue, Unit::Seconds, self.window_overdue.clone());
        r.register(
            "lease_held",
            "Whether this replica reports windows",
            self.lease_held.clone(),
        );
    }
}

impl WindowMetrics {
    /// Adds to the requests with this outcome.
    pub fn requests(&self, outcome: &str, more: u64) {
        let counter = self.all.requests.get_or_create_owned(&self.and("outcome", outcome));
        counter.inc_by(more);
    }

    /// Sets the unique ids of the `current` or the `last` window.
    pub fn unique_ids(&self, window: &str, count: u64) {
        let gauges = &self.all.unique_ids;
        gauges
            .get_or_create_owned(&self.and("window", window))
            .set(gauge(count));
    }

    /// Removes the metrics of this counter, which is not in use any more.
    pub fn forget(&self) {
        let Self { all, labels, .. } = self;
        if self.are_shared {
            return;
        }
        for counters in [
            &all.late_ids,
            &all.windows_reported,
            &all.window_revisions,
            &all.windows_lost,
            &all.windows_ahead,
        ] {
            counters.remove(labels);
        }
        all.window_lag.remove(labels);
        all.window_overdue.remove(labels);
        all.lease_held.remove(labels);
        all.uncounted_partitions.remove(labels);
        for window in ["current", "last"] {
            all.unique_ids.remove(&self.and("window", window));
        }
        for outcome in OUTCOMES {
            all.requests.remove(&self.and("outcome", outcome));
        }
    }

    fn and(&self, label: &'static str, value: &str) -> Labels {
        let mut labels = self.labels.clone();
        labels.push((label, value.to_owned()));
        labels
    }
}
