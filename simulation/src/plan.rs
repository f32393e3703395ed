//! What happens in a simulation, by a seed: the parts, the requests and the faults.

use std::iter;

use fastrand::Rng;
use verve_counter_core::spooled::SpoolError;

use crate::endpoints::Mood;
use crate::redis::Link;

/// How fast clocks may drift.
///
/// Not at all, like a bad quartz, like a virtual machine that is paused now and then, and much
/// worse.
const DRIFTS_PPM: &[i64] = &[0, 200, -200, -5000, 20_000, -50_000];

/// The plan of a simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of the plan, which also determines all smaller choices of the run.
    pub seed: u64,
    /// The length of main windows, in seconds.
    pub window_seconds: u64,
    /// The lengths of longer windows, in main windows.
    pub longer: Vec<u64>,
    /// The number of sets per window.
    pub partitions: u16,
    /// The allowed lateness: how long late ids correct a window, in seconds.
    pub late_seconds: u64,
    /// How long a named counter without ids is reported, in seconds.
    pub idle_seconds: u64,
    /// The longest latency of a message, in milliseconds.
    pub latency_ms: u64,
    /// The longest additional time of a commit to Kafka, in milliseconds.
    pub commit_ms: u64,
    /// The edge hosts, each with its number of instances.
    ///
    /// 0 stands for a host that has a new instance for each request.
    pub machines: Vec<u8>,
    /// How fast the clock of each host drifts, in millionths.
    ///
    /// It runs ahead, or falls behind if this is negative. A host that is not listed has no drift.
    pub drifts_ppm: Vec<i64>,
    /// The number of Redis servers.
    ///
    /// Three servers are a cluster. A fourth one has no slots until it takes over.
    pub servers: usize,
    /// How servers have followers, if they have any.
    pub followed: Option<Followed>,
    /// Whether a server may restart without its data.
    pub may_lose: bool,
    /// The number of replicas of the reporter.
    pub replicas: usize,
    /// The number of named counters.
    pub counters: u8,
    /// How often a callback is tried, if there are callbacks.
    pub attempts: Option<u32>,
    /// How long there are requests and faults, in seconds.
    pub seconds: u64,
    /// The requests of the clients, in the order of time.
    pub requests: Vec<Request>,
    /// The faults.
    pub faults: Vec<Fault>,
}

/// How a server uses its follower.
#[derive(Clone, Copy, Debug)]
pub struct Followed {
    /// Whether an id is `ok` only once the follower has it.
    pub is_waited_for: bool,
    /// Whether `WAIT` behaves as since Redis 7.2.
    pub waits_for_own: bool,
}

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The time of the request, in milliseconds since the beginning.
    pub at_ms: u64,
    /// The machine that receives it.
    pub machine: usize,
    /// The instance on this machine.
    pub instance: u8,
    /// The id.
    pub id: i64,
    /// The named counter, if the request is for one.
    pub counter: Option<u8>,
    /// The endpoint of the callback, if the request asks for one.
    pub endpoint: Option<usize>,
    /// After how many milliseconds the client gives up, if it does.
    pub gives_up_ms: Option<u64>,
}

/// A fault that lasts for a time.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it begins, in milliseconds since the beginning.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// What fails.
    pub kind: Kind,
}

/// What can fail.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A server is unreachable.
    Redis(usize, Link),
    /// A server is full.
    Full(usize),
    /// A server restarts, with its data.
    Restart(usize),
    /// A server restarts, without its data.
    Lose(usize),
    /// A server is unreachable until its follower has taken over.
    ///
    /// The follower has what was written until this number of milliseconds before.
    TakeOver(usize, u64),
    /// Commands to a server do not arrive at its follower.
    Unfollowed(usize),
    /// The slot of one of the server's keys moves to another server, if there is one.
    Move(usize, usize),
    /// A machine reaches no server.
    Machine(usize, Link),
    /// The clock of a machine is set to this offset from the true time in milliseconds.
    ///
    /// The offset stays after the fault.
    Clock(usize, i64),
    /// An instance is killed.
    Instance(usize, u8),
    /// The disk of a machine fails.
    Disk(usize, SpoolError),
    /// A replica is killed, and restarted after the time.
    Replica(usize),
    /// A replica is paused.
    Pause(usize),
    /// A replica cannot reach Redis.
    ReplicaLink(usize, Link),
    /// Kafka is unreachable.
    Kafka(Link),
    /// An endpoint reacts differently to calls.
    Endpoint(usize, Mood),
}

/// The number of kinds of faults.
const KINDS: u32 = 16;
/// The limit of a follower's lag behind its server, in milliseconds.
const MOST_LAG_MS: u64 = 1000;
/// The number of endpoints. The first one is called for each report.
pub const ENDPOINTS: usize = 3;

