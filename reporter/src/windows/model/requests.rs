//! The reporters' requests, and how Redis and Kafka answer them.
//!
//! The leader's own code makes the requests. The answers are the model of the scripts.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult};
use tokio_util::sync::CancellationToken;
use verve_protocol::{Partitions, Report, Window, WindowLength, WindowRecord};

use super::super::ended::Ended;
use super::super::leader::{Leader, Leading};
use super::super::ledger::{Ledger, Orphaned, PendingRevision, RecordedRevision, Stored};
use super::super::pending::Pending;
use super::super::ports::{Held, ReportStore, Swept};
use super::super::sweeps::{SweepThrottle, Sweeps};
use super::super::{KeepReports, WindowsConfig};
use super::world::{LATE, Outcome, SERVERS, WINDOW_SECONDS, World};
use crate::clock::RedisClock;
use crate::health::Health;
use crate::kafka::{Begun, CounterRecord, Publish, Unpublished};
use crate::metrics::Metrics;
use crate::periods::Periods;

/// The current work of a reporter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Work {
    /// It waits for the lease.
    #[default]
    Acquire,
    /// It loads the state to resume from.
    Resume,
    /// It runs an iteration of its loop.
    Turn,
    /// It handles the findings of a search.
    /// These are revisions of windows with ids that came too late, and windows that were never
    /// reported.
    Found(Vec<PendingRevision>, Vec<Window>),
}

/// A request of a reporter.
#[derive(Clone, Debug)]
enum Request {
    Clock,
    /// Loads all reports except final ones, and the reports of these windows.
    Load(BTreeSet<Window>),
    Count(Vec<Window>),
    Close(Vec<Window>),
    Prepare(Vec<WindowRecord>),
    Record(Vec<RecordedRevision>),
    Finish(Vec<(Window, Report)>),
    Remove(Vec<Window>),
    Begin,
    Publish(Vec<WindowRecord>),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Clock(u64),
    Stored(Stored),
    Counts(Vec<u64>),
    Done,
    /// Nothing was done, since the reporter does not hold the lease.
    LeaseLost,
    Begun(u8),
    Fenced,
    /// There is no answer, or it is an error.
    Failed,
}

/// Redis and Kafka, as a reporter sees them.
/// The reporter first gets the answers that it has received before, and then makes a request.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Exchange>>);

#[derive(Default)]
struct Exchange {
    answers: VecDeque<Answer>,
    request: Option<Request>,
}

impl Asked {
    async fn ask(&self, request: Request) -> Answer {
        let answer = {
            let mut exchange = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = exchange.answers.pop_front();
            if answer.is_none() {
                exchange.request = Some(request);
            }
            answer
        };
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// Makes a request that is served only with the lease.
    async fn ask_as_leader(&self, request: Request) -> Result<(), Ended> {
        match self.ask(request).await {
            Answer::Done => Ok(()),
            Answer::LeaseLost => Err(Ended::LeaseLost),
            other => Err(failed(&other).into()),
        }
    }
}

fn failed(answer: &Answer) -> RedisError {
    assert_eq!(*answer, Answer::Failed, "another answer than what was asked for");
    RedisError::from((ErrorKind::Io, "lost"))
}

/// A lease that nobody takes away: only the world knows who holds it.
struct ModelLease;

impl Held for ModelLease {
    fn is_held(&self) -> bool {
        true
    }
}

impl ReportStore for Asked {
    type Lease = ModelLease;

    async fn clock(&self) -> RedisResult<RedisClock> {
        match self.ask(Request::Clock).await {
            Answer::Clock(now_ms) => Ok(RedisClock::stopped(now_ms)),
            other => Err(failed(&other)),
        }
    }

    async fn sleep(&self, _: Duration) {}

    async fn load(&self, known: Option<&Ledger>, _: u64) -> RedisResult<Stored> {
        let known = known.map(Ledger::known).unwrap_or_default();
        match self.ask(Request::Load(known.into_iter().collect())).await {
            Answer::Stored(stored) => Ok(stored),
            other => Err(failed(&other)),
        }
    }

    async fn reopen(&self, _: &ModelLease, _: &Stored, _: &[Window]) -> Result<(), Ended> {
        unreachable!("no clock is ahead")
    }

    async fn keep(&self, _: &Ledger, _: u64) -> RedisResult<()> {
        Ok(())
    }

    async fn counts(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        match self.ask(Request::Count(windows.to_vec())).await {
            Answer::Counts(counts) => Ok(counts),
            other => Err(failed(&other)),
        }
    }

