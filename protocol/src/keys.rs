//! The names of the Redis keys. `L` is the window's length in seconds, `S` its start in Unix seconds, `p` a partition.
//!
//! A cluster has a key on the node of its slot, and a script or a transaction must keep to one slot. So all keys but those of ids begin
//! with a hash tag, `{ns}:`, and are together; each set of ids, `ns:ids:L:S` or `ns:ids:L:S:p`, is by itself, and what it becomes is
//! tagged with its whole name.
//!
//! A named counter has keys of its own, all those of a window and a report, as if its namespace were `ns/name`; a `/` is in no namespace and
//! in no name.

use std::fmt;
use std::str::FromStr;

use crate::{CounterName, Partition, Window, WindowLength};

/// How long an unreported set of ids, and its statistics, are kept after the end of their window: a day, in seconds.
pub const UNREPORTED_SECONDS: u64 = 86_400;

/// How far a window may end ahead of Redis' clock for its ids to be kept until then, in seconds: a week. Ids that are further ahead, by an edge
/// host whose clock is very wrong, expire after this and [`UNREPORTED_SECONDS`].
pub const AHEAD_SECONDS: u64 = 7 * 86_400;

/// The most callback jobs that wait in the stream [`Keys::callbacks`]: with some 200 bytes each, a bound of 200 MB on Redis.
/// While there are more, the component keeps further ones in its spool, on disk. The check is made now and then, so that
/// a few more may get in.
pub const MAX_QUEUED_JOBS: u64 = 1_000_000;

/// How long the index of windows that have ids is kept after it was last written, in seconds: longer than any set.
pub const INDEX_SECONDS: u64 = AHEAD_SECONDS + 2 * UNREPORTED_SECONDS;

/// What all of Verve's keys begin with, so that several Verves can share a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

/// Why a text is no [`Namespace`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("namespace {0:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ - :")]
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
        if is_name(text, b"._-:") {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidNamespace(text.to_owned()))
        }
    }
}

/// Whether a text is 1 to 64 letters, digits and these.
pub(crate) fn is_name(text: &str, others: &[u8]) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || others.contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The format of what is in Redis: one more with each change that an older reporter would misread.
pub const FORMAT: u32 = 1;

/// The keys of one counter of a namespace: of the one that has no name, or of a named one.
#[derive(Clone, Debug)]
pub struct Keys {
    namespace: Namespace,
    counter: Option<CounterName>,
    /// What they begin with.
    prefix: String,
}

