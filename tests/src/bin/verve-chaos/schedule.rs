//! The faults and their times: rounds of faults.
//!
//! They depend on the seed alone, so that a run can be repeated.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// The number of hosts, and the number of reporters.
pub const REPLICAS: usize = 2;
/// The number of primaries of a cluster. Each has a replica.
pub const PRIMARIES: usize = 3;

/// The part that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Redis itself: a server, or a node of the cluster.
    Redis(usize),
    /// The slots of the cluster.
    Slots,
    /// The link to Redis that the second host and the second reporter use.
    RedisLink,
    /// Kafka itself.
    Kafka,
    /// The link to Kafka that all parts use.
    KafkaLink,
    /// One of the hosts.
    Host(usize),
    /// One of the reporters.
    Reporter(usize),
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL, and a restart at the end.
    Kill,
    /// SIGTERM, and a restart at the end.
    Stop,
    /// SIGSTOP, and SIGCONT at the end.
    Pause,
    /// All connections of a link end, and new ones end immediately.
    Cut,
    /// Nothing passes through a link.
    Hold,
    /// Some slots move to another node.
    Move,
}

/// One fault in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The affected part.
    pub part: Part,
    /// The kind of the fault.
    pub trouble: Trouble,
    /// When the fault begins, relative to the start of the round.
    pub after: Duration,
    /// How long the fault lasts, without the restart.
    pub lasts: Duration,
}

const OTHERS: [Part; 6] = [
    Part::Kafka,
    Part::KafkaLink,
    Part::Host(0),
    Part::Host(1),
    Part::Reporter(0),
    Part::Reporter(1),
];

/// The kind of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redis {
    /// One server.
    Server,
    /// A cluster: first three primaries, then their replicas.
    Cluster,
}

impl Redis {
    /// Returns the parts of Redis that may fail in the same round.
    ///
    /// These include at most one of a primary and its replica: with one replica, a cluster survives
    /// the loss of one of the two at a time.
    fn parts(self, rng: &mut Rng) -> Vec<Part> {
        match self {
            Self::Server => vec![Part::Redis(0), Part::RedisLink],
            // No node fails while slots move: Redis itself may then lose keys that are between two
            // nodes.
            Self::Cluster if rng.f64() < 0.3 => vec![Part::Slots],
            Self::Cluster => (0..PRIMARIES)
                .map(|primary| Part::Redis(primary + PRIMARIES * usize::from(rng.bool())))
                .collect(),
        }
    }
}

/// Returns the next round.
///
/// It has at most one fault of each part, and at least one in total.
pub fn round(redis: Redis, rng: &mut Rng) -> Vec<Fault> {
    loop {
        let parts = redis.parts(rng).into_iter().chain(OTHERS);
        let faults: Vec<Fault> = parts.filter_map(|part| fault(part, rng)).collect();
        if !faults.is_empty() {
            return faults;
        }
    }
}

fn fault(part: Part, rng: &mut Rng) -> Option<Fault> {
    let process = [
        Trouble::Kill,
        Trouble::Kill,
        Trouble::Stop,
        Trouble::Pause,
        Trouble::Pause,
    ];
    let link = [Trouble::Cut, Trouble::Hold];
    let (likely, trouble) = match part {
        Part::Slots => (1.0, Trouble::Move),
        Part::Redis(_) | Part::Host(_) | Part::Reporter(_) => (0.6, rng.choice(process)?),
        Part::Kafka => (0.3, rng.choice(process)?),
        Part::RedisLink | Part::KafkaLink => (0.4, rng.choice(link)?),
    };
    let after = Duration::from_millis(rng.u64(0..6_000));
    // The long faults exceed what others wait for: a lease of 6 s, and the 10 s in which Kafka must
    // acknowledge.
    let lasts = match (rng.f64() < 0.3, part) {
        (false, _) => rng.u64(100..3_000),
        (true, Part::Kafka | Part::KafkaLink) => rng.u64(10_500..13_000),
        (true, _) => rng.u64(7_000..9_000),
    };
    let lasts = Duration::from_millis(lasts);
    (rng.f64() < likely).then_some(Fault {
        part,
        trouble,
        after,
        lasts,
    })
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(n) => write!(f, "redis-{n}"),
            Self::Slots => f.write_str("slots"),
            Self::RedisLink => f.write_str("redis-link"),
            Self::Kafka => f.write_str("kafka"),
            Self::KafkaLink => f.write_str("kafka-link"),
            Self::Host(n) => write!(f, "host-{n}"),
            Self::Reporter(n) => write!(f, "reporter-{n}"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "killed",
            Self::Stop => "stopped",
            Self::Pause => "paused",
            Self::Cut => "cut",
            Self::Hold => "held",
            Self::Move => "moved",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(redis: Redis, seed: u64) -> Vec<Vec<Fault>> {
        let mut rng = Rng::with_seed(seed);
        (0..100).map(|_| round(redis, &mut rng)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_rounds_again() {
        assert_eq!(rounds(Redis::Server, 7), rounds(Redis::Server, 7));
        assert_ne!(rounds(Redis::Server, 7), rounds(Redis::Server, 8));
    }

    #[test]
    fn all_kinds_of_events_occur() {
        let server = [&OTHERS[..], &[Part::Redis(0), Part::RedisLink]].concat();
        let cluster = [&OTHERS[..], &[Part::Slots], &[0, 1, 2, 3, 4, 5].map(Part::Redis)].concat();
        for (redis, parts) in [(Redis::Server, server), (Redis::Cluster, cluster)] {
            let all: Vec<Fault> = rounds(redis, 1).concat();
            for part in parts {
                let troubles = match part {
                    Part::RedisLink | Part::KafkaLink => vec![Trouble::Cut, Trouble::Hold],
                    Part::Slots => vec![Trouble::Move],
                    _ => vec![Trouble::Kill, Trouble::Stop, Trouble::Pause],
                };
                for trouble in troubles {
                    let mut found = all.iter().filter(|f| f.part == part && f.trouble == trouble);
                    assert!(found.next().is_some(), "{part} is never {trouble}");
                }
            }
        }
    }

    #[test]
    fn one_of_a_primary_and_its_replica_is_left() {
        for round in rounds(Redis::Cluster, 1) {
            let nodes: Vec<usize> = round
                .iter()
                .filter_map(|fault| match fault.part {
                    Part::Redis(node) => Some(node % PRIMARIES),
                    _ => None,
                })
                .collect();
            assert!((0..PRIMARIES).all(|shard| nodes.iter().filter(|node| **node == shard).count() <= 1));
            let moves = round.iter().any(|fault| fault.part == Part::Slots);
            assert!(!moves || nodes.is_empty(), "{round:?}");
        }
    }
}
