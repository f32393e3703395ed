//! The Spin variables of the component, parsed.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use verve_protocol::{CounterName, Keys, Method, Namespace, Partitions, RedisUrls, WindowLengths};

/// A variable of the application that is missing or invalid.
///
/// The message is one line that names the variable. It shows no password.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidVariable {
    /// It cannot be read.
    ///
    /// The manifest does not define it and it has no default, or the host does not provide it.
    #[error("variable {name}: {error}")]
    Unreadable {
        /// Its name.
        name: &'static str,
        /// The host's message, or that the variable is not defined.
        error: String,
    },
    /// Its value is not valid.
    #[error("variable {name}: {reason}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// What was expected, and the value that was found.
        reason: String,
    },
}

impl InvalidVariable {
    /// Returns the name of the variable.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unreadable { name, .. } | Self::Invalid { name, .. } => name,
        }
    }
}

/// The configuration of the component.
#[derive(Clone, Debug)]
pub struct Config {
    /// `redis_urls`: where ids are recorded.
    pub redis_urls: RedisUrls,
    /// `namespace`, as the keys that are derived from it.
    pub keys: Keys,
    /// `window_seconds`.
    pub window_lengths: WindowLengths,
    /// `partitions`: the number of sets that the ids of a window are in.
    pub partitions: Partitions,
    /// `callback_method`: for requests that name an endpoint but no method.
    pub callback_method: Method,
    /// `redis_timeout_ms`: for one attempt to record, including the connection.
    pub redis_timeout: Duration,
    /// `log`.
    pub log: Log,
    /// `redis_wait_replicas`: how many replicas of a Redis must have what it records.
    pub wait_replicas: u32,
    /// `window_limit`: the maximum number of ids of a partition of a main window.
    ///
    /// `None` if there is no limit.
    /// Each partition takes its share of the limit.
    pub window_limit: Option<u64>,
    /// `endpoint_limit`: the maximum of callback jobs per endpoint and window.
    ///
    /// `None` if there is no limit.
    pub endpoint_limit: Option<u64>,
    /// `counters`: the named counters that requests may use.
    pub counters: PermittedCounters,
    /// `counter_limit`: the maximum number of named counters of the namespace.
    ///
    /// It bounds the work that a reporter does, and the data that it publishes.
    pub counter_limit: u32,
}

/// How an instance counts. It depends on how long the host lets the instance live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// An instance serves many requests, several at the same time.
    ///
    /// It keeps connections and state, and flushes statistics after the responses.
    LongLived,
    /// An instance serves one request, and each call of the host blocks it.
    ///
    /// It sends everything about a request to Redis in one round trip.
    PerRequest,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Log {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// Errors, and the id and outcome of each request.
    All,
}

/// The names of the variables, in the order of the values in [`Config::parse`].
pub const VARIABLES: [&str; 12] = [
    "redis_urls",
    "namespace",
    "window_seconds",
    "callback_method",
    "redis_timeout_ms",
    "log",
    "redis_wait_replicas",
    "window_limit",
    "endpoint_limit",
    "partitions",
    "counters",
    "counter_limit",
];

/// Returns the default of a variable that the manifest does not define.
///
/// The address of Redis has no default.
#[must_use]
pub fn when_undefined(name: &str) -> Option<&'static str> {
    match name {
        "namespace" => Some("verve"),
        "window_seconds" => Some("60"),
        "callback_method" => Some("get"),
        "redis_timeout_ms" => Some("500"),
        "log" => Some("error"),
        "redis_wait_replicas" | "window_limit" | "endpoint_limit" => Some("0"),
        "partitions" => Some("1"),
        "counters" => Some(""),
        "counter_limit" => Some("1000"),
        SPOOL_LIMIT => Some("10000000"),
        _ => None,
    }
}

/// Returns the value of a variable, from the host's result.
///
/// `read` is `Ok(None)` if the variable is undefined.
///
/// # Errors
/// If the host does not provide it, or if it is undefined and has no default.
pub fn read_variable(name: &'static str, read: Result<Option<String>, String>) -> Result<String, InvalidVariable> {
    let undefined = || {
        when_undefined(name)
            .map(str::to_owned)
            .ok_or_else(|| "it is not defined".to_owned())
    };
    let value = read.and_then(|value| value.map_or_else(undefined, Ok));
    value.map_err(|error| InvalidVariable::Unreadable { name, error })
}