impl Keys {
    /// The keys of the counter of `namespace` that has no name.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self {
            prefix: namespace.to_string(),
            namespace,
            counter: None,
        }
    }

    /// The keys of a named counter of the same namespace.
    #[must_use]
    pub fn named(&self, counter: CounterName) -> Self {
        Self {
            namespace: self.namespace.clone(),
            prefix: format!("{}/{counter}", self.namespace),
            counter: Some(counter),
        }
    }

    /// Whose they are: nothing for the counter that has no name.
    #[must_use]
    pub const fn counter(&self) -> Option<&CounterName> {
        self.counter.as_ref()
    }

    /// String: the [`FORMAT`] of the reporter that has held a lease first, for others to find out whether they understand it.
    #[must_use]
    pub fn format(&self) -> String {
        format!("{{{}}}:format", self.namespace)
    }

    /// Sorted set: the names of the namespace's counters, by when an instance last registered each, in Unix seconds of Redis' clock.
    #[must_use]
    pub fn counters(&self) -> String {
        format!("{{{}}}:counters", self.namespace)
    }

    /// Of a key that is [`Keys::ids`] of a named counter of this namespace: its name.
    #[must_use]
    pub fn named_ids(&self, key: &str) -> Option<CounterName> {
        self.name_in(ids_parts(key)?.0)
    }

    /// The named counter of this namespace whose keys begin with this.
    #[must_use]
    pub fn name_in(&self, prefix: &str) -> Option<CounterName> {
        let (namespace, name) = prefix.split_once('/')?;
        name.parse().ok().filter(|_| namespace == self.namespace.as_str())
    }

    /// The namespace of all of them.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Set: the ids of a window's partition, in canonical decimal.
    #[must_use]
    pub fn ids(&self, window: Window, partition: Partition) -> String {
        let (length, start) = (window.length(), window.start());
        match partition {
            Partition::Whole => format!("{}:ids:{length}:{start}", self.prefix),
            Partition::Part(number) => format!("{}:ids:{length}:{start}:{number}", self.prefix),
        }
    }

    /// Set with expiry: the ids of a window that is becoming final. They were moved here at once, so that what comes to
    /// [`Keys::ids`] from then on came too late.
    #[must_use]
    pub fn closed(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:closed", self.ids(window, partition))
    }

    /// String with expiry: that the window was closed, though it may have had no ids.
    #[must_use]
    pub fn closing(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:closing", self.ids(window, partition))
    }

    /// Set with expiry: the ids of a window that came after it was final.
    #[must_use]
    pub fn late(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:late", self.ids(window, partition))
    }

    /// Hash: what happened in a window, as far as flushed: see [`stats`].
    #[must_use]
    pub fn stats(&self, window: Window) -> String {
        format!("{{{}}}:stats:{}:{}", self.prefix, window.length(), window.start())
    }

    /// Hash with expiry: how many callback jobs each endpoint has had in a window, where that is limited, by the SHA-1 of the endpoint.
    #[must_use]
    pub fn endpoints(&self, window: Window) -> String {
        format!("{{{}}}:endpoints:{}:{}", self.prefix, window.length(), window.start())
    }

    /// Stream: callback jobs.
    #[must_use]
    pub fn callbacks(&self) -> String {
        format!("{{{}}}:callbacks", self.prefix)
    }

    /// Sorted set: callback jobs waiting for their next attempt, scored by its Unix time in milliseconds.
    #[must_use]
    pub fn callbacks_retry(&self) -> String {
        format!("{{{}}}:callbacks:retry", self.prefix)
    }

    /// Stream: callback jobs given up on, with their last error.
    #[must_use]
    pub fn callbacks_dead(&self) -> String {
        format!("{{{}}}:callbacks:dead", self.prefix)
    }

    /// String with expiry: that a batch of spooled commands has been run, so that it is not run twice.
    #[must_use]
    pub fn spooled_batch(&self, batch: &str) -> String {
        format!("{{{}}}:spooled:{batch}", self.prefix)
    }

    /// Nothing: what `verve-reporter doctor` tries commands on.
    #[must_use]
    pub fn doctor(&self) -> String {
        format!("{{{}}}:doctor", self.prefix)
    }

    /// Hash with expiry: the state of each spool, by a name that it has from when something is put into it until it is empty again:
    /// a [`SpoolState`](crate::SpoolState) each.
    #[must_use]
    pub fn spools(&self) -> String {
        format!("{{{}}}:spools", self.prefix)
    }

    /// Sorted set: which windows of this length have ids, so that nobody has to search for them: [`indexed`], by when that was last written, which
    /// whoever adds the first id does. Removed by the leader once the window is final, and the entry has stayed the same for longer than the window lasts.
    #[must_use]
    pub fn windows(&self, length: WindowLength) -> String {
        format!("{{{}}}:windows:{length}", self.prefix)
    }

    /// Sorted set: the starts of final windows some of whose ids are, or were, in [`Keys::late`].
    #[must_use]
    pub fn windows_late(&self, length: WindowLength) -> String {
        format!("{{{}}}:windows:{length}:late", self.prefix)
    }

    /// Hash: what was reported, by the window's start.
    #[must_use]
    pub fn reports(&self, length: WindowLength) -> String {
        format!("{{{}}}:reports:{length}", self.prefix)
    }

    /// Hash: what the reporter has begun with a window and not finished, by the window's start. Empty most of the time.
    #[must_use]
    pub fn reports_pending(&self, length: WindowLength) -> String {
        format!("{{{}}}:reports:{length}:pending", self.prefix)
    }

    /// String: the start of the first window to report, in Unix seconds, for as long as there is no report.
    #[must_use]
    pub fn reports_from(&self, length: WindowLength) -> String {
        format!("{{{}}}:reports:{length}:from", self.prefix)
    }

    /// Sorted set: the starts of the windows that have a report and are not final.
    #[must_use]
    pub fn reports_open(&self, length: WindowLength) -> String {
        format!("{{{}}}:reports:{length}:open", self.prefix)
    }

    /// Hash: how far the reporter is: see [`progress`].
    #[must_use]
    pub fn reports_progress(&self, length: WindowLength) -> String {
        format!("{{{}}}:reports:{length}:progress", self.prefix)
    }

    /// String with expiry: which reporter publishes windows of this length now.
    #[must_use]
    pub fn lease(&self, length: WindowLength) -> String {
        format!("{{{}}}:reporter:lease:{length}", self.prefix)
    }
}

/// A member of [`Keys::windows`]: the start of a window that has ids, and in how many partitions the one who wrote it has them.
#[must_use]
pub fn indexed(window: Window, partitions: u16) -> String {
    format!("{}:{partitions}", window.start())
}

/// [`indexed`] read backwards.
#[must_use]
pub fn read_indexed(member: &str, length: WindowLength) -> Option<(Window, u16)> {
    let (start, partitions) = member.split_once(':')?;
    Some((length.window_starting(start.parse().ok()?)?, partitions.parse().ok()?))
}

/// Namespace, length in seconds and start of the window, and its partition, whose ids are under this key: [`Keys::ids`] read backwards.
#[must_use]
pub fn ids_parts(key: &str) -> Option<(&str, u64, u64, Partition)> {
    let (namespace, rest) = key.rsplit_once(":ids:")?;
    let mut numbers = rest.split(':');
    let (seconds, start) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let partition = match numbers.next() {
        None => Partition::Whole,
        Some(number) => Partition::Part(number.parse().ok()?),
    };
    numbers
        .next()
        .is_none()
        .then_some((namespace, seconds, start, partition))
}

