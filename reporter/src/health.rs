//! What the reporter depends on, and whether it answers. A change is logged once, not each failure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use verve_protocol::Window;

/// The state of what was not tried yet.
const NOT_YET: &str = "not reached yet";

/// What is wrong, and since when.
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

/// The state of all dependencies.
#[derive(Debug)]
pub struct Health {
    /// For how long a refusal has to be absent before it is over.
    quiet: Duration,
    dependencies: Mutex<BTreeMap<String, Option<Problem>>>,
    /// What is answered with errors, by dependency and kind of error; and when it last was.
    refusals: Mutex<BTreeMap<(String, String), (Problem, Instant)>>,
    /// Whatever else is not as it has to be, by what it is about.
    problems: Mutex<BTreeMap<String, Problem>>,
}

/// One thing that the reporter depends on.
#[derive(Clone, Debug)]
pub struct Dependency {
    name: String,
    health: Arc<Health>,
}

impl Dependency {
    /// A dependency called `name`, such as `Redis redis://127.0.0.1:6379`; not reachable until it is [`Dependency::up`].
    pub fn new(name: String, health: &Arc<Health>) -> Self {
        health.set(&name, Some(NOT_YET.to_owned()));
        Self {
            name,
            health: health.clone(),
        }
    }

    /// It answered.
    pub fn up(&self) {
        if let Some(Some(before)) = self.health.set(&self.name, None)
            && before.error != NOT_YET
        {
            tracing::info!("{} is reachable again; before: {}", self.name, before.error);
        }
    }

    /// It did not answer, or with an error that says that it is not there.
    pub fn down(&self, error: impl Display) {
        let error = error.to_string();
        let before = self.health.set(&self.name, Some(error.clone()));
        if before.flatten().is_none_or(|before| before.error == NOT_YET) {
            tracing::error!("{} is not reachable: {error}; trying again until it is", self.name);
        } else {
            tracing::debug!("{} is still not reachable: {error}", self.name);
        }
    }

    /// It is there, and answered with an error of this kind. That is a problem until it has not come for a while.
    pub fn refuses(&self, kind: &str, error: impl Display) {
        let problem = Problem {
            error: format!("refuses what it is asked: {error}"),
            since: Timestamp::now(),
        };
        let now = Instant::now();
        let mut refusals = self.health.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.entry((self.name.clone(), kind.to_owned())) {
            Entry::Occupied(mut known) => known.get_mut().1 = now,
            Entry::Vacant(new) => {
                tracing::error!("{} {}; trying again until it works", self.name, problem.error);
                new.insert((problem, now));
            }
        }
    }
}

impl Health {
    /// Where a refusal is over once it was absent for so long.
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            dependencies: Mutex::default(),
            refusals: Mutex::default(),
            problems: Mutex::default(),
        }
    }

    /// Sets the state of `name`, and answers what it was. A problem is as old as it is, whatever its error is now.
    fn set(&self, name: &str, error: Option<String>) -> Option<Option<Problem>> {
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let before = dependencies.get(name).cloned();
        let since = match &before {
            Some(Some(problem)) => problem.since,
            _ => Timestamp::now(),
        };
        dependencies.insert(name.to_owned(), error.map(|error| Problem { error, since }));
        before
    }

    /// All dependencies, each with what is wrong with it.
    pub fn states(&self) -> BTreeMap<String, Option<Problem>> {
        let mut states = (self.dependencies.lock().unwrap_or_else(PoisonError::into_inner)).clone();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for ((name, _), (problem, _)) in refusals.iter() {
            states
                .entry(name.clone())
                .or_default()
                .get_or_insert_with(|| problem.clone());
        }
        states
    }

    /// What is wrong.
    pub fn problems(&self) -> Vec<(String, Problem)> {
        let states = self.states().into_iter();
        let others = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problems = states.filter_map(|(name, error)| Some((name, error?)));
        problems.chain(others).collect()
    }

    /// Whether a window is overdue, and which.
    pub fn set_overdue(&self, window: Option<Window>) {
        let error = window.map(|window| format!("{window} and later ones are due, and not reported"));
        self.set_problem("windows", error);
    }

    /// What is wrong with what `about` names, if something is. Logged when it begins and when it is over.
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

    /// Forgets refusals that have not come for a while. To be called regularly.
    pub fn settle(&self, now: Instant) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|(name, _), (problem, last)| {
            let goes_on = now.duration_since(*last) < self.quiet;
            if !goes_on {
                tracing::info!("{name} works again; before, it {}", problem.error);
            }
            goes_on
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
        // That it answers other commands well changes nothing.
        redis.up();
        health.settle(Instant::now() + QUIET - Duration::from_secs(1));
        assert_eq!(problems(), [problem("Redis", "refuses what it is asked: READONLY: no")]);
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
