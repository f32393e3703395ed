//! Limits the calls to each host, so that a silent one cannot delay the others.
//!
//! A host may take most of the slots for deliveries, but not all. A host that has not answered for
//! a while may take few. Further jobs for it are deferred: they return to the retry set, and this
//! does not count as an attempt. The deferred jobs of a host are due one after another, and are
//! deferred again until the host answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::timeout;
use verve_protocol::Endpoint;

use super::CONCURRENCY;

/// The maximum number of calls in progress to one host: three quarters of all.
const MOST: usize = CONCURRENCY / 4 * 3;
/// The same for a host that does not answer.
const MOST_SILENT: usize = 16;
/// How long a host may answer none of its calls before it counts as silent.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How long a job waits for a host that answers, but has no free slot.
const WAIT: Duration = Duration::from_millis(250);
/// The delay of a host's first deferred job, their interval, and the maximum.
const FIRST_AFTER: Duration = Duration::from_millis(500);
const APART: Duration = Duration::from_millis(20);
const LAST_AFTER: Duration = Duration::from_secs(600);
/// With more hosts than this, those without a call in progress are forgotten.
const REMEMBERED: usize = 10_000;

/// The hosts that are called now, or were called before.
#[derive(Default)]
pub struct Hosts {
    known: Mutex<HashMap<String, Host>>,
    freed: Notify,
}

struct Host {
    under_way: usize,
    /// When a call in progress was last answered, or when the first of them began.
    progress: Instant,
    /// Whether a call ended without an answer since the last answer.
    ///
    /// Only a call that took [`SILENT_AFTER`] or longer counts.
    silent: bool,
    /// When the last deferred job is due.
    last_back: Instant,
}

/// A permit to call a host, which is returned when it is dropped.
pub struct Permit<'a> {
    hosts: &'a Hosts,
    name: String,
    begun: Instant,
    answered: bool,
}

/// Whether a call may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Granted,
    /// Not now: the host answers, but has no free slot.
    Wait,
    /// Not for some time: the host does not answer.
    Refused,
}

impl Hosts {
    /// Waits briefly for a permit to call the endpoint's host.
    ///
    /// Without one, returns the delay until the job is due again.
    pub async fn permit(&self, endpoint: &Endpoint) -> Result<Permit<'_>, Duration> {
        let url = endpoint.to_url();
        let name = format!(
            "{}:{:?}",
            url.host_str().unwrap_or_default(),
            url.port_or_known_default()
        );
        let leave = async {
            loop {
                let freed = self.freed.notified();
                match self.enter(&name, Instant::now()) {
                    Leave::Granted => return true,
                    Leave::Wait => freed.await,
                    Leave::Refused => return false,
                }
            }
        };
        if timeout(WAIT, leave).await.unwrap_or(false) {
            return Ok(Permit {
                hosts: self,
                begun: Instant::now(),
                name,
                answered: false,
            });
        }
        Err(self.defer(&name, Instant::now()))
    }

    fn enter(&self, name: &str, now: Instant) -> Leave {
        let mut known = self.known();
        let host = known.entry(name.to_owned()).or_insert_with(|| Host::new(now));
        let silent = host.is_silent(now);
        if host.under_way < if silent { MOST_SILENT } else { MOST } {
            if host.under_way == 0 {
                host.progress = now;
            }
            host.under_way += 1;
            return Leave::Granted;
        }
        if silent { Leave::Refused } else { Leave::Wait }
    }

    fn defer(&self, name: &str, now: Instant) -> Duration {
        let mut known = self.known();
        let host = known.entry(name.to_owned()).or_insert_with(|| Host::new(now));
        let back = (host.last_back + APART).clamp(now + FIRST_AFTER, now + LAST_AFTER);
        host.last_back = back;
        back - now
    }

    fn leave(&self, name: &str, begun: Instant, answered: bool, now: Instant) {
        let mut known = self.known();
        if let Some(host) = known.get_mut(name) {
            host.under_way -= 1;
            if answered {
                (host.progress, host.silent) = (now, false);
            } else if now.duration_since(begun) >= SILENT_AFTER {
                host.silent = true;
            }
        }
        if known.len() > REMEMBERED {
            known.retain(|_, host| host.under_way > 0);
        }
        drop(known);
        self.freed.notify_waiters();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    const fn new(now: Instant) -> Self {
        Self {
            under_way: 0,
            progress: now,
            silent: false,
            last_back: now,
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent || self.under_way > 0 && now.duration_since(self.progress) >= SILENT_AFTER
    }
}

impl Permit<'_> {
    /// Records that the host has answered, with any status.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.hosts.leave(&self.name, self.begun, self.answered, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_does_not_answer_takes_few_slots_until_it_does() {
        let hosts = Hosts::default();
        let begin = Instant::now();
        let enter = |name, seconds| hosts.enter(name, begin + Duration::from_secs(seconds));
        for _ in 0..MOST {
            assert_eq!(enter("a", 0), Leave::Granted);
        }
        assert_eq!(enter("a", 0), Leave::Wait, "wait");
        assert_eq!(enter("b", 0), Leave::Granted, "another");
        assert_eq!(enter("a", 1), Leave::Refused);
        for n in 0..MOST {
            hosts.leave("a", begin, false, begin + Duration::from_secs(10));
            let left = MOST - 1 - n;
            if left >= MOST_SILENT {
                assert_eq!(enter("a", 10), Leave::Refused, "{left}");
            }
        }
        for _ in 0..MOST_SILENT {
            assert_eq!(enter("a", 11), Leave::Granted);
        }
        assert_eq!(enter("a", 11), Leave::Refused);
        hosts.leave("a", begin, true, begin + Duration::from_secs(11));
        assert_eq!(enter("a", 11), Leave::Granted, "it answers again");
    }

    #[test]
    fn deferred_jobs_come_back_one_after_the_other() {
        let hosts = Hosts::default();
        let now = Instant::now();
        let waits: Vec<Duration> = (0..100_000).map(|_| hosts.defer("a", now)).collect();
        assert_eq!(waits[..2], [FIRST_AFTER, FIRST_AFTER + APART]);
        assert_eq!(waits[1_500], FIRST_AFTER + APART * 1_500);
        assert_eq!(waits.last(), Some(&LAST_AFTER));
    }
}
