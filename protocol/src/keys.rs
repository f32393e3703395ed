//! The names of the Redis keys.
//!
//! In these names, `L` is the window's length in seconds, `S` its start in Unix seconds, and `p` a
//! partition.
//!
//! In a cluster, each key is on the node of its slot, and a script or a transaction must use only
//! one slot. Therefore all keys except those of ids begin with a hash tag, `{ns}:`, and are in the
//! same slot. Each set of ids, `ns:ids:L:S` or `ns:ids:L:S:p`, is in the slot of its own name, and
//! the keys into which its ids are moved have its whole name as their hash tag.
//!
//! A named counter has its own keys for windows and reports: `ns/name:ids:L:S` and `{ns}/name:…`.
//! No namespace and no name contains a `/`.

use std::fmt;
use std::str::FromStr;

use crate::{CounterName, Partition, Window, WindowLength};

/// How long unreported ids and their statistics are kept, in seconds: a day.
///
/// The time starts at the end of their window.
pub const UNREPORTED_SECONDS: u64 = 86_400;

/// How far ahead a window may end for its ids to be kept until then, in seconds.
///
/// The value is a week, by the clock of Redis. Ids that are further ahead, from an edge host whose
/// clock is very wrong, expire after this time plus [`UNREPORTED_SECONDS`].
pub const AHEAD_SECONDS: u64 = 7 * 86_400;

/// The maximum number of callback jobs in the stream [`Keys::callbacks`].
///
/// With some 200 bytes each, they need at most 200 MB in Redis. If there are more, the component
/// keeps further jobs in its spool, on disk. The check is made only now and then, so a few more
/// jobs may be added.
pub const MAX_QUEUED_JOBS: u64 = 1_000_000;

/// How long the index of windows is kept after its last write, in seconds.
///
/// This is longer than any set of ids is kept.
pub const INDEX_SECONDS: u64 = AHEAD_SECONDS + 2 * UNREPORTED_SECONDS;

/// The prefix of all keys, so that several installations can share a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

/// The error for a text that is not a [`Namespace`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("namespace {0:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ - :")]
pub struct InvalidNamespace(String);

