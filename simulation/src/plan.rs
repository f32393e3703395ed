//! What happens in a simulation: who is there, what clients ask for and what fails, all by a seed.

use fastrand::Rng;
use verve_counter_core::spooled::SpoolError;

use crate::endpoints::Mood;
use crate::redis::Link;

/// A simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it follows from, and what decides about everything smaller.
    pub seed: u64,
    /// The length of windows.
    pub window_seconds: u64,
    /// How many sets a window has.
    pub partitions: u16,
    /// How long late ids correct a window.
    pub late_seconds: u64,
    /// How long a message takes at most, in milliseconds.
    pub latency_ms: u64,
    /// How much longer Kafka takes to commit, at most.
    pub commit_ms: u64,
    /// The edge hosts; each says how many instances it has, none for one that has a new one for each request.
    pub machines: Vec<u8>,
    /// How many Redis servers there are: more than one are a cluster.
    pub servers: usize,
    /// How the one server is followed by another, if it is.
    pub followed: Option<Followed>,
    /// Whether a server may come back without its data.
    pub may_lose: bool,
    /// How many replicas of the reporter there are.
    pub replicas: usize,
    /// How many named counters there are.
    pub counters: u8,
    /// How often a callback is tried, if there are callbacks.
    pub attempts: Option<u32>,
    /// For how long there are requests and faults.
    pub seconds: u64,
    /// What clients ask for, in the order of time.
    pub requests: Vec<Request>,
    /// What fails.
    pub faults: Vec<Fault>,
}

/// How a server is followed by another one.
#[derive(Clone, Copy, Debug)]
pub struct Followed {
    /// Whether an id is `ok` only once that has it.
    pub is_waited_for: bool,
    /// Whether `WAIT` is that of Redis since 7.2.
    pub waits_for_own: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When, in milliseconds since the beginning.
    pub at_ms: u64,
    /// Which machine.
    pub machine: usize,
    /// Which of its instances.
    pub instance: u8,
    /// The id.
    pub id: i64,
    /// Which named counter it is of, if it is of one.
    pub counter: Option<u8>,
    /// Which endpoint it asks to be called, if it does.
    pub endpoint: Option<usize>,
    /// After how many milliseconds the client gives up, if it does.
    pub gives_up_ms: Option<u64>,
}

/// Something fails for a time.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When, in milliseconds since the beginning.
    pub at_ms: u64,
    /// For how long.
    pub for_ms: u64,
    /// What.
    pub kind: Kind,
}

/// What can fail.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A server cannot be reached.
    Redis(usize, Link),
    /// A server is full.
    Full(usize),
    /// A server is started again, with its data.
    Restart(usize),
    /// A server is started again, without its data.
    Lose(usize),
    /// A server is away until the one that follows it has taken its place, which has what was written until so many milliseconds before.
    TakeOver(usize, u64),
    /// What a server is asked for does not come to the one that follows it.
    Unfollowed(usize),
    /// The slot of one of its keys moves to another server, if there is one.
    Move(usize, usize),
    /// A machine reaches no server.
    Machine(usize, Link),
    /// The clock of a machine is set, to so many milliseconds from the true time. It stays so.
    Clock(usize, i64),
    /// An instance is killed.
    Instance(usize, u8),
    /// The disk of a machine fails.
    Disk(usize, SpoolError),
    /// A replica is killed, and started again after the time.
    Replica(usize),
    /// A replica is paused.
    Pause(usize),
    /// A replica does not reach Redis.
    ReplicaLink(usize, Link),
    /// Kafka cannot be reached.
    Kafka(Link),
    /// An endpoint answers otherwise.
    Endpoint(usize, Mood),
}

/// How many kinds there are.
const KINDS: u32 = 16;
/// How far a server is behind the one that it follows, at most.
const MOST_LAG_MS: u64 = 1000;
/// How many endpoints there are, the first of which is called for each report.
pub const ENDPOINTS: usize = 3;

impl Plan {
    /// What happens with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let random = &mut random;
        let window_seconds = pick(random, &[5, 10, 30]);
        let machines: Vec<u8> = (0..random.usize(1..4)).map(|_| random.u8(0..3)).collect();
        let replicas = random.usize(1..4);
        let seconds = random.u64(60..400);
        // Of each kind or not: many at once hide what few show.
        let kinds = random.u32(..1 << KINDS);
        let mut plan = Self {
            seed,
            window_seconds,
            partitions: pick(random, &[1, 1, 4]),
            late_seconds: pick(random, &[0, 5, 20]),
            latency_ms: pick(random, &[1, 1, 30]),
            commit_ms: pick(random, &[1, 50, 3000]),
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
        if plan.servers == 1 && random.u8(..3) == 0 {
            plan.followed = Some(Followed {
                is_waited_for: random.u8(..4) > 0,
                waits_for_own: random.bool(),
            });
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
            let asks = plan.attempts.is_some() && counter.is_none() && random.u8(..4) == 0;
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
        plan
    }

    /// Whether an id is `ok` only once another server has it.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.followed.is_some_and(|followed| followed.is_waited_for)
    }

    /// What fails, if that can here.
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