impl Config {
    /// Parses the values of [`VARIABLES`].
    ///
    /// # Errors
    /// One line that names the variable and the expected value. It shows no password.
    pub fn parse(values: [String; VARIABLES.len()]) -> Result<Self, InvalidVariable> {
        let [
            redis_urls,
            namespace,
            window_seconds,
            callback_method,
            redis_timeout_ms,
            log,
            wait_replicas,
            window_limit,
            endpoint_limit,
            partitions,
            counters,
            counter_limit,
        ] = values;
        let partitions: Partitions = variable("partitions", &partitions)?;
        let window_limit = limit("window_limit", "a number of ids", &window_limit)?;
        Ok(Self {
            redis_urls: variable("redis_urls", &redis_urls)?,
            partitions,
            keys: Keys::new(variable::<Namespace>("namespace", &namespace)?),
            window_lengths: variable("window_seconds", &window_seconds)?,
            callback_method: variable("callback_method", &callback_method)?,
            redis_timeout: Duration::from_millis(number(
                "redis_timeout_ms",
                "a number of milliseconds",
                &redis_timeout_ms,
                1..=60_000,
            )?),
            log: variable("log", &log)?,
            wait_replicas: number("redis_wait_replicas", "a number of replicas", &wait_replicas, 0..=100)?,
            window_limit: window_limit.map(|limit| limit.div_ceil(u64::from(partitions.count()))),
            endpoint_limit: limit("endpoint_limit", "a number of callback jobs", &endpoint_limit)?,
            counters: variable("counters", &counters)?,
            counter_limit: number("counter_limit", "a number of counters", &counter_limit, 1..=100_000)?,
        })
    }
}

/// The named counters that requests may use.
///
/// Parsed from names and beginnings of names, separated by commas. A beginning ends with `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermittedCounters(Vec<PermittedCounter>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum PermittedCounter {
    Name(CounterName),
    /// Without its `*`.
    Beginning(String),
}

/// The error for a text that is not a list of [`PermittedCounters`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is neither a counter's name, of 1 to 64 of the characters a-z A-Z 0-9 . _ -, nor a beginning of names and a *"
)]
pub struct InvalidPermittedCounters(String);

impl PermittedCounters {
    /// Returns whether requests may use the counter of this name.
    #[must_use]
    pub fn permits(&self, name: &CounterName) -> bool {
        self.0.iter().any(|permitted| match permitted {
            PermittedCounter::Name(permitted) => permitted == name,
            PermittedCounter::Beginning(beginning) => name.as_str().starts_with(beginning.as_str()),
        })
    }
}

impl FromStr for PermittedCounters {
    type Err = InvalidPermittedCounters;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let permitted = text.split(',').map(|permitted| {
            let permitted = permitted.trim();
            match permitted.strip_suffix('*') {
                // The beginning of a name is a name, except that it may be empty.
                Some(beginning) if beginning.is_empty() || beginning.parse::<CounterName>().is_ok() => {
                    Ok(PermittedCounter::Beginning(beginning.to_owned()))
                }
                _ => match permitted.parse() {
                    Ok(name) => Ok(PermittedCounter::Name(name)),
                    Err(_) => Err(InvalidPermittedCounters(permitted.to_owned())),
                },
            }
        });
        permitted.collect::<Result<_, _>>().map(Self)
    }
}

/// The variable that limits the ids and callback jobs in the spool of a host.
///
/// See [`spool_limit`].
pub const SPOOL_LIMIT: &str = "spool_limit";

/// Parses the value of [`SPOOL_LIMIT`], for a build that has a spool.
///
/// # Errors
/// One line that names the variable and the expected value.
pub fn spool_limit(value: &str) -> Result<u64, InvalidVariable> {
    number(SPOOL_LIMIT, "a number of ids", value, 0..=1_000_000_000)
}

fn variable<T: FromStr<Err: Display>>(name: &'static str, value: &str) -> Result<T, InvalidVariable> {
    value.parse().map_err(|error: T::Err| InvalidVariable::Invalid {
        name,
        reason: error.to_string(),
    })
}

