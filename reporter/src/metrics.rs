//! The metrics of `/metrics`, in the OpenMetrics text format.
//!
//! Counters and histograms are those of this replica: sum them over replicas. Gauges other than
//! `lease_held` show the state in Redis, which is the same on each replica: take one of them, such
//! as the maximum.

mod windows;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use verve_protocol::keys::stats;
use verve_protocol::{CounterName, WindowLength};

use windows::OfWindows;
pub use windows::{OTHERS, WindowMetrics};

/// The media type of [`Metrics::render`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of [`prometheus_text`].
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The outcomes of requests.
/// These are the fields of the component's statistics, except their sum.
pub const OUTCOMES: [&str; 6] = [
    stats::NEW,
    stats::DUPLICATE,
    stats::SPOOLED,
    stats::INVALID,
    stats::LIMITED,
    stats::FAILED,
];

/// Upper bounds in seconds, for operations that should take a moment.
/// They range from Redis on the same machine to the longest timeout.
const MOMENTS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0,
];
/// A metric for each value of its labels.
type By<const LABELS: usize, M> = Family<[(&'static str, String); LABELS], M>;

/// The metrics of this replica. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// The time of one Kafka transaction, or of an attempt at one.
    pub kafka_publish: Histogram,
    /// The age of the oldest callback job in the stream, in seconds.
    pub oldest_job_age: Gauge,
    /// The time of one call of an endpoint.
    pub callback: Histogram,
    /// The ids and callback jobs in the spools of edge hosts.
    pub spool_depth: Gauge,
    /// How long no ids have arrived, in seconds.
    pub silent: Gauge,
    /// Ids that were drained from spools into Redis.
    pub drained_ids: Counter,
    of_windows: OfWindows,
    kafka_errors: By<1, Counter>,
    redis_command: By<1, Histogram>,
    redis_errors: By<2, Counter>,
    callback_attempts: By<2, Counter>,
    callback_jobs: By<1, Gauge>,
    dependency_up: By<1, Gauge>,
}

/// The metrics of one Redis server.
#[derive(Clone, Debug)]
pub struct RedisMetrics {
    /// The time of a command, a pipeline or a script.
    pub seconds: Histogram,
    /// How often it was not reached, or did not answer.
    pub away: Counter,
    /// How often it answered with an error.
    pub refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let moments: fn() -> Histogram = || Histogram::new(MOMENTS);
        let mut metrics = Self {
            registry: Arc::default(),
            kafka_publish: moments(),
            oldest_job_age: Gauge::default(),
            callback: moments(),
            spool_depth: Gauge::default(),
            silent: Gauge::default(),
            drained_ids: Counter::default(),
            of_windows: OfWindows::default(),
            kafka_errors: Family::default(),
            redis_command: Family::new_with_constructor(moments),
            redis_errors: Family::default(),
            callback_attempts: Family::default(),
            callback_jobs: Family::default(),
            dependency_up: Family::default(),
        };
        // Create these at the start: a counter that appears with its first event hides that event
        // from `increase`.
        drop(metrics.windows(None, None));
        for reason in ["away", "fenced"] {
            drop(
                metrics
                    .kafka_errors
                    .get_or_create_owned(&[("reason", reason.to_owned())]),
            );
        }
        metrics.registry = Arc::new(metrics.register());
        metrics
    }
}

