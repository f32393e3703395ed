//! The names of the Redis keys. `L` is the window's length in seconds, `S` its start in Unix seconds.

use std::fmt;
use std::str::FromStr;

use crate::{Window, WindowLength};

/// How long an unreported set of ids, and its statistics, are kept: a day, in seconds.
pub const UNREPORTED_SECONDS: u64 = 86_400;

/// The most callback jobs that wait in the stream [`Keys::callbacks`]: with some 200 bytes each, a bound of 200 MB on Redis.
/// While there are more, the component keeps further ones in its spool, on disk. The check is made now and then, so that
/// a few more may get in.
pub const MAX_QUEUED_JOBS: u64 = 1_000_000;

/// What all of Verve's keys begin with, so that several Verves can share a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

/// Why a text is no [`Namespace`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("namespace {0:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ - : {{ }}")]
pub struct InvalidNamespace(String);

impl Namespace {
    /// The namespace as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = InvalidNamespace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-:{}".contains(&b);
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidNamespace(text.to_owned()))
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys of one namespace.
#[derive(Clone, Debug)]
pub struct Keys {
    namespace: Namespace,
}

impl Keys {
    /// The keys of `namespace`.
    #[must_use]
    pub const fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }

    /// The namespace of all of them.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Set: the ids of a window, in canonical decimal. On each Redis the ids of its shard.
    #[must_use]
    pub fn ids(&self, window: Window) -> String {
        format!("{}:ids:{}:{}", self.namespace, window.length(), window.start())
    }

    /// What [`Keys::ids`] of every window of this length begins with.
    #[must_use]
    pub fn ids_prefix(&self, length: WindowLength) -> String {
        format!("{}:ids:{length}:", self.namespace)
    }

    /// Set with expiry: the ids of a window that is becoming final. They were moved here at once, so that what comes to
    /// [`Keys::ids`] from then on came too late.
    #[must_use]
    pub fn closed(&self, window: Window) -> String {
        format!("{}:closed:{}:{}", self.namespace, window.length(), window.start())
    }

    /// Set with expiry: the ids of a window that came after it was final.
    #[must_use]
    pub fn late(&self, window: Window) -> String {
        format!("{}:late:{}:{}", self.namespace, window.length(), window.start())
    }

    /// What [`Keys::late`] of every window of this length begins with.
    #[must_use]
    pub fn late_prefix(&self, length: WindowLength) -> String {
        format!("{}:late:{length}:", self.namespace)
    }

    /// Hash: what happened in a window, as far as flushed: see [`stats`].
    #[must_use]
    pub fn stats(&self, window: Window) -> String {
        format!("{}:stats:{}:{}", self.namespace, window.length(), window.start())
    }

    /// Hash with expiry: how many callback jobs each endpoint has had in a window, where that is limited, by the SHA-1 of the endpoint.
    #[must_use]
    pub fn endpoints(&self, window: Window) -> String {
        format!("{}:endpoints:{}:{}", self.namespace, window.length(), window.start())
    }

    /// Stream: callback jobs.
    #[must_use]
    pub fn callbacks(&self) -> String {
        format!("{}:callbacks", self.namespace)
    }

    /// Sorted set: callback jobs waiting for their next attempt, scored by its Unix time in milliseconds.
    #[must_use]
    pub fn callbacks_retry(&self) -> String {
        format!("{}:callbacks:retry", self.namespace)
    }

    /// Stream: callback jobs given up on, with their last error.
    #[must_use]
    pub fn callbacks_dead(&self) -> String {
        format!("{}:callbacks:dead", self.namespace)
    }

    /// String with expiry: that a batch of spooled commands has been run, so that it is not run twice.
    #[must_use]
    pub fn spooled_batch(&self, batch: &str) -> String {
        format!("{}:spooled:{batch}", self.namespace)
    }

    /// Hash with expiry: the state of each spool, by a name that it has from when something is put into it until it is empty again:
    /// a [`SpoolState`](crate::SpoolState) each.
    #[must_use]
    pub fn spools(&self) -> String {
        format!("{}:spools", self.namespace)
    }

    /// Hash: what was reported, by the window's start.
    #[must_use]
    pub fn reports(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}", self.namespace)
    }

    /// String with expiry: that the window was closed, though it may have had no ids.
    #[must_use]
    pub fn closing(&self, window: Window) -> String {
        format!("{}:closing:{}:{}", self.namespace, window.length(), window.start())
    }

    /// Hash: what the reporter has begun with a window and not finished, by the window's start. Empty most of the time.
    #[must_use]
    pub fn reports_pending(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:pending", self.namespace)
    }

    /// String: the start of the first window to report, in Unix seconds, for as long as there is no report.
    #[must_use]
    pub fn reports_from(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:from", self.namespace)
    }

    /// String with expiry: which reporter publishes windows now.
    #[must_use]
    pub fn lease(&self) -> String {
        format!("{}:reporter:lease", self.namespace)
    }
}

/// The fields of the hash [`Keys::stats`].
pub mod stats {
    /// Requests on the route, whatever came of them.
    pub const REQUESTS: &str = "requests";
    /// Ids recorded that were new in their window.
    pub const NEW: &str = "new";
    /// Ids recorded that were in their window already.
    pub const DUPLICATE: &str = "duplicate";
    /// Ids recorded in the spool, since Redis was away.
    pub const SPOOLED: &str = "spooled";
    /// Requests refused as bad.
    pub const INVALID: &str = "invalid";
    /// Requests not recorded since they were beyond a limit.
    pub const LIMITED: &str = "limited";
    /// Requests that could not be recorded.
    pub const FAILED: &str = "failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_pinned() {
        let keys = Keys::new("verve".parse().expect("valid"));
        let length = WindowLength::try_new(60).expect("valid");
        let window = length.window_at_ms(1_795_383_012_345);
        assert_eq!(keys.ids(window), "verve:ids:60:1795383000");
        assert_eq!(keys.ids_prefix(length), "verve:ids:60:");
        assert_eq!(keys.closed(window), "verve:closed:60:1795383000");
        assert_eq!(keys.late(window), "verve:late:60:1795383000");
        assert_eq!(keys.late_prefix(length), "verve:late:60:");
        assert_eq!(keys.stats(window), "verve:stats:60:1795383000");
        assert_eq!(keys.endpoints(window), "verve:endpoints:60:1795383000");
        assert_eq!(keys.callbacks(), "verve:callbacks");
        assert_eq!(keys.callbacks_retry(), "verve:callbacks:retry");
        assert_eq!(keys.callbacks_dead(), "verve:callbacks:dead");
        assert_eq!(keys.spooled_batch("1f"), "verve:spooled:1f");
        assert_eq!(keys.spools(), "verve:spools");
        assert_eq!(keys.reports(length), "verve:reports:60");
        assert_eq!(keys.closing(window), "verve:closing:60:1795383000");
        assert_eq!(keys.reports_pending(length), "verve:reports:60:pending");
        assert_eq!(keys.reports_from(length), "verve:reports:60:from");
        assert_eq!(keys.lease(), "verve:reporter:lease");
    }

    #[test]
    fn namespaces_that_would_break_keys_are_refused() {
        for bad in ["", " ", "a b", "a*", "a?", "[a]", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?}");
        }
        for good in ["verve", "a:b", "{tag}", "A_1.2-3"] {
            assert!(good.parse::<Namespace>().is_ok(), "{good:?}");
        }
    }
}
