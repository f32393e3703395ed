//! The world: Redis, Kafka, the clock and two reporters; and the moves that lead from one state of it to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use verve_protocol::{Report, Window, WindowLength, WindowRecord};

use super::super::ledger::Ledger;
use super::super::pending::Pending;
use super::requests::{Answer, Runner, Work};

/// Where ids are: two Redis, so that a window's sets are not removed at once.
pub const SERVERS: usize = 2;
/// From a window's first report on: how long late ids correct it.
pub const LATE: Duration = Duration::from_secs(1);
/// Far longer than the late period, so that no further window becomes due meanwhile.
pub const WINDOW_SECONDS: u32 = 60;

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub ids: u8,
    pub crashes: u8,
    pub expiries: u8,
    pub faults: u8,
    /// Each as long as the late period.
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

/// One state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub budget: Budget,
    pub fencing: bool,
    pub now_ms: u64,
    pub windows: Vec<Window>,
    pub lease: Option<(usize, u8)>,
    pub sets: BTreeMap<Window, [u64; SERVERS]>,
    /// What windows were counted by for the last time.
    pub closed: BTreeMap<Window, [u64; SERVERS]>,
    /// The windows that were closed, by server, though they may have had no ids there.
    pub closing: BTreeSet<(Window, usize)>,
    /// What came after windows were final.
    pub late: BTreeMap<Window, u64>,
    pub reports: BTreeMap<Window, Report>,
    pub pending: BTreeMap<Window, Pending>,
    pub epoch: u8,
    pub log: Vec<WindowRecord>,
    /// Sent by a reporter that has gone on since, and neither arrived nor refused yet.
    pub in_flight: Option<(u8, Vec<WindowRecord>)>,
    pub reporters: [Reporter; 2],
    /// What should come of it: ids ever added, and those of them in time.
    pub added: BTreeMap<Window, u64>,
    pub in_time: BTreeMap<Window, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reporter {
    /// How often it crashed: each life has another name in the lease.
    pub life: u8,
    /// As it was when the work began.
    pub ledger: Option<Ledger>,
    /// The producer's epoch, once the session has begun; then too.
    pub session: Option<u8>,
    pub work: Work,
    /// What its requests were answered since.
    pub answers: Vec<Answer>,
    /// Of windows that are being closed, the next of the servers, and what was counted so far.
    pub closing: Option<(usize, Vec<u64>)>,
}

/// What a reporter's next request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was done, but the answer is lost.
    AnswerLost,
    /// It was not done.
    Refused,
    /// It is still under way when the reporter notices that it lost the lease.
    Abandoned,
}

/// From one state to another.
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
    /// As many windows as that are due, of one id each, and nobody has reported.
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

    /// What can happen now.
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

    /// The state after a move; `None` if it changes nothing.
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

    /// Time passes, as long as the late period.
    pub fn tick(&mut self) {
        self.now_ms += 1000;
    }

    /// The reporter's process ends, and is started anew.
    pub fn restart(&mut self, i: usize) {
        self.reporters[i] = Reporter {
            life: self.reporters[i].life + 1,
            ..Reporter::default()
        };
    }

    /// The lease runs out.
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

    /// Gives up the lease, and knows what it knew.
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

    /// Kafka takes records, unless a newer session has begun.
    pub fn produce(&mut self, epoch: u8, records: &[WindowRecord]) -> bool {
        let taken = epoch == self.epoch || !self.fencing;
        if taken {
            self.log.extend(records);
        }
        taken
    }
}