impl Metrics {
    /// Returns all metrics as text.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        // A metric without labels is written without braces.
        Ok(text.replace("{} ", " "))
    }

    /// Returns the metrics of a counter's windows.
    ///
    /// They are of a length, if that is not the main one.
    pub fn windows(&self, counter: Option<&CounterName>, longer: Option<WindowLength>) -> WindowMetrics {
        self.of_windows.of(counter, longer)
    }

    /// Returns the metrics of the windows of all counters without metrics of their own.
    pub fn other_windows(&self, longer: Option<WindowLength>) -> WindowMetrics {
        self.of_windows.of_others(longer)
    }

    /// Sets the number of callback jobs in the `stream`, in `retry`, or `dead`.
    pub fn callback_jobs(&self, place: &str, jobs: u64) {
        set(&self.callback_jobs, "place", place, jobs);
    }

    /// Sets whether a dependency answered last.
    pub fn dependency(&self, name: &str, up: bool) {
        set(&self.dependency_up, "dependency", name, u64::from(up));
    }

    /// Counts an error of Kafka: it was `away`, or this replica was `fenced`.
    pub fn kafka_error(&self, reason: &str) {
        self.kafka_errors
            .get_or_create_owned(&[("reason", reason.to_owned())])
            .inc();
    }

    /// Counts a call of an endpoint, or a failed attempt at one.
    /// `result` is the outcome of the job: `delivered`, `retried` or `dead`.
    pub fn callback_attempt(&self, status: Option<u16>, result: &str) {
        let status = status.map_or_else(|| "none".to_owned(), |status| format!("{}xx", status / 100));
        let labels = [("status", status), ("result", result.to_owned())];
        self.callback_attempts.get_or_create_owned(&labels).inc();
    }

    /// Returns the metrics of the Redis server `server`.
    pub fn redis(&self, server: &str) -> RedisMetrics {
        let error = |kind: &str| {
            let labels = [("server", server.to_owned()), ("kind", kind.to_owned())];
            self.redis_errors.get_or_create_owned(&labels)
        };
        RedisMetrics {
            seconds: self.redis_command.get_or_create_owned(&[("server", server.to_owned())]),
            away: error("away"),
            refused: error("refused"),
        }
    }

    // The format adds `_total` to a counter's name.
    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("verve");
        let r = &mut registry;
        self.of_windows.register(r);
        r.register(
            "dependency_up",
            "Whether Redis and Kafka answered last",
            self.dependency_up.clone(),
        );
        let publish = "Time to publish records in one transaction";
        r.register_with_unit("kafka_publish", publish, Unit::Seconds, self.kafka_publish.clone());
        r.register(
            "kafka_errors",
            "Publishing that failed, by reason",
            self.kafka_errors.clone(),
        );
        let command = "Time of commands, pipelines and scripts, those that failed included";
        r.register_with_unit("redis_command", command, Unit::Seconds, self.redis_command.clone());
        r.register(
            "redis_errors",
            "Commands that failed, by server and kind",
            self.redis_errors.clone(),
        );
        r.register(
            "callback_attempts",
            "Calls of endpoints, by class of status and result",
            self.callback_attempts.clone(),
        );
        let callback = "Time of calls of endpoints, those that failed included";
        r.register_with_unit("callback", callback, Unit::Seconds, self.callback.clone());
        r.register(
            "callback_jobs",
            "Callback jobs in Redis, by place",
            self.callback_jobs.clone(),
        );
        let oldest = "Age of the oldest callback job in the stream";
        r.register_with_unit(
            "callback_oldest_job_age",
            oldest,
            Unit::Seconds,
            self.oldest_job_age.clone(),
        );
        let silent = "Time without new ids and requests in Redis, since the last window that had some";
        r.register_with_unit("silent", silent, Unit::Seconds, self.silent.clone());
        r.register(
            "spool_depth",
            "Ids and callback jobs in the spools of edge hosts, as last recorded by each host that drains",
            self.spool_depth.clone(),
        );
        r.register(
            "spool_drained_ids",
            "Ids drained from spools into Redis, counted by the replica that reports windows",
            self.drained_ids.clone(),
        );
        let build: Family<[(&'static str, &'static str); 1], Gauge> = Family::default();
        build
            .get_or_create_owned(&[("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        r.register("build_info", "Which version this is", build);
        registry
    }
}

/// Converts metrics to the older text format of Prometheus.
/// It is for clients that do not ask for OpenMetrics. In this format, a counter's own name ends in
/// `_total`, and units are omitted.
pub fn prometheus_text(openmetrics: &str) -> String {
    let metadata = |line: &str, what: &str| -> Option<(String, String)> {
        let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let kinds = openmetrics.lines().filter_map(|line| metadata(line, "# TYPE "));
    let counters: BTreeSet<String> = kinds
        .filter(|(_, kind)| kind == "counter")
        .map(|(name, _)| name)
        .collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics
        .lines()
        .filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF")
    {
        let counter = ["# HELP ", "# TYPE "].into_iter().find_map(|what| {
            let (name, rest) = metadata(line, what)?;
            counters.contains(&name).then(|| format!("{what}{name}_total {rest}"))
        });
        text.push_str(counter.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

/// Converts a `u64` to the gauge type of the library.
pub fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn set(gauges: &By<1, Gauge>, label: &'static str, name: &str, value: u64) {
    gauges
        .get_or_create_owned(&[(label, name.to_owned())])
        .set(gauge(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_pinned() {
        let metrics = Metrics::default();
        let windows = metrics.windows(None, None);
        windows.late_ids.inc_by(3);
        windows.lease_held.set(1);
        windows.window_overdue.set(7);
        windows.requests("new", 5);
        windows.unique_ids("current", 4);
        let named = metrics.windows("logins".parse().ok().as_ref(), None);
        named.late_ids.inc_by(2);
        named.unique_ids("last", 9);
        let forgotten = metrics.windows("gone".parse().ok().as_ref(), None);
        forgotten.requests("new", 5);
        forgotten.forget();
        metrics.callback_attempt(Some(204), "delivered");
        metrics.callback_attempt(None, "retried");
        metrics.redis("redis://r").away.inc();
        metrics.kafka_error("away");
        metrics.callback.observe(0.2);
        let text = metrics.render().expect("text");
        for line in [
            "# HELP verve_late_ids Ids that arrived after their window was final.",
            "# TYPE verve_late_ids counter",
            "verve_late_ids_total 3",
            "verve_windows_lost_total 0",
            "# TYPE verve_lease_held gauge",
            "verve_lease_held 1",
            "# UNIT verve_window_overdue_seconds seconds",
            "verve_window_overdue_seconds 7",
            "verve_requests_total{outcome=\"new\"} 5",
            "verve_requests_total{outcome=\"failed\"} 0",
            "verve_unique_ids{window=\"current\"} 4",
            "verve_late_ids_total{counter=\"logins\"} 2",
            "verve_unique_ids{counter=\"logins\",window=\"last\"} 9",
            "verve_callback_attempts_total{status=\"2xx\",result=\"delivered\"} 1",
            "verve_callback_attempts_total{status=\"none\",result=\"retried\"} 1",
            "verve_redis_errors_total{server=\"redis://r\",kind=\"away\"} 1",
            "verve_kafka_errors_total{reason=\"away\"} 1",
            "verve_callback_seconds_bucket{le=\"0.25\"} 1",
            "verve_callback_seconds_bucket{le=\"0.1\"} 0",
            concat!("verve_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
        let older = prometheus_text(&text);
        for line in [
            "# HELP verve_late_ids_total Ids that arrived after their window was final.",
            "# TYPE verve_late_ids_total counter",
            "verve_late_ids_total 3",
            "# TYPE verve_lease_held gauge",
            "# TYPE verve_callback_seconds histogram",
        ] {
            assert!(older.lines().any(|found| found == line), "{line}\n{older}");
        }
        assert!(!older.contains("# UNIT") && !older.contains("# EOF"), "{older}");
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&older), samples(&text));
    }
}
