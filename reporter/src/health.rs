//! The reporter's dependencies, and whether they answer.
//!
//! A change is logged once, not each failure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use verve_protocol::Window;

use crate::condition::Condition;

/// A problem, and since when it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub error: String,
    pub since: Timestamp,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, since {:.0}", self.error, self.since)
    }
}

/// The state of a dependency.
#[derive(Clone, Debug)]
enum State {
    /// Not tried yet, since this time.
    NotYet(Timestamp),
    Up,
    Down(Problem),
}

impl State {
    fn problem(&self) -> Option<Problem> {
        match self {
            Self::NotYet(since) => Some(Problem {
                error: "not reached yet".to_owned(),
                since: *since,
            }),
            Self::Up => None,
            Self::Down(problem) => Some(problem.clone()),
        }
    }
}

/// The state of all dependencies.
#[derive(Debug)]
pub struct Health {
    /// How long a refusal must be absent until it is over.
    quiet: Duration,
    dependencies: Mutex<BTreeMap<String, State>>,
    /// The refusals, by dependency and kind of error.
    refusals: Mutex<BTreeMap<(String, String), (Problem, Condition)>>,
    /// All other problems, by subject.
    problems: Mutex<BTreeMap<String, Problem>>,
}

/// A dependency of the reporter.
#[derive(Clone, Debug)]
pub struct Dependency {
    name: String,
    health: Arc<Health>,
}

impl Dependency {
    /// Creates a dependency, such as `Redis redis://127.0.0.1:6379`.
    /// It counts as unreachable until [`Dependency::up`] is called.
    pub fn new(name: String, health: &Arc<Health>) -> Self {
        health.set(&name, State::NotYet(Timestamp::now()));
        Self {
            name,
            health: health.clone(),
        }
    }

    /// Notes that it answered.
    pub fn up(&self) {
        if let Some(State::Down(before)) = self.health.set(&self.name, State::Up) {
            tracing::info!("{} is reachable again; before: {}", self.name, before.error);
        }
    }

    /// Notes that it did not answer, or that its error shows that it is unreachable.
    pub fn down(&self, error: impl Display) {
        let error = error.to_string();
        let problem = Problem {
            error: error.clone(),
            since: Timestamp::now(),
        };
        match self.health.set(&self.name, State::Down(problem)) {
            Some(State::Down(_)) => tracing::debug!("{} is still not reachable: {error}", self.name),
            _ => tracing::error!("{} is not reachable: {error}; trying again until it is", self.name),
        }
    }

    /// Notes that it is reachable and answered with an error of this kind.
    /// This is a problem until the error has been absent for a while.
    pub fn refuses(&self, kind: &str, error: impl Display) {
        let problem = Problem {
            error: format!("refuses commands: {error}"),
            since: Timestamp::now(),
        };
        let mut refusals = self.health.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = refusals.entry((self.name.clone(), kind.to_owned()));
        let (problem, condition) = refusal.or_insert_with(|| (problem, Condition::new(self.health.quiet)));
        if condition.met() {
            tracing::error!("{} {}; trying again until it works", self.name, problem.error);
        }
    }
}

impl Health {
    /// Creates a state in which a refusal is over once it was absent for `quiet`.
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            dependencies: Mutex::default(),
            refusals: Mutex::default(),
            problems: Mutex::default(),
        }
    }

    /// Sets the state of `name`, and returns the previous one.
    /// A problem keeps its start time, even if its error changes.
    fn set(&self, name: &str, mut state: State) -> Option<State> {
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let before = dependencies.get(name).and_then(State::problem);
        if let (State::Down(now), Some(before)) = (&mut state, before) {
            now.since = before.since;
        }
        dependencies.insert(name.to_owned(), state)
    }

    /// Returns all dependencies, each with its problem if it has one.
    pub fn states(&self) -> BTreeMap<String, Option<Problem>> {
        let dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let states = dependencies.iter().map(|(name, state)| (name.clone(), state.problem()));
        let mut states: BTreeMap<String, Option<Problem>> = states.collect();
        drop(dependencies);
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for ((name, _), (problem, _)) in refusals.iter() {
            states
                .entry(name.clone())
                .or_default()
                .get_or_insert_with(|| problem.clone());
        }
        states
    }

    /// Returns all problems.
    pub fn problems(&self) -> Vec<(String, Problem)> {
        let states = self.states().into_iter();
        let others = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problems = states.filter_map(|(name, error)| Some((name, error?)));
        problems.chain(others).collect()
    }

    /// Sets whether a window is overdue, and which.
    pub fn set_overdue(&self, window: Option<Window>) {
        let error = window.map(|window| format!("{window} and later ones are due, and not reported"));
        self.set_problem("windows", error);
    }

    /// Sets or clears the problem of the subject `about`.
    /// Logs when a problem begins and when it is over.
    pub fn set_problem(&self, about: &str, error: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match (error, problems.get_mut(about)) {
            (Some(error), Some(known)) => known.error = error,
            (Some(error), None) => {
                tracing::error!("{about}: {error}");
                let since = Timestamp::now();
                problems.insert(about.to_owned(), Problem { error, since });
            }
            (None, Some(known)) => {
                tracing::info!("{about}: no longer: {}", known.error);
                problems.remove(about);
            }
            (None, None) => {}
        }
    }

    /// Forgets refusals that were absent for a while. It must be called regularly.
    pub fn settle(&self, now: Instant) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|(name, _), (problem, condition)| {
            let is_over = condition.absent_at(now);
            if is_over {
                tracing::info!("{name} works again; before, it {}", problem.error);
            }
            !is_over
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(10);

    #[test]
    fn a_dependency_is_a_problem_until_it_is_up() {
        let health = Arc::new(Health::new(QUIET));
        let (redis, kafka) = (
            Dependency::new("Redis".into(), &health),
            Dependency::new("Kafka".into(), &health),
        );
        let problems = || -> Vec<(String, String)> {
            let problems = health.problems().into_iter();
            problems.map(|(name, problem)| (name, problem.error)).collect()
        };
        let problem = |name: &str, error: &str| (name.to_owned(), error.to_owned());
        redis.up();
        assert_eq!(problems(), [problem("Kafka", "not reached yet")]);
        kafka.up();
        assert!(problems().is_empty());
        kafka.down("refused");
        let since = health.problems()[0].1.since;
        kafka.down("gone");
        assert_eq!(problems(), [problem("Kafka", "gone")]);
        assert_eq!(health.problems()[0].1.since, since);
        kafka.up();

        redis.refuses("READONLY", "READONLY: no");
        // Good answers to other commands do not end a refusal.
        redis.up();
        health.settle(Instant::now() + QUIET - Duration::from_secs(1));
        assert_eq!(problems(), [problem("Redis", "refuses commands: READONLY: no")]);
        health.settle(Instant::now() + QUIET);
        assert!(problems().is_empty());

        let window = verve_protocol::WindowLength::try_new(60)
            .expect("valid")
            .window_at_ms(0);
        health.set_overdue(Some(window));
        assert_eq!(
            problems(),
            [problem(
                "windows",
                "1970-01-01T00:00:00Z and later ones are due, and not reported"
            )]
        );
        health.set_overdue(None);
        assert!(problems().is_empty());
    }
}