impl Namespace {
    /// Returns the namespace as text.
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

/// Returns whether a text is 1 to 64 ASCII letters, digits and bytes of `others`.
pub(crate) fn is_name(text: &str, others: &[u8]) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || others.contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The version of the data format in Redis.
///
/// It increases by one with each change that an older reporter would misread.
pub const FORMAT: u32 = 1;

/// The keys of one counter of a namespace: the unnamed counter or a named one.
#[derive(Clone, Debug)]
pub struct Keys {
    namespace: Namespace,
    counter: Option<CounterName>,
    /// The beginning of the keys of the counter's ids.
    prefix: String,
    /// The beginning of the counter's other keys.
    ///
    /// All counters of a namespace have the same hash tag, so that one script can use the keys of
    /// several.
    tagged: String,
}

impl Keys {
    /// Returns the keys of the unnamed counter of `namespace`.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self {
            prefix: namespace.to_string(),
            tagged: format!("{{{namespace}}}"),
            namespace,
            counter: None,
        }
    }

    /// Returns the keys of a named counter of the same namespace.
    #[must_use]
    pub fn named(&self, counter: CounterName) -> Self {
        Self {
            namespace: self.namespace.clone(),
            prefix: format!("{}/{counter}", self.namespace),
            tagged: format!("{{{}}}/{counter}", self.namespace),
            counter: Some(counter),
        }
    }

    /// Returns the name of the counter; `None` for the unnamed counter.
    #[must_use]
    pub const fn counter(&self) -> Option<&CounterName> {
        self.counter.as_ref()
    }

    /// Names the string with the [`FORMAT`] of the first reporter that held a lease.
    ///
    /// Other reporters check with it whether they understand the data.
    #[must_use]
    pub fn format(&self) -> String {
        format!("{{{}}}:format", self.namespace)
    }

    /// Names the sorted set of the names of the namespace's counters.
    ///
    /// The score is the time of the last registration by an instance, in Unix seconds of Redis'
    /// clock.
    #[must_use]
    pub fn counters(&self) -> String {
        format!("{{{}}}:counters", self.namespace)
    }

    /// Names the sorted set of the named counters that a reporter has to look at.
    ///
    /// It is about windows of one length.
    /// The score is like that of [`Self::counters`], or the start of the newest window with ids if
    /// that is later. A leader removes a counter once it has been idle for long and all its windows
    /// are final. An instance adds it again with its next window.
    #[must_use]
    pub fn counters_in_use(&self, length: WindowLength) -> String {
        format!("{{{}}}:counters:in-use:{length}", self.namespace)
    }

    /// Returns the named counter of this namespace to which a key of ids belongs.
    ///
    /// `None` if the key is not [`Keys::ids`] of such a counter.
    #[must_use]
    pub fn named_ids(&self, key: &str) -> Option<CounterName> {
        self.name_in(ids_parts(key)?.0)
    }

    /// Returns the named counter of this namespace whose keys begin with `prefix`.
    #[must_use]
    pub fn name_in(&self, prefix: &str) -> Option<CounterName> {
        let (namespace, name) = prefix.split_once('/')?;
        name.parse().ok().filter(|_| namespace == self.namespace.as_str())
    }

    /// Returns the namespace of all keys.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Names the set of the ids of a window's partition, in canonical decimal.
    #[must_use]
    pub fn ids(&self, window: Window, partition: Partition) -> String {
        let (length, start) = (window.length(), window.start());
        match partition {
            Partition::Whole => format!("{}:ids:{length}:{start}", self.prefix),
            Partition::Part(number) => format!("{}:ids:{length}:{start}:{number}", self.prefix),
        }
    }

    /// Names the set, with expiry, of the ids of a window that becomes final.
    ///
    /// The ids were moved here in one command. Ids that arrive at [`Keys::ids`] after that are late
    /// ids.
    #[must_use]
    pub fn closed(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:closed", self.ids(window, partition))
    }

    /// Names the string, with expiry, that marks a window as closed.
    ///
    /// It also exists if the window had no ids.
    #[must_use]
    pub fn closing(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:closing", self.ids(window, partition))
    }

    /// Names the set, with expiry, of the late ids of a window.
    ///
    /// These are the ids that arrived after the window was final.
    #[must_use]
    pub fn late(&self, window: Window, partition: Partition) -> String {
        format!("{{{}}}:late", self.ids(window, partition))
    }

    /// Names the hash of a window's statistics that are flushed: see [`stats`].
    #[must_use]
    pub fn stats(&self, window: Window) -> String {
        format!("{}:stats:{}:{}", self.tagged, window.length(), window.start())
    }

    /// Names the hash, with expiry, of the number of callback jobs of each endpoint.
    ///
    /// It belongs to one window, and exists only if these jobs are limited. The field is the SHA-1
    /// of the endpoint.
    #[must_use]
    pub fn endpoints(&self, window: Window) -> String {
        format!(
            "{{{}}}:endpoints:{}:{}",
            self.namespace,
            window.length(),
            window.start()
        )
    }

    /// Names the stream of callback jobs.
    #[must_use]
    pub fn callbacks(&self) -> String {
        format!("{{{}}}:callbacks", self.namespace)
    }

    /// Names the sorted set of callback jobs that wait for their next attempt.
    ///
    /// The score is the Unix time of this attempt, in milliseconds.
    #[must_use]
    pub fn callbacks_retry(&self) -> String {
        format!("{{{}}}:callbacks:retry", self.namespace)
    }

    /// Names the stream of dead letters: failed callback jobs with their last error.
    #[must_use]
    pub fn callbacks_dead(&self) -> String {
        format!("{{{}}}:callbacks:dead", self.namespace)
    }

    /// Names the string, with expiry, that marks a batch of spooled commands as run.
    ///
    /// A marked batch does not run again.
    #[must_use]
    pub fn spooled_batch(&self, batch: &str) -> String {
        format!("{{{}}}:spooled:{batch}", self.namespace)
    }

    /// Names the key on which `verve-reporter doctor` tries commands.
    ///
    /// Nothing is stored there.
    #[must_use]
    pub fn doctor(&self) -> String {
        format!("{{{}}}:doctor", self.namespace)
    }

    /// Names the hash, with expiry, of the states of the spools.
    ///
    /// Each value is a [`SpoolState`](crate::SpoolState). The field is a name that the spool has
    /// from its first entry until it is empty again.
    #[must_use]
    pub fn spools(&self) -> String {
        format!("{{{}}}:spools", self.namespace)
    }

    /// Names the index of windows: the sorted set of windows of a length that have ids.
    ///
    /// With it, no search for these windows is necessary. A member is [`indexed`], and its score is
    /// the time of its last write. Each instance writes the entry with its own first id of the
    /// window, and again with each flush. The leader removes the entry after the window is final
    /// and the entry has stayed the same for longer than the window's length.
    #[must_use]
    pub fn windows(&self, length: WindowLength) -> String {
        format!("{}:windows:{length}", self.tagged)
    }

    /// Names the sorted set of the starts of final windows with late ids.
    ///
    /// Some ids of these windows are, or were, in [`Keys::late`].
    #[must_use]
    pub fn windows_late(&self, length: WindowLength) -> String {
        format!("{}:windows:{length}:late", self.tagged)
    }

    /// Names the hash of the reports, by the start of the window.
    #[must_use]
    pub fn reports(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}", self.tagged)
    }

    /// Names the hash of steps that the reporter has begun and not finished.
    ///
    /// The field is the start of the window. The hash is empty most of the time.
    #[must_use]
    pub fn reports_pending(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:pending", self.tagged)
    }

    /// Names the string with the start of the first window to report.
    ///
    /// The start is in Unix seconds. It is also read after the first report, since the only reports
    /// so far may be of earlier windows.
    #[must_use]
    pub fn reports_from(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:from", self.tagged)
    }

    /// Names the sorted set of the starts of windows with a report that is not final.
    #[must_use]
    pub fn reports_open(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:open", self.tagged)
    }

    /// Names the hash of the reporter's progress: see [`progress`].
    #[must_use]
    pub fn reports_progress(&self, length: WindowLength) -> String {
        format!("{}:reports:{length}:progress", self.tagged)
    }

    /// Names the lease: the string, with expiry, that names the leader.
    ///
    /// The leader is the reporter that currently publishes windows of this length, of all counters.
    #[must_use]
    pub fn lease(&self, length: WindowLength) -> String {
        format!("{{{}}}:reporter:lease:{length}", self.namespace)
    }
}