    async fn close(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        match self.ask(Request::Close(windows.to_vec())).await {
            Answer::Counts(counts) => Ok(counts),
            other => Err(failed(&other)),
        }
    }

    async fn records(&self, revisions: &[PendingRevision]) -> RedisResult<Vec<WindowRecord>> {
        let record = |revision: &PendingRevision| WindowRecord {
            window: revision.window,
            count: revision.count,
            revision: revision.revision,
            requests: 0,
            duplicates: 0,
            late: revision.late,
        };
        Ok(revisions.iter().map(record).collect())
    }

    async fn prepare(&self, _: &ModelLease, records: &[WindowRecord]) -> Result<(), Ended> {
        if records.is_empty() {
            return Ok(());
        }
        self.ask_as_leader(Request::Prepare(records.to_vec())).await
    }

    async fn record(&self, _: &ModelLease, changes: &[RecordedRevision]) -> Result<(), Ended> {
        self.ask_as_leader(Request::Record(changes.to_vec())).await
    }

    async fn finish(&self, _: &ModelLease, finals: &[(Window, Report)]) -> Result<(), Ended> {
        self.ask_as_leader(Request::Finish(finals.to_vec())).await
    }

    async fn remove(&self, windows: &[Window]) -> RedisResult<()> {
        match self.ask(Request::Remove(windows.to_vec())).await {
            Answer::Done => Ok(()),
            other => Err(failed(&other)),
        }
    }

    async fn retire(&self, _: &ModelLease, _: u64, _: Window) -> Result<(), Ended> {
        unreachable!("the counter has no name")
    }

    async fn sweep(&self, _: &Ledger, _: u64) -> Swept {
        unreachable!("a move of its own")
    }
}

/// A Kafka session: its epoch, once it has begun.
struct Session {
    epoch: Option<u8>,
    asked: Asked,
}

impl Publish for Session {
    async fn begin(&mut self) -> Result<Begun, Unpublished> {
        if self.epoch.is_some() {
            return Ok(Begun::Before);
        }
        match self.asked.ask(Request::Begin).await {
            Answer::Begun(epoch) => {
                self.epoch = Some(epoch);
                Ok(Begun::Now)
            }
            _ => Err(Unpublished::Away),
        }
    }

    async fn publish(&mut self, records: &[CounterRecord]) -> Result<(), Unpublished> {
        let Some(epoch) = self.epoch.take() else {
            return Err(Unpublished::Away);
        };
        match self
            .asked
            .ask(Request::Publish(records.iter().map(|of| of.record).collect()))
            .await
        {
            Answer::Done => {
                self.epoch = Some(epoch);
                Ok(())
            }
            Answer::Fenced => Err(Unpublished::Fenced),
            _ => Err(Unpublished::Away),
        }
    }
}

/// How far a reporter gets with the answers that it has.
enum Ran {
    /// Up to this request.
    Asks(Request),
    /// To the end of its work, with its ledger and its session's epoch then.
    Done(Option<Box<Ledger>>, Option<u8>),
    Ended,
}

/// Runs the leader's code.
pub struct Runner {
    leader: Leader<Asked>,
    asked: Asked,
    stop: CancellationToken,
}

impl Runner {
    pub fn new() -> Self {
        let asked = Asked::default();
        let leader = Leader {
            config: WindowsConfig {
                length: WindowLength::try_new(WINDOW_SECONDS).expect("valid"),
                is_main: true,
                grace: Duration::ZERO,
                late: LATE,
                idle: Duration::ZERO,
                keep_reports: KeepReports::default(),
                callback: None,
                periods: Periods::default(),
            },
            report_store: Arc::new(asked.clone()),
            health: Arc::new(Health::new(Duration::ZERO)),
            metrics: Metrics::default().windows(None, None),
            counter: None,
            partitions: Partitions::default(),
            throttle: SweepThrottle::at_rest(),
            used: None,
        };
        Self {
            leader,
            asked,
            stop: CancellationToken::new(),
        }
    }

    /// Runs a reporter's work from its beginning, until an answer is missing.
    fn run(&self, world: &World, i: usize) -> Ran {
        let reporter = &world.reporters[i];
        {
            let mut exchange = self.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
            exchange.answers = reporter.answers.iter().cloned().collect();
            exchange.request = None;
        }
        let mut ledger = reporter.ledger.clone();
        let session = Session {
            epoch: reporter.session,
            asked: self.asked.clone(),
        };
        let mut leading = Leading::new(session, RedisClock::stopped(0));
        let done = {
            let work = pin!(self.work(&reporter.work, &mut ledger, &mut leading));
            match work.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            }
        };
        match done {
            None => {
                let mut exchange = self.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
                Ran::Asks(exchange.request.take().expect("it waits for an answer"))
            }
            Some(Ok(())) => Ran::Done(ledger.map(Box::new), leading.session.epoch),
            Some(Err(_)) => Ran::Ended,
        }
    }

