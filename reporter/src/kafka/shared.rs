//! One session for all counters of a leader.
//!
//! The loops of the counters publish by themselves. Records that wait while a transaction is under
//! way are published together in the next one, as databases commit groups of transactions.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::{Begun, CounterRecord, Publish, Unpublished};

/// From how many records on no more are added to a transaction.
///
/// The queue of a producer has room for more: 100,000 by default.
const MOST: usize = 10_000;

/// The part of a shared session that belongs to one counter.
pub struct SharedSession<S> {
    shared: Arc<Shared<S>>,
    /// The beginning that this counter knows of.
    begun: Option<u64>,
}

struct Shared<S> {
    /// Locked while a session begins or publishes.
    session: AsyncMutex<S>,
    state: Mutex<State>,
}

/// How far the session is.
#[derive(Default)]
struct State {
    /// The number of attempts to begin, each of which has succeeded or failed.
    attempts: u64,
    /// The attempt by which the session began, if no publishing has failed since.
    begun: Option<u64>,
    /// Whether another replica publishes now. This session never begins again then.
    is_fenced: bool,
    waiting: VecDeque<Waiting>,
}

/// Records of a counter that are to be published.
struct Waiting {
    begun: u64,
    records: Vec<CounterRecord>,
    done: oneshot::Sender<Result<(), Unpublished>>,
}

impl<S: Publish> SharedSession<S> {
    /// Creates a shared session, for a replica that has just acquired the lease.
    pub fn new(session: S) -> Self {
        let (session, state) = (AsyncMutex::new(session), Mutex::default());
        let shared = Arc::new(Shared { session, state });
        Self { shared, begun: None }
    }

    /// Returns the part of another counter.
    #[must_use]
    pub fn of_another(&self) -> Self {
        let shared = self.shared.clone();
        Self { shared, begun: None }
    }

    /// Returns when the session began, if it has begun.
    fn seen(&mut self, begun: Option<u64>) -> Option<Begun> {
        let before = mem::replace(&mut self.begun, begun);
        begun.map(|_| if before == begun { Begun::Before } else { Begun::Now })
    }
}

impl<S> Shared<S> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Publish> Publish for SharedSession<S> {
    /// Begins the session, unless it has begun.
    ///
    /// A beginning is [`Begun::Now`] once for each counter. So each checks the lease after it.
    async fn begin(&mut self) -> Result<Begun, Unpublished> {
        let (begun, attempts) = {
            let state = self.shared.state();
            (state.begun, state.attempts)
        };
        if let Some(begun) = self.seen(begun) {
            return Ok(begun);
        }
        let shared = self.shared.clone();
        let mut session = shared.session.lock().await;
        let (begun, is_tried) = {
            let state = shared.state();
            if state.is_fenced {
                return Err(Unpublished::Fenced);
            }
            (state.begun, state.attempts != attempts)
        };
        if let Some(begun) = self.seen(begun) {
            return Ok(begun);
        }
        // Otherwise each counter would wait for an attempt of its own that fails like this one.
        if is_tried {
            return Err(Unpublished::Away);
        }
        let result = session.begin().await;
        let begun = {
            let mut state = shared.state();
            state.attempts += 1;
            state.begun = result.is_ok().then_some(state.attempts);
            state.is_fenced |= result == Err(Unpublished::Fenced);
            state.begun
        };
        result.map(|result| self.seen(begun).unwrap_or(result))
    }

    async fn publish(&mut self, records: &[CounterRecord]) -> Result<(), Unpublished> {
        let Some(begun) = self.begun else {
            return Err(Unpublished::Away);
        };
        let (done, mut published) = oneshot::channel();
        let records = records.to_vec();
        self.shared.state().waiting.push_back(Waiting { begun, records, done });
        let mut session = self.shared.session.lock().await;
        loop {
            match published.try_recv() {
                Ok(result) => return result,
                // The counter that published the records was stopped.
                Err(TryRecvError::Closed) => return Err(Unpublished::Away),
                Err(TryRecvError::Empty) => {}
            }
            let (group, late) = self.shared.state().take();
            late.into_iter().for_each(|waiting| waiting.end(Err(Unpublished::Away)));
            if group.is_empty() {
                continue;
            }
            let records: Vec<CounterRecord> = group.iter().flat_map(|waiting| waiting.records.clone()).collect();
            let result = session.publish(&records).await;
            {
                let mut state = self.shared.state();
                state.begun = state.begun.filter(|_| result.is_ok());
                state.is_fenced |= result == Err(Unpublished::Fenced);
            }
            group.into_iter().for_each(|waiting| waiting.end(result));
        }
    }
}

