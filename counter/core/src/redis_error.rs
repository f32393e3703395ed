//! The failures of Redis and of the connection to it.
//!
//! The messages of hosts and servers are parsed here and nowhere else.

use thiserror::Error;

use crate::cluster::Redirect;

/// Why Redis did not do what was requested.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedisError {
    /// The host does not connect to this address.
    #[error("the address is invalid or not among allowed_outbound_hosts")]
    InvalidAddress,
    /// The host opens no more connections.
    #[error("too many open connections")]
    TooManyConnections,
    /// The server may not be Redis.
    #[error("the answer has an unexpected type")]
    UnexpectedType,
    /// Another node has the key.
    #[error("{text}")]
    Redirected {
        /// Where the key is.
        redirect: Redirect,
        /// The message, as received.
        text: String,
    },
    /// The server refuses the command.
    #[error("{text}")]
    Refused {
        /// The reason.
        refusal: Refusal,
        /// The message, as received.
        text: String,
    },
    /// It is unreachable, or the connection broke. The message is that of the host.
    #[error("{0}")]
    Away(String),
    /// There was no answer in time.
    #[error("no answer within {within_ms} ms")]
    NoAnswer {
        /// The time, in milliseconds.
        within_ms: u64,
    },
    /// It was not asked, because it failed a moment ago.
    ///
    /// The content is that failure, if this instance has asked it.
    #[error("{}", .0.as_ref().map_or_else(|| "not reachable a moment ago".to_owned(), |last| format!("a moment ago: {last}")))]
    FailedLately(Option<Box<Self>>),
    /// It was asked, and meanwhile another request found that it fails.
    #[error("no answer, and not reachable a moment ago")]
    FailedMeanwhile,
    /// A node of a cluster redirected a command without an address.
    #[error(
        "redirects to a node that announces no name (cluster-preferred-endpoint-type hostname, and no cluster-announce-hostname)"
    )]
    SentNowhere,
    /// Nodes redirected a command from one to the other.
    #[error("redirected more than {0} times")]
    SentOn(usize),
    /// Several servers are named that are not one cluster.
    #[error("redis_urls names several servers, which are no cluster; expected one Redis, or nodes of one cluster")]
    NotOneCluster,
    /// Fewer replicas than `redis_wait_replicas` have what was recorded.
    #[error("{replicas} of {wanted} replicas have it within {within_ms} ms (redis_wait_replicas)")]
    TooFewReplicas {
        /// The replicas that have it.
        replicas: i64,
        /// The replicas that must have it.
        wanted: u32,
        /// The time limit, in milliseconds.
        within_ms: i64,
    },
    /// A set of ids was removed just after ids were added to it.
    #[error("the set of ids was removed meanwhile")]
    SetGone,
    /// The stream of callback jobs is full.
    #[error("too many callback jobs wait")]
    TooManyJobs,
    /// A script that adds ids to this set did not answer for each of them.
    #[error("{0}: the answer has an unexpected length")]
    UnexpectedLength(String),
    /// The failure of a node.
    #[error("{node}: {error}")]
    At {
        /// Its URL, without a password.
        node: String,
        /// The failure.
        error: Box<Self>,
    },
    /// Two attempts failed.
    #[error("{first}; on a fresh connection: {second}")]
    Twice {
        /// The first failure.
        first: Box<Self>,
        /// The second failure, which differs from the first.
        second: Box<Self>,
    },
    /// Several servers were asked, and none succeeded.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Each(Vec<Self>),
}

/// Why a server refuses a command that it understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not a node of a cluster, or does not know clusters.
    NoCluster,
    /// This user has no permission.
    Forbidden,
    /// The keys are not all in one slot.
    CrossSlot,
    /// Another error code of Redis.
    Code(&'static str),
}

/// Redis' error codes that the commands of Verve may meet.
///
/// [`Refusal`] and [`Redirect`] cover the others.
const CODES: [&str; 13] = [
    "BUSY",
    "CLUSTERDOWN",
    "ERR",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOAUTH",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGPASS",
    "WRONGTYPE",
];

impl RedisError {
    /// Parses the message of a host about a failed command.
    ///
    /// It contains the message of the server, in each host's own words: `OOM command not allowed`,
    /// `An error was signalled by the server - CrossSlot: Keys in …`.
    #[must_use]
    pub fn from_message(text: String) -> Self {
        if let Some(redirect) = Redirect::parse(&text) {
            return Self::Redirected { redirect, text };
        }
        match Refusal::from_message(&text) {
            Some(refusal) => Self::Refused { refusal, text },
            None => Self::Away(text),
        }
    }

    /// Adds the node to the failure.
    #[must_use]
    pub fn at(self, node: impl ToString) -> Self {
        Self::At {
            node: node.to_string(),
            error: Box::new(self),
        }
    }

