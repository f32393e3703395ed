//! The requests of a reporter, and what it makes of the answers: the model of `lead` and of the scripts.

use verve_protocol::{Report, Window, WindowRecord};

use super::super::ledger::{Change, Ledger, News, Step, Stored, Stray};
use super::super::pending::Pending;
use super::world::{Next, Outcome, SCHEDULE, SERVERS, World};

impl World {
    pub fn request(&mut self, i: usize, outcome: Outcome) {
        if matches!(outcome, Outcome::AnswerLost | Outcome::Refused) {
            self.budget.faults -= 1;
        }
        match std::mem::replace(&mut self.reporters[i].next, Next::Step) {
            Next::Acquire => {
                self.reporters[i].next = Next::Acquire;
                if self.lease.is_none() {
                    self.lease = Some(self.name(i));
                    self.reporters[i].next = Next::Load;
                }
            }
            Next::Load => self.redis(i, outcome, Self::load),
            Next::Prepare(records, over) => self.redis(i, outcome, |world, i| world.prepare(i, &records, &over)),
            Next::Close(over, server, counts) => {
                self.redis(i, outcome, |world, _| world.close(&over, server, &counts));
            }
            Next::Finish(finals) => self.redis(i, outcome, |world, i| world.finish(i, &finals)),
            Next::Step => {
                let now = self.now_ms;
                match self.ledger(i).step(now, 10, true) {
                    Step::Record(changes) => self.record(i, &changes, outcome),
                    Step::Publish(records) => self.publish(i, records, outcome),
                    Step::Remove(removals) => self.redis(i, outcome, |world, i| world.remove(i, &removals)),
                    Step::Count(_) if self.reporters[i].session.is_none() => self.begin(i, outcome),
                    Step::Count(windows) => self.redis(i, outcome, |world, i| world.count(i, &windows)),
                }
            }
        }
    }

    /// A request to Redis, whose failure ends the leading. Done, it answers what the reporter does with the answer, or `None` if the lease
    /// is lost.
    fn redis(&mut self, i: usize, outcome: Outcome, request: impl FnOnce(&mut Self, usize) -> Option<Answer>) {
        let answer = (outcome != Outcome::Refused).then(|| request(self, i)).flatten();
        match answer {
            Some(take) if outcome == Outcome::Done => take(self, i),
            _ => self.stand_down(i),
        }
    }

    fn load(&mut self, i: usize) -> Option<Answer> {
        let newest = self.reports.keys().next_back().copied();
        let mut reports = self.reports.clone();
        // As it is read: no final report but the newest, and those of what it knows.
        let known = self.reporters[i].ledger.as_ref().map(Ledger::known).unwrap_or_default();
        reports.retain(|window, report| !report.is_final || Some(*window) == newest || known.contains(window));
        let stored = Stored {
            reports,
            newest,
            pending: self.pending.clone(),
            from: self.windows.first().copied(),
            ..Stored::default()
        };
        let now = self.now_ms;
        Some(Box::new(move |world, i| {
            let length = world.windows[0].length();
            let known = world.reporters[i].ledger.take();
            let (ledger, lost) = Ledger::resume(length, SCHEDULE, stored, known.as_ref(), now);
            assert_eq!(lost, None);
            world.reporters[i].ledger = Some(ledger);
        }))
    }

