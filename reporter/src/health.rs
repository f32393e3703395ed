//! What the reporter depends on, and whether it answers. A change is logged once, not each failure.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::kafka::Publisher;
use crate::store::Store;

/// How often Redis and Kafka are asked whether they are there.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// The state of what was not tried yet.
const NOT_YET: &str = "not reached yet";

/// The state of all dependencies.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<String, Option<String>>>);

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
        if let Some(Some(error)) = self.health.set(&self.name, None)
            && error != NOT_YET
        {
            tracing::info!("{} is reachable again; before: {error}", self.name);
        }
    }

    /// It did not answer, or with an error.
    pub fn down(&self, error: impl Display) {
        let error = error.to_string();
        let before = self.health.set(&self.name, Some(error.clone()));
        if before.flatten().is_none_or(|before| before == NOT_YET) {
            tracing::error!("{} is not reachable: {error}; trying again until it is", self.name);
        } else {
            tracing::debug!("{} is still not reachable: {error}", self.name);
        }
    }
}

impl Health {
    fn set(&self, name: &str, error: Option<String>) -> Option<Option<String>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), error)
    }

    /// All dependencies, each with its error if it is not reachable.
    pub fn states(&self) -> BTreeMap<String, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is not reachable, with its last error.
    pub fn problems(&self) -> Vec<(String, String)> {
        let states = self.states().into_iter();
        states.filter_map(|(name, error)| Some((name, error?))).collect()
    }
}

/// Asks Redis and Kafka regularly, until a stop is asked for.
pub async fn watch(store: Store, publisher: Publisher, stop: CancellationToken) {
    loop {
        futures::join!(store.ping(), publisher.ping());
        tokio::select! {
            () = tokio::time::sleep(CHECK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_a_problem_until_it_is_up() {
        let health = Arc::new(Health::default());
        let (redis, kafka) = (
            Dependency::new("Redis".into(), &health),
            Dependency::new("Kafka".into(), &health),
        );
        redis.up();
        assert_eq!(health.problems(), [("Kafka".to_owned(), "not reached yet".to_owned())]);
        kafka.up();
        assert!(health.problems().is_empty());
        kafka.down("refused");
        assert_eq!(health.problems(), [("Kafka".to_owned(), "refused".to_owned())]);
    }
}