impl State {
    /// Takes records that wait: those to publish, and those of a failed session.
    ///
    /// The counters of the latter have not checked the lease since the session began again.
    fn take(&mut self) -> (Vec<Waiting>, Vec<Waiting>) {
        // Nobody waits for records whose counter was stopped.
        self.waiting.retain(|waiting| !waiting.done.is_closed());
        let (mut group, mut late, mut records) = (Vec::new(), Vec::new(), 0);
        while records < MOST
            && let Some(waiting) = self.waiting.pop_front()
        {
            if Some(waiting.begun) == self.begun {
                records += waiting.records.len();
                group.push(waiting);
            } else {
                late.push(waiting);
            }
        }
        (group, late)
    }
}

impl Waiting {
    fn end(self, result: Result<(), Unpublished>) {
        // The counter may have been stopped.
        let _ = self.done.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use futures::future;
    use verve_protocol::{WindowLength, WindowRecord};

    use super::*;

    /// What a session was asked for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Asked {
        Begin,
        /// The counts of the records.
        Publish(Vec<u64>),
    }

    type Results = VecDeque<Result<(), Unpublished>>;

    /// A session with these results. Then all succeeds. Each request takes a second.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<(Vec<Asked>, Results)>>);

    impl Scripted {
        fn new<const N: usize>(results: [Result<(), Unpublished>; N]) -> Self {
            Self(Arc::new(Mutex::new((Vec::new(), results.into()))))
        }

        async fn ask(&self, asked: Asked) -> Result<(), Unpublished> {
            let result = {
                let mut state = self.0.lock().expect("not poisoned");
                state.0.push(asked);
                state.1.pop_front().unwrap_or(Ok(()))
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            result
        }

        fn asked(&self) -> Vec<Asked> {
            self.0.lock().expect("not poisoned").0.clone()
        }
    }

    impl Publish for Scripted {
        async fn begin(&mut self) -> Result<Begun, Unpublished> {
            self.ask(Asked::Begin).await.map(|()| Begun::Now)
        }

        async fn publish(&mut self, records: &[CounterRecord]) -> Result<(), Unpublished> {
            let counts = records.iter().map(|of| of.record.count);
            self.ask(Asked::Publish(counts.collect())).await
        }
    }

    fn records(count: u64) -> Vec<CounterRecord> {
        let window = WindowLength::try_new(60).expect("valid").window_at_ms(0);
        let record = WindowRecord {
            window,
            count,
            revision: 0,
            requests: 0,
            duplicates: 0,
            late: 0,
        };
        vec![CounterRecord { counter: None, record }]
    }

    /// Returns the parts of three counters.
    fn three(session: &Scripted) -> [SharedSession<Scripted>; 3] {
        let first = SharedSession::new(session.clone());
        let (second, third) = (first.of_another(), first.of_another());
        [first, second, third]
    }