/// Returns the member of [`Keys::windows`] for a window that has ids.
///
/// It consists of the start of the window, and of the number of partitions that its writer uses.
#[must_use]
pub fn indexed(window: Window, partitions: u16) -> String {
    format!("{}:{partitions}", window.start())
}

/// Parses a member that [`indexed`] has returned.
#[must_use]
pub fn read_indexed(member: &str, length: WindowLength) -> Option<(Window, u16)> {
    let (start, partitions) = member.split_once(':')?;
    Some((length.window_starting(start.parse().ok()?)?, partitions.parse().ok()?))
}

/// Parses a key that [`Keys::ids`] has returned.
///
/// Returns the namespace, the length of the window in seconds, its start, and the partition.
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
    /// The start up to which all unneeded reports were removed, in Unix seconds.
    pub const TRIMMED: &str = "trimmed";
    /// When the leader last extended the expiry of the ids that it still needs.
    ///
    /// The value is in Unix milliseconds of Redis' clock.
    pub const KEPT: &str = "kept";
    /// The start from which an idle counter is not reported, in Unix seconds.
    ///
    /// It holds until a later window is reported.
    pub const IDLE: &str = "idle";
}

/// The fields of the hash [`Keys::stats`].
pub mod stats {
    /// Requests on the route, with any outcome.
    pub const REQUESTS: &str = "requests";
    /// Recorded ids that were new in their window.
    pub const NEW: &str = "new";
    /// Recorded ids that were already in their window.
    pub const DUPLICATE: &str = "duplicate";
    /// Ids recorded in the spool because Redis was unreachable.
    pub const SPOOLED: &str = "spooled";
    /// Requests refused as bad.
    pub const INVALID: &str = "invalid";
    /// Requests not recorded because they exceeded a limit.
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
        assert_eq!(keys.counters(), "{verve}:counters");
        assert_eq!(keys.counters_in_use(length), "{verve}:counters:in-use:60");
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
        assert_eq!(named.stats(window), "{verve}/logins:stats:60:1795383000");
        assert_eq!(named.reports(length), "{verve}/logins:reports:60");
        // All counters of the namespace share these keys.
        assert_eq!(named.counters(), keys.counters());
        assert_eq!(named.lease(length), keys.lease(length));
        assert_eq!(named.callbacks(), keys.callbacks());
        assert_eq!(named.endpoints(window), keys.endpoints(window));
        assert_eq!(named.spooled_batch("1f"), keys.spooled_batch("1f"));

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