/// The fields of the hash [`Keys::reports_progress`].
pub mod progress {
    /// The start of the newest window that has a report, in Unix seconds.
    pub const NEWEST: &str = "newest";
    /// Up to which start all reports were removed that need not be kept, in Unix seconds.
    pub const TRIMMED: &str = "trimmed";
    /// When the leader last kept the ids of windows that it still needs from expiring, in Unix milliseconds of Redis' clock.
    pub const KEPT: &str = "kept";
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
        let (whole, part) = (Partition::Whole, Partition::Part(7));
        assert_eq!(keys.ids(window, whole), "verve:ids:60:1795383000");
        assert_eq!(keys.ids(window, part), "verve:ids:60:1795383000:7");
        assert_eq!(keys.closed(window, whole), "{verve:ids:60:1795383000}:closed");
        assert_eq!(keys.closing(window, part), "{verve:ids:60:1795383000:7}:closing");
        assert_eq!(keys.late(window, part), "{verve:ids:60:1795383000:7}:late");
        assert_eq!(keys.windows(length), "{verve}:windows:60");
        assert_eq!(keys.windows_late(length), "{verve}:windows:60:late");
        assert_eq!(indexed(window, 16), "1795383000:16");
        assert_eq!(read_indexed("1795383000:16", length), Some((window, 16)));
        for other in ["", "1795383000", "1795383001:1", "x:1", "1795383000:x"] {
            assert_eq!(read_indexed(other, length), None, "{other}");
        }
        assert_eq!(keys.stats(window), "{verve}:stats:60:1795383000");
        assert_eq!(keys.endpoints(window), "{verve}:endpoints:60:1795383000");
        assert_eq!(keys.callbacks(), "{verve}:callbacks");
        assert_eq!(keys.callbacks_retry(), "{verve}:callbacks:retry");
        assert_eq!(keys.callbacks_dead(), "{verve}:callbacks:dead");
        assert_eq!(keys.spooled_batch("1f"), "{verve}:spooled:1f");
        assert_eq!(keys.spools(), "{verve}:spools");
        assert_eq!(keys.format(), "{verve}:format");
        assert_eq!(keys.reports(length), "{verve}:reports:60");
        assert_eq!(keys.reports_pending(length), "{verve}:reports:60:pending");
        assert_eq!(keys.reports_from(length), "{verve}:reports:60:from");
        assert_eq!(keys.reports_open(length), "{verve}:reports:60:open");
        assert_eq!(keys.reports_progress(length), "{verve}:reports:60:progress");
        assert_eq!(keys.lease(length), "{verve}:reporter:lease:60");
    }

    #[test]
    fn the_keys_of_a_named_counter_are_pinned() {
        let keys = Keys::new("verve".parse().expect("valid"));
        let name: CounterName = "logins".parse().expect("valid");
        let named = keys.named(name.clone());
        let length = WindowLength::try_new(60).expect("valid");
        let window = length.window_at_ms(1_795_383_012_345);
        let ids = named.ids(window, Partition::Part(7));
        assert_eq!(ids, "verve/logins:ids:60:1795383000:7");
        assert_eq!(named.stats(window), "{verve/logins}:stats:60:1795383000");
        assert_eq!(named.reports(length), "{verve/logins}:reports:60");
        assert_eq!(named.lease(length), "{verve/logins}:reporter:lease:60");
        // One for the whole namespace.
        assert_eq!(named.counters(), "{verve}:counters");
        assert_eq!(named.counters(), keys.counters());

        assert_eq!(keys.named_ids(&ids), Some(name));
        for other in [
            "verve:ids:60:1795383000",
            "shop/logins:ids:60:1795383000",
            "verve/a:b:ids:60:0",
        ] {
            assert_eq!(keys.named_ids(other), None, "{other}");
        }
    }

    #[test]
    fn keys_of_ids_are_read_back() {
        for (key, parts) in [
            (
                "verve:ids:60:1795383000",
                ("verve", 60, 1_795_383_000, Partition::Whole),
            ),
            (
                "verve:ids:60:1795383000:255",
                ("verve", 60, 1_795_383_000, Partition::Part(255)),
            ),
            ("a:ids:5:ids:5:0", ("a:ids:5", 5, 0, Partition::Whole)),
        ] {
            assert_eq!(ids_parts(key), Some(parts), "{key}");
        }
        for other in [
            "verve:stats:60:0",
            "verve:ids:60",
            "ids:60:0",
            "verve:ids:x:0",
            "verve:ids:60:",
            "verve:ids:60:0:1:2",
        ] {
            assert_eq!(ids_parts(other), None, "{other}");
        }
    }

    #[test]
    fn namespaces_that_would_break_keys_are_refused() {
        for bad in ["", " ", "a b", "a*", "a?", "[a]", "ä", "a\n", "{tag}", &"x".repeat(65)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?}");
        }
        for good in ["verve", "a:b", "A_1.2-3"] {
            assert!(good.parse::<Namespace>().is_ok(), "{good:?}");
        }
    }
}