    /// Returns the parts of three counters that know that the session has begun.
    async fn three_begun(session: &Scripted) -> [SharedSession<Scripted>; 3] {
        let mut three = three(session);
        let begun = future::join_all(three.iter_mut().map(|counter| counter.begin())).await;
        assert_eq!(begun, [Ok(Begun::Now); 3]);
        three
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_wait_are_published_together() {
        let session = Scripted::default();
        let mut three = three(&session);
        let begin = async |counter: &mut SharedSession<Scripted>| {
            assert_eq!(counter.begin().await, Ok(Begun::Now));
            assert_eq!(counter.begin().await, Ok(Begun::Before));
        };
        future::join_all(three.iter_mut().map(begin)).await;
        let publish = async |counter: &mut SharedSession<Scripted>, count| counter.publish(&records(count)).await;
        let published = three
            .iter_mut()
            .zip(1..)
            .map(|(counter, count)| publish(counter, count));
        assert_eq!(future::join_all(published).await, [Ok(()); 3]);
        let expected = [Asked::Begin, Asked::Publish(vec![1]), Asked::Publish(vec![2, 3])];
        assert_eq!(session.asked(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_has_a_bounded_number_of_records() {
        let session = Scripted::default();
        let first = SharedSession::new(session.clone());
        let mut counters: Vec<SharedSession<Scripted>> = (0..4).map(|_| first.of_another()).collect();
        future::join_all(counters.iter_mut().map(|counter| counter.begin())).await;
        let many = vec![records(1).remove(0); MOST * 3 / 5];
        let published = counters.iter_mut().map(|counter| counter.publish(&many));
        assert_eq!(future::join_all(published).await, [Ok(()); 4]);
        let published = session.asked().into_iter().filter_map(|asked| match asked {
            Asked::Publish(counts) => Some(counts.len()),
            Asked::Begin => None,
        });
        let each = many.len();
        assert_eq!(published.collect::<Vec<_>>(), [each, 2 * each, each]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_to_begin_is_for_all_that_wait() {
        let session = Scripted::new([Err(Unpublished::Away)]);
        let mut three = three(&session);
        let begun = future::join_all(three.iter_mut().map(|counter| counter.begin())).await;
        assert_eq!(begun, [Err(Unpublished::Away); 3]);
        assert_eq!(session.asked(), [Asked::Begin]);
        let begun = future::join_all(three.iter_mut().map(|counter| counter.begin())).await;
        assert_eq!(begun, [Ok(Begun::Now); 3]);
        assert_eq!(session.asked(), [Asked::Begin, Asked::Begin]);
    }

    /// So each counter checks the lease after the session has begun again.
    #[tokio::test(start_paused = true)]
    async fn after_a_failure_each_counter_begins_again() {
        let session = Scripted::new([Ok(()), Err(Unpublished::Away)]);
        let [mut first, mut second, _] = three(&session);
        assert_eq!(first.begin().await, Ok(Begun::Now));
        assert_eq!(second.begin().await, Ok(Begun::Now));
        assert_eq!(first.publish(&records(1)).await, Err(Unpublished::Away));
        assert_eq!(first.begin().await, Ok(Begun::Now));
        assert_eq!(second.publish(&records(2)).await, Err(Unpublished::Away));
        assert_eq!(second.begin().await, Ok(Begun::Now));
        assert_eq!(second.publish(&records(3)).await, Ok(()));
        let expected = [
            Asked::Begin,
            Asked::Publish(vec![1]),
            Asked::Begin,
            Asked::Publish(vec![3]),
        ];
        assert_eq!(session.asked(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fenced_session_never_begins_again() {
        let session = Scripted::new([Ok(()), Err(Unpublished::Fenced)]);
        let [mut first, mut second, _] = three(&session);
        assert_eq!(first.begin().await, Ok(Begun::Now));
        assert_eq!(first.publish(&records(1)).await, Err(Unpublished::Fenced));
        assert_eq!(first.begin().await, Err(Unpublished::Fenced));
        assert_eq!(second.begin().await, Err(Unpublished::Fenced));
        assert_eq!(session.asked().len(), 2);
    }

    /// Publishes the records of three counters, and stops the second one after `ms`.
    ///
    /// Returns the outcomes of the third one, which tries twice at most.
    async fn stop_the_second(session: &Scripted, ms: u64) -> Vec<Result<(), Unpublished>> {
        let [mut first, mut second, mut third] = three_begun(session).await;
        let (one, two, three) = (records(1), records(2), records(3));
        let first = async { first.publish(&one).await };
        let second = tokio::time::timeout(Duration::from_millis(ms), second.publish(&two));
        let third = async {
            let mut outcomes = vec![third.publish(&three).await];
            if outcomes[0].is_err() {
                outcomes.push(third.publish(&three).await);
            }
            outcomes
        };
        let (first, second, third) = tokio::join!(first, second, third);
        assert!(first == Ok(()) && second.is_err());
        third
    }

    /// The counters whose records it publishes then publish them again.
    #[tokio::test(start_paused = true)]
    async fn a_counter_is_stopped_while_it_publishes() {
        let session = Scripted::default();
        assert_eq!(stop_the_second(&session, 1500).await, [Err(Unpublished::Away), Ok(())]);
        let expected = [
            Asked::Begin,
            Asked::Publish(vec![1]),
            // The second one publishes the records of the third one too.
            Asked::Publish(vec![2, 3]),
            Asked::Publish(vec![3]),
        ];
        assert_eq!(session.asked(), expected);
    }

    /// The records of a counter that was stopped are not published later.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_records_of_a_stopped_counter() {
        let session = Scripted::default();
        assert_eq!(stop_the_second(&session, 500).await, [Ok(())]);
        let expected = [Asked::Begin, Asked::Publish(vec![1]), Asked::Publish(vec![3])];
        assert_eq!(session.asked(), expected);
    }
}
