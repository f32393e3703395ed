//! The world: Redis, Kafka, the clock and two reporters, and its moves.
//!
//! A move leads from one state of the world to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::{Report, Window, WindowLength, WindowRecord};

use super::super::ledger::Ledger;
use super::super::pending::Pending;
use super::requests::{Answer, Runner, Work};

/// The number of Redis servers with ids.
/// There are two, so that a window's sets are not closed in one step.
pub const SERVERS: usize = 2;
/// The allowed lateness: how long after its first report late ids correct a window.
pub const LATE: Duration = Duration::from_secs(1);
/// Far longer than the allowed lateness, so that no further window becomes due.
pub const WINDOW_SECONDS: u32 = 60;

/// How often each event may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub ids: u8,
    pub crashes: u8,
    pub expiries: u8,
    pub faults: u8,
    /// Each tick is as long as the allowed lateness.
    pub ticks: u8,
}

impl Budget {
    pub const FEW: Self = Self {
        ids: 1,
        crashes: 0,
        expiries: 1,
        faults: 0,
        ticks: 2,
    };
}

/// One state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub budget: Budget,
    pub fencing: bool,
    pub now_ms: u64,
    pub windows: Vec<Window>,
    pub lease: Option<(usize, u8)>,
    pub sets: BTreeMap<Window, [u64; SERVERS]>,
    /// The closed sets of windows, which were counted for the last time.
    pub closed: BTreeMap<Window, [u64; SERVERS]>,
    /// The closed windows by server, even if they had no ids there.
    pub closing: BTreeSet<(Window, usize)>,
    /// How many ids came after windows were final.
    pub late: BTreeMap<Window, u64>,
    pub reports: BTreeMap<Window, Report>,
    pub pending: BTreeMap<Window, Pending>,
    pub epoch: u8,
    pub log: Vec<WindowRecord>,
    /// Records of a reporter that has gone on since, neither accepted nor refused yet.
    pub in_flight: Option<(u8, Vec<WindowRecord>)>,
    pub reporters: [Reporter; 2],
    /// The expected result: all ids ever added, and those added in time.
    pub added: BTreeMap<Window, u64>,
    pub in_time: BTreeMap<Window, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reporter {
    /// How often it crashed. Each life has another name in the lease.
    pub life: u8,
    /// The ledger when the work began.
    pub ledger: Option<Ledger>,
    /// The producer's epoch when the work began, if the session had begun.
    pub session: Option<u8>,
    pub work: Work,
    /// The answers to its requests since then.
    pub answers: Vec<Answer>,
    /// While windows are being closed: the next server, and the counts so far.
    pub closing: Option<(usize, Vec<u64>)>,
}

/// The outcome of a reporter's next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was done, but the answer is lost.
    AnswerLost,
    /// It was not done.
    Refused,
    /// It is still in progress when the reporter notices that it lost the lease.
    Abandoned,
}

/// A step from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Request(usize, Outcome),
    Sweep(usize),
    NoticeLoss(usize),
    Crash(usize),
    Expire,
    Arrive,
    Tick,
    Id(Window, usize),
}

impl World {
    /// Creates a world with this many due windows of one id each, none reported.
    pub fn new(windows: usize, budget: Budget, fencing: bool) -> Self {
        let length = WindowLength::try_new(WINDOW_SECONDS).expect("valid");
        let first = length.window_at_ms(600_000);
        let windows: Vec<Window> = std::iter::successors(Some(first), |window| Some(window.next()))
            .take(windows)
            .collect();
        let each = |n: u64| windows.iter().map(|window| (*window, n)).collect();
        Self {
            budget,
            fencing,
            now_ms: windows.last().map_or(0, |last| last.end_ms()),
            lease: None,
            sets: windows.iter().map(|window| (*window, [1, 0])).collect(),
            closed: BTreeMap::new(),
            closing: BTreeSet::new(),
            late: BTreeMap::new(),
            reports: BTreeMap::new(),
            pending: BTreeMap::new(),
            epoch: 0,
            log: Vec::new(),
            in_flight: None,
            reporters: Default::default(),
            added: each(1),
            in_time: each(1),
            windows,
        }
    }