    async fn work(
        &self,
        work: &Work,
        ledger: &mut Option<Ledger>,
        leading: &mut Leading<Session>,
    ) -> Result<(), Ended> {
        match work {
            Work::Acquire => Ok(()),
            Work::Resume => {
                let clock = self.asked.clock().await?;
                let resumed = self.leader.resume(&ModelLease, ledger.as_ref(), clock.now_ms()).await?;
                *ledger = Some(resumed);
                Ok(())
            }
            Work::Turn => {
                let ledger = ledger.as_mut().expect("a leader has loaded");
                self.leader.turn(&ModelLease, ledger, leading, &self.stop).await
            }
            Work::Found(revisions, unreported) => {
                let ledger = ledger.as_mut().expect("a leader has loaded");
                let swept = Swept {
                    revisions: revisions.clone(),
                    unreported: unreported.clone(),
                    ..Swept::default()
                };
                self.leader
                    .swept(&ModelLease, ledger, &mut Sweeps::default(), swept)
                    .await
            }
        }
    }
}

impl World {
    /// Serves the next request of a reporter, and runs the reporter with the answer.
    pub fn request(&mut self, i: usize, outcome: Outcome, runner: &Runner) {
        if matches!(outcome, Outcome::AnswerLost | Outcome::Refused) {
            self.budget.faults -= 1;
        }
        if self.reporters[i].work == Work::Acquire {
            if self.lease.is_none() {
                self.lease = Some(self.name(i));
                self.reporters[i].work = Work::Resume;
            }
            return;
        }
        let Some(request) = self.asks(i, runner) else {
            return;
        };
        match self.serve(i, request, outcome) {
            _ if outcome == Outcome::Abandoned => return self.stand_down(i),
            Some(answer) => self.reporters[i].answers.push(answer),
            None => return,
        }
        let ran = runner.run(self, i);
        self.settle(i, ran);
    }

    /// Runs a reporter up to its next request.
    /// Returns `None` if it reaches the end of its work before.
    fn asks(&mut self, i: usize, runner: &Runner) -> Option<Request> {
        let reporter = &mut self.reporters[i];
        if reporter.answers.is_empty() && matches!(reporter.work, Work::Resume | Work::Turn) {
            reporter.answers.push(Answer::Clock(self.now_ms));
        }
        let ran = runner.run(self, i);
        self.settle(i, ran)
    }

    /// Gives a reporter its next work if it has reached the end of the last one.
    fn settle(&mut self, i: usize, ran: Ran) -> Option<Request> {
        match ran {
            Ran::Asks(request) => return Some(request),
            Ran::Done(ledger, session) => {
                let reporter = &mut self.reporters[i];
                (reporter.ledger, reporter.session) = (ledger.map(|ledger| *ledger), session);
                reporter.work = Work::Turn;
                reporter.answers.clear();
            }
            Ran::Ended => self.stand_down(i),
        }
        None
    }

    /// Answers a request, or does a part of what it asks for.
    fn serve(&mut self, i: usize, request: Request, outcome: Outcome) -> Option<Answer> {
        if outcome == Outcome::Refused {
            self.reporters[i].closing = None;
            return Some(Answer::Failed);
        }
        let answer = match request {
            Request::Clock => unreachable!("each work begins with it"),
            Request::Load(known) => Answer::Stored(self.load(&known)),
            Request::Count(windows) => Answer::Counts(self.count(&windows)),
            Request::Close(windows) => match self.close(i, &windows) {
                Some(answer) => answer,
                None if outcome == Outcome::Done => return None,
                None => Answer::Failed,
            },
            Request::Remove(windows) => self.remove(&windows),
            // A failure to record is no reason to give up the lease.
            Request::Record(_) if outcome == Outcome::Abandoned => Answer::Failed,
            Request::Prepare(_) | Request::Record(_) | Request::Finish(_) if !self.leads(i) => Answer::LeaseLost,
            Request::Prepare(records) => self.prepare(&records),
            Request::Record(changes) => self.record(&changes),
            Request::Finish(finals) => self.finish(&finals),
            Request::Begin => {
                self.epoch += 1;
                Answer::Begun(self.epoch)
            }
            Request::Publish(records) => {
                let epoch = self.epoch_of(i);
                if outcome == Outcome::Abandoned {
                    self.in_flight = Some((epoch, records));
                    Answer::Failed
                } else if self.produce(epoch, &records) {
                    Answer::Done
                } else {
                    Answer::Fenced
                }
            }
        };
        Some(if outcome == Outcome::AnswerLost {
            self.reporters[i].closing = None;
            Answer::Failed
        } else {
            answer
        })
    }

