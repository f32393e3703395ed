//! The requests of a reporter, and what it makes of the answers: the model of `lead` and of the scripts.

use verve_protocol::{Window, WindowRecord};

use super::super::ledger::{Change, Final, Ledger, Step, Stored, Stray};
use super::super::pending::Pending;
use super::world::{Next, Outcome, PERIODS, World};

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
            Next::Prepare(records, finals) => self.redis(i, outcome, |world, i| world.prepare(i, &records, &finals)),
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

    fn load(&mut self, _: usize) -> Option<Answer> {
        let stored = Stored {
            reports: self.reports.clone(),
            pending: self.pending.clone(),
            from: self.windows.first().copied(),
            oldest_ids: self.sets.keys().next().copied(),
        };
        let now = self.now_ms;
        Some(Box::new(move |world, i| {
            let length = world.windows[0].length();
            let known = world.reporters[i].ledger.take();
            let (ledger, lost) = Ledger::resume(length, PERIODS, stored, known.as_ref(), now);
            assert_eq!(lost, None);
            world.reporters[i].ledger = Some(ledger);
        }))
    }

    fn count(&mut self, _: usize, windows: &[Window]) -> Option<Answer> {
        let count = |window: &Window| (*window, self.sets.get(window).copied().unwrap_or_default().to_vec());
        let counts: Vec<(Window, Vec<u64>)> = windows.iter().map(count).collect();
        let now = self.now_ms;
        Some(Box::new(move |world, i| {
            let plan = world.ledger(i).plan(counts, now);
            let record = |&(window, count, revision): &_| WindowRecord {
                window,
                count,
                revision,
                requests: 0,
                duplicates: 0,
            };
            let records: Vec<WindowRecord> = plan.news.iter().map(record).collect();
            world.reporters[i].next = if records.is_empty() {
                after_prepare(&plan.finals)
            } else {
                Next::Prepare(records, plan.finals)
            };
        }))
    }

    fn prepare(&mut self, i: usize, records: &[WindowRecord], finals: &[Final]) -> Option<Answer> {
        if !self.leads(i) {
            return None;
        }
        let pending = records.iter().map(|record| (record.window, Pending::publish(record)));
        self.pending.extend(pending);
        let (records, finals) = (records.to_vec(), finals.to_vec());
        Some(Box::new(move |world, i| {
            world.ledger(i).prepared(records);
            world.reporters[i].next = after_prepare(&finals);
        }))
    }

    fn finish(&mut self, i: usize, finals: &[Final]) -> Option<Answer> {
        if !self.leads(i) {
            return None;
        }
        let mut done = Vec::new();
        for window in finals {
            let here = self.sets.get(&window.window).map_or(0, |set| set[0]);
            if here == window.counted[0] {
                self.reports.insert(window.window, window.report);
                if let Some(counted) = window.elsewhere() {
                    self.pending.insert(window.window, Pending::Remove { counted });
                }
                if let Some(set) = self.sets.get_mut(&window.window) {
                    set[0] = 0;
                }
                done.push(window.clone());
            }
        }
        Some(Box::new(move |world, i| {
            done.into_iter().for_each(|done| world.ledger(i).finished(done));
        }))
    }

    fn remove(&mut self, _: usize, removals: &[(Window, Vec<u64>)]) -> Option<Answer> {
        for (window, counted) in removals {
            let [first, second] = self.sets.remove(window).unwrap_or_default();
            let counted = if counted[1] > 0 && self.removed.insert(*window) {
                counted[1]
            } else {
                0
            };
            *self.too_late.entry(*window).or_default() += first + second.saturating_sub(counted);
            self.pending.remove(window);
        }
        let windows: Vec<Window> = removals.iter().map(|(window, _)| *window).collect();
        Some(Box::new(move |world, i| world.ledger(i).removed(windows)))
    }

    /// Looks for ids that came too late. Whether it is the leader still makes no difference.
    pub fn sweep(&mut self, i: usize) {
        let Some(mut ledger) = self.reporters[i].ledger.clone() else {
            return;
        };
        let mut past: Vec<Window> = self.sets.keys().copied().collect();
        past.retain(|window| ledger.is_past(*window));
        for window in past {
            assert_eq!(
                ledger.stray(window, self.reports.get(&window), self.now_ms),
                Stray::TooLate
            );
            let ids: u64 = self.sets.remove(&window).unwrap_or_default().iter().sum();
            *self.too_late.entry(window).or_default() += ids;
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

fn after_prepare(finals: &[Final]) -> Next {
    if finals.is_empty() {
        Next::Step
    } else {
        Next::Finish(finals.to_vec())
    }
}
