//! A follower: a server with older data, which takes over at a failover.
//!
//! It has the data that its server had some time ago, and takes over when the server dies. Redis
//! calls it a replica; in this crate, a replica is one of the reporter.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::data::Data;
use super::{Answer, Server};

/// If more commands are pending, the follower runs those older than [`LAG_US`].
const MOST_BEHIND: usize = 2000;
/// The longest lag of the follower while the link works, in microseconds.
const LAG_US: u64 = 2_000_000;

/// A command that the server has run.
struct Ran {
    words: Vec<String>,
    at_us: u64,
    is_full: bool,
}

/// The follower of a server.
pub struct Follower {
    server: Rc<Server>,
    /// The commands that the follower has not run yet.
    behind: RefCell<VecDeque<Ran>>,
    /// The number of commands that the follower has run.
    has: Cell<u64>,
    /// The number of commands up to the last write of each client.
    written: RefCell<BTreeMap<u64, u64>>,
    /// Whether commands arrive at the follower.
    is_linked: Cell<bool>,
    /// Whether `WAIT` waits for the writes of the client only, as since Redis 7.2.
    ///
    /// Before, it waits for all writes.
    waits_for_own: bool,
}

impl Follower {
    /// Creates a follower with the data of a server.
    pub fn of(server: &Server, waits_for_own: bool) -> Self {
        let follower = Server::new(&server.host, server.number, &server.cluster);
        follower.data.borrow_mut().entries = server.entries();
        Self {
            server: follower,
            behind: RefCell::default(),
            has: Cell::default(),
            written: RefCell::default(),
            is_linked: Cell::new(true),
            waits_for_own,
        }
    }

    /// Returns a follower with the current data of a server.
    ///
    /// For changes of the server other than by commands.
    pub fn renewed(&self, server: &Server) -> Self {
        let renewed = Self::of(server, self.waits_for_own);
        renewed.is_linked.set(self.is_linked.get());
        renewed
    }

    /// Records a command that has written something.
    pub fn note(&self, words: &[String], at_us: u64, is_full: bool, client: u64) {
        let mut behind = self.behind.borrow_mut();
        behind.push_back(Ran {
            words: words.to_vec(),
            at_us,
            is_full,
        });
        self.written
            .borrow_mut()
            .insert(client, self.has.get() + behind.len() as u64);
        let long_ago = behind.len() > MOST_BEHIND && self.is_linked.get();
        drop(behind);
        if long_ago {
            self.catch_up(|ran| ran.at_us + LAG_US < at_us);
        }
    }

    /// Returns how many followers have all writes of a client: the answer to `WAIT`.
    pub fn wait(&self, client: u64) -> i64 {
        let all = self.has.get() + self.behind.borrow().len() as u64;
        let until = match self.waits_for_own {
            true => self.written.borrow().get(&client).copied().unwrap_or_default(),
            false => all,
        };
        if self.is_linked.get() {
            self.catch_up(|_| self.has.get() < until);
        }
        i64::from(self.has.get() >= until)
    }

    /// Connects or disconnects the follower.
    ///
    /// It still gets all commands that were sent before.
    pub fn link(&self, is_linked: bool) {
        if self.is_linked.replace(is_linked) {
            self.catch_up(|_| !is_linked);
        }
    }

    /// Returns the follower's data, and the time of the first command that it lacks.
    ///
    /// The follower has the commands that were sent until `lag_us` microseconds ago, or until the
    /// link failed.
    pub fn end(self, now_us: u64, lag_us: u64) -> (Data, Option<u64>) {
        if self.is_linked.get() {
            self.catch_up(|ran| ran.at_us + lag_us < now_us);
        }
        let lost_us = self.behind.borrow().front().map(|ran| ran.at_us);
        (self.server.data.take(), lost_us)
    }

    /// Runs the next commands on the follower, as long as `is_wanted` accepts them.
    fn catch_up(&self, is_wanted: impl Fn(&Ran) -> bool) {
        loop {
            let next = {
                let mut behind = self.behind.borrow_mut();
                match behind.front() {
                    Some(ran) if is_wanted(ran) => behind.pop_front(),
                    _ => None,
                }
            };
            let Some(ran) = next else {
                return;
            };
            self.server.is_full.set(ran.is_full);
            let _: Answer = self.server.execute(&ran.words, ran.at_us, false, 0);
            self.has.set(self.has.get() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_replica_has_the_earlier_writes() {
        let server = Server::alone("redis");
        server.follow(true);
        let add = |member: &str, at_us| {
            let words = ["SADD", "set", member].map(str::to_owned);
            assert_eq!(server.execute(&words, at_us, false, 1), Answer::Number(1));
        };
        add("1", 1_000_000);
        server.link_follower(false);
        add("2", 2_000_000);
        server.link_follower(false);
        assert_eq!(server.take_over(9_000_000, 0), Some(2_000_000));
        assert_eq!(server.members("set"), ["1".to_owned()].into());
    }
}