    /// Returns the epoch of a reporter's session.
    /// The session may have begun in this iteration.
    fn epoch_of(&self, i: usize) -> u8 {
        let begun = self.reporters[i].answers.iter().rev().find_map(|answer| match answer {
            Answer::Begun(epoch) => Some(*epoch),
            _ => None,
        });
        begun.or(self.reporters[i].session).expect("a session has begun")
    }

    fn load(&self, known: &BTreeSet<Window>) -> Stored {
        let newest = self.reports.keys().next_back().copied();
        let mut reports = self.reports.clone();
        // Like the real code: no final reports, except the newest and those of known windows.
        reports.retain(|window, report| !report.is_final || Some(*window) == newest || known.contains(window));
        Stored {
            reports,
            newest,
            pending: self.pending.clone(),
            from: self.windows.first().copied(),
            ..Stored::default()
        }
    }

    fn count(&self, windows: &[Window]) -> Vec<u64> {
        let count = |window: &Window| {
            let sets = self.sets.get(window).copied().unwrap_or_default();
            let closed = self.closed.get(window).copied().unwrap_or_default();
            let of = |server: usize| {
                if self.closing.contains(&(*window, server)) {
                    closed[server]
                } else {
                    sets[server]
                }
            };
            (0..SERVERS).map(of).sum()
        };
        windows.iter().map(count).collect()
    }

    fn prepare(&mut self, records: &[WindowRecord]) -> Answer {
        let pending = records.iter().map(|record| (record.window, Pending::publish(record)));
        self.pending.extend(pending);
        Answer::Done
    }

    /// Closes windows on one server after the other: any move may happen in between.
    /// Whether the reporter is still the leader makes no difference.
    fn close(&mut self, i: usize, over: &[Window]) -> Option<Answer> {
        let (server, mut counts) = (self.reporters[i].closing.take()).unwrap_or_else(|| (0, vec![0; over.len()]));
        for (window, count) in over.iter().zip(&mut counts) {
            let closed = &mut self.closed.entry(*window).or_default()[server];
            if self.closing.insert((*window, server))
                && let Some(set) = self.sets.get_mut(window)
            {
                *closed = std::mem::take(&mut set[server]);
            }
            *count += *closed;
        }
        if server + 1 < SERVERS {
            self.reporters[i].closing = Some((server + 1, counts));
            return None;
        }
        Some(Answer::Counts(counts))
    }

    fn finish(&mut self, finals: &[(Window, Report)]) -> Answer {
        for (window, report) in finals {
            self.reports.insert(*window, *report);
            self.pending.insert(*window, Pending::Remove);
        }
        Answer::Done
    }

    fn remove(&mut self, windows: &[Window]) -> Answer {
        for window in windows {
            self.closed.remove(window);
            if self.pending.get(window) == Some(&Pending::Remove) {
                self.pending.remove(window);
            }
        }
        Answer::Done
    }

    fn record(&mut self, changes: &[RecordedRevision]) -> Answer {
        for RecordedRevision { record, report } in changes {
            self.reports.insert(record.window, *report);
            self.pending.remove(&record.window);
        }
        Answer::Done
    }

    /// Finds ids that came too late, keeps them apart, and plans their revisions.
    /// Whether the reporter is still the leader makes no difference.
    pub fn sweep(&mut self, i: usize, runner: &Runner) {
        let Some(ledger) = self.reporters[i].ledger.clone() else {
            return;
        };
        let with_ids = self.sets.iter().filter(|(_, set)| set.iter().any(|ids| *ids > 0));
        let mut past: Vec<Window> = with_ids.map(|(window, _)| *window).collect();
        past.retain(|window| ledger.is_past(*window));
        let mut unreported = Vec::new();
        for window in past {
            match ledger.orphaned_ids(window, self.reports.get(&window), self.now_ms) {
                Orphaned::Unreported => unreported.push(window),
                Orphaned::TooLate => {
                    let ids: u64 = self.sets.remove(&window).unwrap_or_default().iter().sum();
                    *self.late.entry(window).or_default() += ids;
                }
                Orphaned::Expected => {}
            }
        }
        let late = self.late.iter();
        let revisions = late.filter_map(|(window, ids)| ledger.late(*window, self.reports.get(window)?, *ids));
        self.reporters[i].work = Work::Found(revisions.collect(), unreported);
        self.asks(i, runner);
    }
}