    fn count(&mut self, _: usize, windows: &[Window]) -> Option<Answer> {
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
            (*window, (0..SERVERS).map(of).sum())
        };
        let counts: Vec<(Window, u64)> = windows.iter().map(count).collect();
        let now = self.now_ms;
        Some(Box::new(move |world, i| {
            let plan = world.ledger(i).plan(counts, now);
            world.reporters[i].next = after_plan(&plan.news, plan.over);
        }))
    }

    fn prepare(&mut self, i: usize, records: &[WindowRecord], over: &[Window]) -> Option<Answer> {
        if !self.leads(i) {
            return None;
        }
        let pending = records.iter().map(|record| (record.window, Pending::publish(record)));
        self.pending.extend(pending);
        let (records, over) = (records.to_vec(), over.to_vec());
        Some(Box::new(move |world, i| {
            world.ledger(i).prepared(records);
            world.reporters[i].next = after_plan(&[], over);
        }))
    }

    /// On one server after the other: between them anything may happen. Whether it is the leader still makes no difference.
    fn close(&mut self, over: &[Window], server: usize, counts: &[u64]) -> Option<Answer> {
        let mut counts = counts.to_vec();
        for (window, count) in over.iter().zip(&mut counts) {
            let closed = &mut self.closed.entry(*window).or_default()[server];
            if self.closing.insert((*window, server))
                && let Some(set) = self.sets.get_mut(window)
            {
                *closed = std::mem::take(&mut set[server]);
            }
            *count += *closed;
        }
        let over = over.to_vec();
        Some(Box::new(move |world, i| {
            if server + 1 < SERVERS {
                world.reporters[i].next = Next::Close(over, server + 1, counts);
                return;
            }
            let plan = world.ledger(i).plan_closed(over.into_iter().zip(counts));
            // News beside them are found again.
            world.reporters[i].next = if plan.finals.is_empty() {
                after_plan(&plan.news, Vec::new())
            } else {
                Next::Finish(plan.finals)
            };
        }))
    }

    fn finish(&mut self, i: usize, finals: &[(Window, Report)]) -> Option<Answer> {
        if !self.leads(i) {
            return None;
        }
        for (window, report) in finals {
            self.reports.insert(*window, *report);
            self.pending.insert(*window, Pending::Remove);
        }
        let windows: Vec<Window> = finals.iter().map(|(window, _)| *window).collect();
        Some(Box::new(move |world, i| {
            windows.into_iter().for_each(|window| world.ledger(i).finished(window));
        }))
    }

    fn remove(&mut self, _: usize, windows: &[Window]) -> Option<Answer> {
        for window in windows {
            self.closed.remove(window);
            if self.pending.get(window) == Some(&Pending::Remove) {
                self.pending.remove(window);
            }
        }
        let windows = windows.to_vec();
        Some(Box::new(move |world, i| world.ledger(i).removed(&windows)))
    }

    /// Looks for ids that came too late, puts them aside, and finds out what to publish of them. Whether it is the leader still makes
    /// no difference.
    pub fn sweep(&mut self, i: usize) {
        let Some(mut ledger) = self.reporters[i].ledger.clone() else {
            return;
        };
        let with_ids = self.sets.iter().filter(|(_, set)| set.iter().any(|ids| *ids > 0));
        let mut past: Vec<Window> = with_ids.map(|(window, _)| *window).collect();
        past.retain(|window| ledger.is_past(*window));
        for window in past {
            let stray = ledger.stray(window, self.reports.get(&window), self.now_ms);
            if stray == Stray::Unreported {
                ledger.add_strays(&[window]);
            }
            if stray == Stray::TooLate {
                let ids: u64 = self.sets.remove(&window).unwrap_or_default().iter().sum();
                *self.late.entry(window).or_default() += ids;
            }
        }
        let told = self.late.iter();
        let news = told.filter_map(|(window, ids)| ledger.late(*window, self.reports.get(window)?, *ids));
        let news: Vec<News> = news.collect();
        if !news.is_empty() {
            self.reporters[i].next = after_plan(&news, Vec::new());
        }
    }

    /// A failure is no reason to publish again, nor to give up the lease.
    fn record(&mut self, i: usize, changes: &[Change], outcome: Outcome) {
        if outcome == Outcome::Refused {
            return;
        }
        if !self.leads(i) || outcome == Outcome::Abandoned {
            return self.stand_down(i);
        }
        for Change { record, report } in changes {
            self.reports.insert(record.window, *report);
            self.pending.remove(&record.window);
        }
        if outcome == Outcome::Done {
            self.ledger(i).recorded();
        }
    }

    fn begin(&mut self, i: usize, outcome: Outcome) {
        if outcome != Outcome::Refused {
            self.epoch += 1;
        }
        match outcome {
            Outcome::Done => self.reporters[i].session = Some(self.epoch),
            Outcome::Abandoned => self.stand_down(i),
            Outcome::AnswerLost | Outcome::Refused => {}
        }
    }

    fn publish(&mut self, i: usize, records: Vec<WindowRecord>, outcome: Outcome) {
        let Some(epoch) = self.reporters[i].session else {
            self.begin(i, outcome);
            if outcome == Outcome::Done {
                // For the check of the lease.
                self.reporters[i].next = Next::Prepare(records, Vec::new());
            }
            return;
        };
        match outcome {
            Outcome::Refused => self.reporters[i].session = None,
            Outcome::Abandoned => {
                self.in_flight = Some((epoch, records));
                self.stand_down(i);
            }
            Outcome::AnswerLost => {
                self.produce(epoch, &records);
                self.reporters[i].session = None;
            }
            Outcome::Done if self.produce(epoch, &records) => {
                let now = self.now_ms;
                self.ledger(i).acknowledged(now);
            }
            // Fenced.
            Outcome::Done => self.stand_down(i),
        }
    }
}

/// What a reporter does with an answer.
type Answer = Box<dyn FnOnce(&mut World, usize)>;

fn after_plan(news: &[News], over: Vec<Window>) -> Next {
    let record = |news: &News| WindowRecord {
        window: news.window,
        count: news.count,
        revision: news.revision,
        requests: 0,
        duplicates: 0,
        late: news.late,
    };
    if !news.is_empty() {
        Next::Prepare(news.iter().map(record).collect(), over)
    } else if over.is_empty() {
        Next::Step
    } else {
        let counts = vec![0; over.len()];
        Next::Close(over, 0, counts)
    }
}