fn number<T: FromStr + PartialOrd + Display>(
    name: &'static str,
    what: &str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, InvalidVariable> {
    let (from, to) = (range.start(), range.end());
    let expected = || InvalidVariable::Invalid {
        name,
        reason: format!("{value:?} is not {what} from {from} to {to}"),
    };
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(expected)
}

/// Parses a limit. 0 means no limit.
fn limit(name: &'static str, what: &str, value: &str) -> Result<Option<u64>, InvalidVariable> {
    let limit = number(name, what, value, 0..=1_000_000_000)?;
    Ok(Some(limit).filter(|limit| *limit > 0))
}

impl Config {
    /// Returns how long replicas may take, in milliseconds.
    ///
    /// Shorter than an attempt, so that their failure can still be reported.
    #[must_use]
    pub fn replicas_within_ms(&self) -> i64 {
        let within = self.redis_timeout.as_millis() * 4 / 5;
        i64::try_from(within).unwrap_or(i64::MAX).max(1)
    }
}

/// A text that is not a value of the variable `log`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not one of \"off\", \"error\" and \"all\"")]
pub struct UnknownLog(String);

impl FromStr for Log {
    type Err = UnknownLog;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "all" => Ok(Self::All),
            other => Err(UnknownLog(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changed: &str, value: &str) -> Result<Config, InvalidVariable> {
        let defaults = [
            "redis://127.0.0.1:6379",
            "verve",
            "60",
            "get",
            "500",
            "error",
            "0",
            "0",
            "0",
            "1",
            "",
            "1000",
        ];
        let mut values = defaults.map(str::to_owned);
        values[VARIABLES.iter().position(|v| *v == changed).expect("a variable")] = value.to_owned();
        Config::parse(values)
    }

    #[test]
    fn a_manifest_without_settings_has_our_defaults() {
        // A relative path, because several clones may share compiled tests, and tests run in their
        // package's folder.
        let manifest = std::fs::read_to_string("../../spin.toml").expect("the manifest");
        for name in VARIABLES
            .into_iter()
            .chain([SPOOL_LIMIT])
            .filter(|name| *name != "redis_urls")
        {
            let default = when_undefined(name).expect(name);
            let line = format!("\n{name} = {{ default = \"{default}\" }}\n");
            assert!(manifest.contains(&line), "{line}");
        }
        assert_eq!(when_undefined("redis_urls"), None);
    }

    #[test]
    fn the_variables_are_read() {
        let lengths = |value| {
            parse("window_seconds", value)
                .expect("valid")
                .window_lengths
                .to_string()
        };
        assert_eq!([lengths("5"), lengths("60, 3600")], ["5", "60,3600"]);
        assert_eq!(
            parse("callback_method", "post").expect("valid").callback_method,
            Method::Post
        );
        assert_eq!(
            parse("redis_timeout_ms", "50").expect("valid").redis_timeout,
            Duration::from_millis(50)
        );
        assert_eq!(spool_limit("0"), Ok(0));
        assert_eq!(parse("redis_wait_replicas", "2").expect("valid").wait_replicas, 2);
        assert_eq!(parse("window_limit", "0").expect("valid").window_limit, None);
        assert_eq!(parse("window_limit", "1000").expect("valid").window_limit, Some(1000));
        assert_eq!(parse("endpoint_limit", "1").expect("valid").endpoint_limit, Some(1));
        assert_eq!(parse("counter_limit", "7").expect("valid").counter_limit, 7);
        assert_eq!(parse("log", "off").expect("valid").log, Log::Off);
        assert_eq!(parse("partitions", "16").expect("valid").partitions.count(), 16);
    }

    #[test]
    fn the_permitted_counters_are_names_and_beginnings() {
        let all = ["game-7", "game", "campaign-1", "campaign-", "Campaign-1"];
        for (permitted, expected) in [
            ("", &[][..]),
            (" ", &[]),
            ("game", &["game"]),
            ("campaign-*", &["campaign-1", "campaign-"]),
            ("game , campaign-1", &["game", "campaign-1"]),
            ("*", &all),
        ] {
            let counters = parse("counters", permitted).expect(permitted).counters;
            let names = all
                .into_iter()
                .filter(|name| counters.permits(&name.parse().expect("a name")));
            assert_eq!(names.collect::<Vec<_>>(), expected, "{permitted:?}");
        }
        for (bad, shown) in [
            ("a,,b", "\"\""),
            ("a,", "\"\""),
            ("a b", "\"a b\""),
            ("a*b", "\"a*b\""),
            ("a/*", "\"a/*\""),
            ("**", "\"**\""),
        ] {
            let error = parse("counters", bad).expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("variable counters: {shown} is neither")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_variables_name() {
        for (name, value) in [
            ("redis_urls", "http://:hunter2@a"),
            ("namespace", ""),
            ("window_seconds", "0"),
            ("window_seconds", "a minute"),
            ("callback_method", "put"),
            ("redis_timeout_ms", "0"),
            ("redis_timeout_ms", "-1"),
            ("redis_timeout_ms", "60001"),
            ("log", "verbose"),
            ("redis_wait_replicas", "-1"),
            ("window_limit", "-1"),
            ("partitions", "0"),
            ("endpoint_limit", "none"),
            ("counter_limit", "0"),
            ("counter_limit", "100001"),
        ] {
            let error = parse(name, value).expect_err(value);
            assert_eq!(error.name(), name);
            let error = error.to_string();
            assert!(error.starts_with(&format!("variable {name}: ")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for value in ["many", "1000000001", "-1"] {
            let error = spool_limit(value).expect_err(value).to_string();
            assert!(error.starts_with("variable spool_limit: "), "{error}");
        }
    }
}
