//! The faults of a plan: how they begin and end.

use std::rc::Rc;
use std::time::Duration;

use verve_protocol::slot::slot;

use super::{FOUND_OUT, Run, process};
use crate::endpoints::Mood;
use crate::plan::{Fault, Kind};
use crate::redis::{Link, Server};
use crate::verdict::{Loss, Wrong};

impl Run {
    /// Begins a fault, and schedules its end.
    pub(super) fn begin(self: &Rc<Self>, fault: Fault) {
        self.world.note(|| format!("for {} ms: {:?}", fault.for_ms, fault.kind));
        let servers = &self.world.servers;
        match &fault.kind {
            Kind::Redis(server, link) => self.take_away(*server, *link),
            Kind::Full(server) => servers[*server].is_full.set(true),
            Kind::Restart(server) => self.take_away(*server, Link::Refused),
            Kind::Lose(server) if !servers[*server].has_slots() => return,
            Kind::Lose(server) => {
                servers[*server].restart(true);
                self.take_away(*server, Link::Refused);
                self.follow(&servers[*server]);
                self.lose(0, true);
            }
            Kind::TakeOver(server, lag_ms) => {
                let (now_us, lag_us) = (self.world.now_us(), lag_ms * 1000);
                let lost_us = if servers.len() == 1 {
                    servers[*server].take_over(now_us, lag_us)
                } else {
                    let spare = servers.iter().find(|other| !other.has_slots());
                    let old = &servers[*server];
                    let may = old.has_slots() && old.has_follower() && old.moving().is_none();
                    let Some(spare) = spare.filter(|_| may) else {
                        return;
                    };
                    old.take_over_at(spare, now_us, lag_us)
                };
                self.take_away(*server, Link::Refused);
                if let Some(lost_us) = lost_us {
                    self.lose(lost_us / 1000, !self.plan.is_waited_for());
                }
            }
            Kind::Unfollowed(server) => servers[*server].link_follower(false),
            Kind::Move(server, key) => self.begin_to_move(*server, *key),
            Kind::Machine(machine, link) => self.machines[*machine].set_link(*link),
            Kind::Clock(machine, offset_ms) => return self.machines[*machine].set_clock(*offset_ms),
            Kind::Instance(machine, instance) => {
                let instances = self.plan.machines[*machine];
                if instances > 0 {
                    let instance = instance % instances;
                    self.instances.borrow_mut().remove(&(*machine, instance));
                    self.world.executor.kill(process(*machine, instance));
                }
                return;
            }
            Kind::Disk(machine, error) => self.machines[*machine].set_disk_fault(Some(error.clone())),
            Kind::Replica(replica) => self.replicas[*replica].kill(),
            Kind::Pause(replica) => self.replicas[*replica].pause(true),
            Kind::ReplicaLink(replica, link) => self.replicas[*replica].link.set(*link),
            Kind::Kafka(link) => self.broker.link.set(*link),
            Kind::Endpoint(host, mood) => self.endpoints.set(*host, *mood),
        }
        let run = self.clone();
        self.world
            .executor
            .after(Duration::from_millis(fault.for_ms), move || run.end(&fault.kind));
    }

    /// Ends a fault.
    fn end(&self, kind: &Kind) {
        let servers = &self.world.servers;
        match kind {
            Kind::Redis(server, _) | Kind::Lose(server) => self.bring_back(*server),
            Kind::Full(server) => servers[*server].is_full.set(false),
            Kind::Restart(server) => {
                servers[*server].restart(false);
                self.bring_back(*server);
            }
            Kind::TakeOver(server, _) => {
                self.bring_back(*server);
                servers
                    .iter()
                    .filter(|server| !server.has_follower())
                    .for_each(|server| self.follow(server));
            }
            Kind::Unfollowed(server) => servers[*server].link_follower(true),
            Kind::Move(..) => self.finish_move(),
            Kind::Machine(machine, _) => self.machines[*machine].set_link(Link::Up),
            Kind::Clock(..) | Kind::Instance(..) => {}
            Kind::Disk(machine, _) => self.machines[*machine].set_disk_fault(None),
            Kind::Replica(replica) => self.replicas[*replica].restart(),
            Kind::Pause(replica) => self.replicas[*replica].pause(false),
            Kind::ReplicaLink(replica, _) => self.replicas[*replica].link.set(Link::Up),
            Kind::Kafka(_) => self.broker.link.set(Link::Up),
            Kind::Endpoint(host, _) => self.endpoints.set(*host, Mood::Link(Link::Up)),
        }
    }