    /// Returns the redirection, if the failure is only that.
    #[must_use]
    pub fn redirect(&self) -> Option<&Redirect> {
        match self {
            Self::Redirected { redirect, .. } => Some(redirect),
            Self::At { error, .. } => error.redirect(),
            _ => None,
        }
    }

    /// Whether the server works, but does not have all that the command needs.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.redirect().is_some() || self.refusal() == Some(Refusal::CrossSlot)
    }

    /// Returns why the server refuses, if it does.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            Self::At { error, .. } => error.refusal(),
            Self::Twice { first, second } => second.refusal().or_else(|| first.refusal()),
            _ => None,
        }
    }

    /// Combines the failures of two attempts. Equal failures become one.
    #[must_use]
    pub fn and_then(self, second: Self) -> Self {
        if self == second {
            return self;
        }
        Self::Twice {
            first: Box::new(self),
            second: Box::new(second),
        }
    }

    /// Combines the failures of several servers. Equal consecutive ones appear once.
    #[must_use]
    pub fn each(mut errors: Vec<Self>) -> Self {
        errors.dedup();
        match errors.len() {
            1 => errors.remove(0),
            _ => Self::Each(errors),
        }
    }
}

impl Refusal {
    fn from_message(text: &str) -> Option<Self> {
        let message = text.to_ascii_lowercase();
        let has_any = |words: &[&str]| words.iter().any(|words| message.contains(words));
        if has_any(&["cluster support disabled", "unknown command"]) {
            return Some(Self::NoCluster);
        }
        if has_any(&["noperm", "no permissions"]) {
            return Some(Self::Forbidden);
        }
        if has_any(&["same slot"]) {
            return Some(Self::CrossSlot);
        }
        // Some hosts write a code as `ReadOnly`. No host writes `ERR` in another case.
        let mut words = text.split_ascii_whitespace().map(|word| word.trim_end_matches(':'));
        words.find_map(|word| {
            let code = CODES.into_iter().find(|code| code.eq_ignore_ascii_case(word))?;
            (code != "ERR" || word == code).then_some(Self::Code(code))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_hosts_are_parsed() {
        let refused = |text: &str| RedisError::from_message(text.to_owned()).refusal();
        for (text, refusal) in [
            ("ERR This instance has cluster support disabled", Refusal::NoCluster),
            (
                "An error was signalled by the server - ResponseError: This instance has cluster support disabled",
                Refusal::NoCluster,
            ),
            (
                "ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS'",
                Refusal::NoCluster,
            ),
            (
                "NOPERM: User edge has no permissions to run the 'cluster|slots' command",
                Refusal::Forbidden,
            ),
            (
                "An error was signalled by the server - CrossSlot: Keys in request don't hash to the same slot",
                Refusal::CrossSlot,
            ),
            (
                "ERR Script attempted to access keys that do not hash to the same slot",
                Refusal::CrossSlot,
            ),
            (
                "OOM: command not allowed when used memory > 'maxmemory'.",
                Refusal::Code("OOM"),
            ),
            (
                "An error was signalled by the server - ReadOnly: You can't write against a read only replica.",
                Refusal::Code("READONLY"),
            ),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                Refusal::Code("WRONGTYPE"),
            ),
        ] {
            assert_eq!(refused(text), Some(refusal), "{text}");
        }
        for text in [
            "Connection refused (os error 111)",
            "broken pipe",
            "an err of the host",
            "",
        ] {
            assert_eq!(
                RedisError::from_message(text.to_owned()),
                RedisError::Away(text.to_owned())
            );
        }
        let moved = RedisError::from_message("MOVED 3999 127.0.0.1:6381".to_owned());
        assert_eq!(moved.redirect().map(|redirect| redirect.slot), Some(3999));
        assert_eq!(moved.refusal(), None);
    }

    #[test]
    fn a_test_that_failed_twice_is_reported_once() {
        let away = |text: &str| RedisError::Away(text.to_owned());
        assert_eq!(away("broken pipe").and_then(away("broken pipe")), away("broken pipe"));
        let both = away("broken pipe").and_then(away("refused"));
        assert_eq!(both.to_string(), "broken pipe; on a fresh connection: refused");
        let each = RedisError::each(vec![away("a"), away("a"), away("b")]);
        assert_eq!(each.to_string(), "a; b");
        assert_eq!(RedisError::each(vec![away("a"), away("a")]), away("a"));
        let lately = RedisError::FailedLately(Some(Box::new(away("refused").at("redis://a:1"))));
        assert_eq!(lately.to_string(), "a moment ago: redis://a:1: refused");
        let of_others = RedisError::FailedLately(None).at("redis://a:1");
        assert_eq!(of_others.to_string(), "redis://a:1: not reachable a moment ago");
    }
}