    /// Returns the moves that are possible now.
    pub fn moves(&self) -> Vec<Move> {
        let Budget {
            ids,
            crashes,
            expiries,
            faults,
            ticks,
        } = self.budget;
        let mut moves = Vec::new();
        for (i, reporter) in self.reporters.iter().enumerate() {
            moves.push(Move::Request(i, Outcome::Done));
            if reporter.work == Work::Acquire {
                continue;
            }
            if reporter.work == Work::Turn && reporter.answers.is_empty() {
                moves.push(Move::Sweep(i));
            }
            if !self.leads(i) {
                moves.push(Move::NoticeLoss(i));
                moves.push(Move::Request(i, Outcome::Abandoned));
            }
            if faults > 0 {
                moves.push(Move::Request(i, Outcome::AnswerLost));
                moves.push(Move::Request(i, Outcome::Refused));
            }
            if crashes > 0 {
                moves.push(Move::Crash(i));
            }
        }
        if expiries > 0 && self.lease.is_some() {
            moves.push(Move::Expire);
        }
        if self.in_flight.is_some() {
            moves.push(Move::Arrive);
        }
        if ticks > 0 {
            moves.push(Move::Tick);
        }
        if ids > 0 {
            let places = self
                .windows
                .iter()
                .flat_map(|window| (0..SERVERS).map(|server| (*window, server)));
            moves.extend(places.map(|(window, server)| Move::Id(window, server)));
        }
        moves
    }

    /// Returns the state after a move, or `None` if the move changes nothing.
    pub fn after(&self, chosen: Move, runner: &Runner) -> Option<Self> {
        let mut world = self.clone();
        match chosen {
            Move::Request(i, outcome) => world.request(i, outcome, runner),
            Move::Sweep(i) => world.sweep(i, runner),
            Move::NoticeLoss(i) => world.stand_down(i),
            Move::Crash(i) => {
                world.budget.crashes -= 1;
                world.restart(i);
            }
            Move::Expire => {
                world.budget.expiries -= 1;
                world.lease = None;
            }
            Move::Arrive => {
                let (epoch, records) = world.in_flight.take()?;
                world.produce(epoch, &records);
            }
            Move::Tick => {
                world.budget.ticks -= 1;
                world.tick();
            }
            Move::Id(window, server) => {
                world.budget.ids -= 1;
                world.add(window, server);
            }
        }
        (world != *self).then_some(world)
    }

    /// Advances the time by the allowed lateness.
    pub fn tick(&mut self) {
        self.now_ms += 1000;
    }

    /// Ends the reporter's process, and starts it again.
    pub fn restart(&mut self, i: usize) {
        self.reporters[i] = Reporter {
            life: self.reporters[i].life + 1,
            ..Reporter::default()
        };
    }

    /// Lets the lease expire.
    pub fn expire(&mut self) {
        self.lease = None;
    }

    fn add(&mut self, window: Window, server: usize) {
        self.sets.entry(window).or_default()[server] += 1;
        *self.added.entry(window).or_default() += 1;
        if self.now_ms < window.end_ms() + 1000 {
            *self.in_time.entry(window).or_default() += 1;
        }
    }

    pub fn name(&self, i: usize) -> (usize, u8) {
        (i, self.reporters[i].life)
    }

    pub fn leads(&self, i: usize) -> bool {
        self.lease == Some(self.name(i))
    }

    /// Gives up the lease. The reporter keeps its ledger.
    pub fn stand_down(&mut self, i: usize) {
        if self.leads(i) {
            self.lease = None;
        }
        let reporter = &mut self.reporters[i];
        reporter.session = None;
        reporter.closing = None;
        reporter.work = Work::Acquire;
        reporter.answers.clear();
    }

    /// Adds records to Kafka, unless a newer session has begun.
    pub fn produce(&mut self, epoch: u8, records: &[WindowRecord]) -> bool {
        let taken = epoch == self.epoch || !self.fencing;
        if taken {
            self.log.extend(records);
        }
        taken
    }
}