    /// Makes a server unreachable.
    ///
    /// A replica that has no other server must report that after a while.
    fn take_away(self: &Rc<Self>, server: usize, link: Link) {
        self.world.servers[server].link.set(link);
        let since = self.away[server].get().unwrap_or(self.world.executor.now());
        self.away[server].set(Some(since));
        // In a cluster, the replica may still have the other servers.
        if self.away.len() > 1 {
            return;
        }
        let run = self.clone();
        let check = move || {
            if run.away[server].get() == Some(since) {
                let has_problems = |problems: &[String]| !problems.is_empty();
                run.check_problems(has_problems, "reports no problem while Redis is unreachable");
            }
        };
        self.world.executor.after(FOUND_OUT, check);
    }

    fn bring_back(&self, server: usize) {
        self.world.servers[server].link.set(Link::Up);
        self.away[server].set(None);
    }

    /// Checks what replicas report about themselves.
    ///
    /// Only replicas that have run undisturbed for a while are checked.
    pub(super) fn check_problems(&self, is_so: impl Fn(&[String]) -> bool, what: &str) {
        for (number, replica) in self.replicas.iter().enumerate() {
            if let Some(problems) = replica.problems(FOUND_OUT).filter(|problems| !is_so(problems)) {
                let problems = problems.join("; ");
                let what = format!(
                    "{}: replica {number} {what}: {problems}",
                    self.world.executor.now().as_secs()
                );
                self.wrong.borrow_mut().push(Wrong::general(what));
            }
        }
    }

    /// Gives a server a new follower, if the plan has followers.
    pub(super) fn follow(&self, server: &Server) {
        if let Some(followed) = self.plan.followed {
            server.follow(followed.waits_for_own);
        }
    }

    /// Records that what was written since a time, in Unix milliseconds, is lost.
    ///
    /// If `has_ids`, this may include ids that were answered `ok`.
    fn lose(&self, from_ms: u64, has_ids: bool) {
        self.world.note(|| format!("what was written since {from_ms} is lost"));
        self.losses.borrow_mut().push(Loss {
            from_ms,
            at_ms: self.world.now_us() / 1000,
            has_ids,
        });
    }

    /// Begins to move the slot of a key to another server, unless one is moving.
    fn begin_to_move(&self, server: usize, key: usize) {
        let servers = &self.world.servers;
        let mut others = servers.iter().cycle().skip(server + 1).take(servers.len() - 1);
        let Some(to) = others.find(|other| other.has_slots()) else {
            return;
        };
        let from = &servers[server];
        let keys: Vec<String> = from.entries().into_keys().filter(|key| from.owns(key)).collect();
        if servers.len() > 1 && from.moving().is_none() && !keys.is_empty() {
            from.begin_to_move(slot(&keys[key % keys.len()]), to);
        }
    }

    /// Finishes the move of a slot.
    fn finish_move(&self) {
        let servers = &self.world.servers;
        if let Some((slot, to)) = servers[0].moving()
            && let Some(from) = servers.iter().find(|server| server.has_slot(slot))
        {
            from.move_slot(slot, &servers[to]);
        }
    }

    /// Ends all faults.
    pub(super) fn mend(&self) {
        self.finish_move();
        for (number, server) in self.world.servers.iter().enumerate() {
            self.bring_back(number);
            server.is_full.set(false);
            server.link_follower(true);
        }
        self.broker.link.set(Link::Up);
        self.endpoints.mend();
        for machine in &self.machines {
            machine.set_link(Link::Up);
            machine.set_disk_fault(None);
            machine.set_drift(0);
            machine.set_clock(0);
        }
        for replica in &self.replicas {
            replica.link.set(Link::Up);
            replica.restart();
        }
    }
}