impl Plan {
    /// Creates the plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let random = &mut random;
        let window_seconds = pick(random, &[5, 10, 30]);
        let machines: Vec<u8> = (0..random.usize(1..4)).map(|_| random.u8(0..3)).collect();
        let replicas = random.usize(1..4);
        let seconds = random.u64(60..400);
        // A plan contains only some kinds of faults: many at the same time hide what a few would
        // show.
        let kinds = random.u32(..1 << KINDS);
        let mut plan = Self {
            seed,
            window_seconds,
            longer: Vec::new(),
            partitions: pick(random, &[1, 1, 4]),
            late_seconds: pick(random, &[0, 5, 20]),
            idle_seconds: 0,
            latency_ms: pick(random, &[1, 1, 30]),
            commit_ms: pick(random, &[1, 50, 3000, 15_000]),
            drifts_ppm: Vec::new(),
            servers: pick(random, &[1, 1, 1, 3]),
            followed: None,
            may_lose: random.u8(..12) == 0,
            counters: pick(random, &[0, 0, 0, 0, 0, 0, 1, 2]),
            attempts: pick(random, &[None, None, None, None, None, None, Some(2), Some(20)]),
            requests: Vec::new(),
            faults: Vec::new(),
            machines,
            replicas,
            seconds,
        };
        if random.u8(..3) == 0 {
            plan.followed = Some(Followed {
                is_waited_for: random.u8(..4) > 0,
                waits_for_own: random.bool(),
            });
            if plan.servers == 3 {
                plan.servers = 4;
            }
        }
        let every_ms = random.u64(20..2000);
        let ids = random.i64(3..200);
        let give_up = random.u8(..4) == 0;
        let mut at_ms = 0;
        loop {
            at_ms += 1 + random.u64(..2 * every_ms);
            if at_ms >= seconds * 1000 {
                break;
            }
            let counter = (plan.counters > 0 && random.bool()).then(|| random.u8(..plan.counters));
            let asks = plan.attempts.is_some() && random.u8(..4) == 0;
            plan.requests.push(Request {
                at_ms,
                machine: random.usize(..plan.machines.len()),
                instance: random.u8(..8),
                id: random.i64(0..ids),
                counter,
                endpoint: asks.then(|| random.usize(..ENDPOINTS)),
                gives_up_ms: (give_up && random.u8(..4) == 0).then(|| random.u64(..3000)),
            });
        }
        let every_ms = random.u64(70..2_800);
        let longest_ms = pick(random, &[300, 3000, 15_000, 30_000]);
        let mut at_ms = 0;
        loop {
            at_ms += 1 + random.u64(..2 * every_ms);
            if kinds == 0 || at_ms >= seconds * 1000 {
                break;
            }
            let kind = random.u32(..KINDS);
            if kinds & (1 << kind) != 0 {
                let for_ms = 1 + random.u64(..longest_ms);
                let kind = plan.kind(random, kind);
                plan.faults.extend(kind.map(|kind| Fault { at_ms, for_ms, kind }));
            }
        }
        plan.idle_seconds = pick(random, &[10, 20, 3600]);
        let longer: &[u64] = pick(random, &[&[], &[], &[], &[], &[2], &[6], &[2, 6]]);
        plan.longer = longer.to_vec();
        if random.u8(..4) == 0 {
            let drifts = plan.machines.iter().map(|_| pick(random, DRIFTS_PPM));
            plan.drifts_ppm = drifts.collect();
        }
        plan
    }

    /// Returns the lengths of windows, in seconds, the main one first.
    pub fn lengths_seconds(&self) -> impl Iterator<Item = u64> + '_ {
        let longer = self.longer.iter();
        iter::once(self.window_seconds).chain(longer.map(|windows| windows * self.window_seconds))
    }

    /// Returns whether an id is `ok` only once the follower has it.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.followed.is_some_and(|followed| followed.is_waited_for)
    }

    /// Returns a fault of this kind, if it is possible in this plan.
    fn kind(&self, random: &mut Rng, kind: u32) -> Option<Kind> {
        let machine = random.usize(..self.machines.len());
        let replica = random.usize(..self.replicas);
        let link = pick(random, &[Link::Refused, Link::Silent, Link::Deaf]);
        let server = random.usize(..self.servers);
        Some(match kind {
            0 => Kind::Redis(server, link),
            1 => Kind::Full(server),
            2 => Kind::Restart(server),
            3 => Kind::Machine(machine, link),
            4 => Kind::Clock(machine, pick(random, &[0, 0, -3000, 2000, -60_000, 45_000, -4_000_000])),
            5 => Kind::Instance(machine, random.u8(..8)),
            6 => {
                let faults = [
                    SpoolError::DiskFull,
                    SpoolError::Locked("database is locked".to_owned()),
                    SpoolError::Broken("disk I/O error".to_owned()),
                ];
                Kind::Disk(machine, faults[random.usize(..faults.len())].clone())
            }
            7 => Kind::Replica(replica),
            8 => Kind::Pause(replica),
            9 => Kind::ReplicaLink(replica, link),
            10 => Kind::Kafka(link),
            11 => Kind::Move(server, random.usize(..1000)),
            12 if self.may_lose => Kind::Lose(server),
            13 if self.followed.is_some() => Kind::TakeOver(server, random.u64(..MOST_LAG_MS)),
            14 if self.followed.is_some() => Kind::Unfollowed(server),
            12..=14 => return None,
            _ => {
                let moods = [Mood::Link(link), Mood::Link(link), Mood::Status(500), Mood::Status(410)];
                Kind::Endpoint(random.usize(..ENDPOINTS), pick(random, &moods))
            }
        })
    }
}

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}
