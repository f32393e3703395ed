//! `verve-reporter`: the reporter of Verve.
//!
//! It counts closed windows, publishes them to Kafka, and delivers callbacks.
//!
//! - `cli`: the command line, environment and configuration file, parsed completely before anything
//!   else happens
//! - `windows`: the next step for windows (`ledger`, pure), which replica takes it (`lease`), the
//!   state in Redis (`report_store`), and the reporting itself
//! - `named`: the same for each named counter, and for longer windows
//! - `kafka`: publishes the records
//! - `counts`: answers queries for reports by HTTP or on the command line; `command`: runs the
//!   commands other than reporting
//! - `callbacks`: the queue in Redis, the delivery by HTTP, and which addresses may be reached
//! - `doctor`: examines all of this, and reports what to change
//! - `store`: the connections to Redis
//! - `backoff`: when failed operations are tried again; `periods`: the other durations
//! - `health`: which dependencies are reachable, each change logged once; `watch`: probes them
//! - `metrics`: the metrics; `overview`: the current state; `admin`: the HTTP port with all of it;
//!   `top`: the same in a terminal; `words`: the wording of it
//! - `simulated`: the seam for simulations; `telemetry`: logs and traces

mod admin;
mod backoff;
mod callbacks;
mod cli;
mod clock;
mod command;
mod condition;
mod counts;
mod doctor;
mod health;
mod kafka;
mod metrics;
mod named;
mod overview;
mod periods;
#[doc(hidden)]
pub mod simulated;
mod store;
mod telemetry;
mod top;
mod watch;
mod windows;
mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::cli::{Config, Task};
use crate::health::Health;
use crate::kafka::Publisher;
use crate::metrics::Metrics;
use crate::named::{Named, Parts};
use crate::overview::Overview;
use crate::store::Store;
use crate::windows::SweepThrottle;

/// How long deliveries in progress may take to finish after a stop is requested.
const STOP_WITHIN: Duration = Duration::from_secs(15);

const TASK_FAILED: &str = "a task of the reporter failed";

/// Runs what the command line asks for. `version` is what `--version` prints.
#[must_use]
pub fn main(version: &'static str) -> ExitCode {
    let config = match cli::parse(version) {
        Ok(Task::Report(config)) => *config,
        Ok(Task::Print(text)) => return command::print_all(&text),
        Ok(Task::Doctor(config)) => {
            return command::run(&config.redis, config.keys.clone(), async |store| {
                let report = doctor::examine(&store, &config).await;
                command::print(&report.text)?;
                anyhow::ensure!(!report.is_bad, "the doctor found problems");
                Ok(Vec::new())
            });
        }
        Ok(Task::Healthcheck(address)) => return command::to_its_end(admin::healthcheck(address)),
        Ok(Task::Top(config)) => {
            return command::to_its_end(async {
                top::run(&config.redis, config.keys.clone(), config.windows.clone()).await?;
                Ok(Vec::new())
            });
        }
        Ok(Task::Dead(at, dead)) => {
            return command::run(&at.redis, at.keys, async |store| {
                callbacks::dead::run(store, &dead).await
            });
        }
        Ok(Task::Counts {
            at,
            range,
            length,
            json,
        }) => {
            return command::run(&at.redis, at.keys, async |store| {
                let what = format!(
                    "{}, namespace {}, windows of {} s",
                    at.redis.urls,
                    store.keys.namespace(),
                    length.seconds()
                );
                // One message without a cause: its cause would repeat it.
                let page = range.read(&store).await;
                let page = page.map_err(|error| anyhow::anyhow!("the reports cannot be read: {what}: {error}"))?;
                command::print(&counts::text(&page, json)?)?;
                if page.counts.is_empty() {
                    eprintln!("verve-reporter: nothing was reported in the time asked for: {what}");
                }
                Ok(Vec::new())
            });
        }
        Err(code) => return code,
    };
    let traces = match telemetry::init(config.log_format) {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("verve-reporter: {error:#}");
            return ExitCode::from(cli::USAGE);
        }
    };
    // Log a panic in one line, like all other messages.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(config, version)));
    traces.finish();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, version: &str) -> anyhow::Result<()> {
    let replica = replica_name();
    let health = Arc::new(Health::new(config.windows.periods.quiet));
    let listener = tokio::net::TcpListener::bind(&config.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", config.listen))?;
    let metrics = Metrics::default();
    let store = Store::new(&config.redis, config.keys.clone(), &health, &metrics)?;
    let publisher = Publisher::new(&config.kafka, &health, &metrics)?;
    tracing::info!(
        replica,
        redis = %config.redis.urls,
        kafka = config.kafka.brokers.as_deref().unwrap_or("none"),
        topic = config.kafka.topic,
        window_seconds = %config.lengths,
        admin = %listener.local_addr()?,
        "verve-reporter {version} started",
    );
    if config.kafka.brokers.is_none() {
        tracing::info!("no Kafka is configured (--kafka-brokers): counts are only logged");
    }

    let stop = CancellationToken::new();
    let (overview, snapshot) = Overview::new(config.windows.clone(), store.clone(), health.clone(), metrics.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(overview.run(stop.clone()));
    let (keeper, leases) = windows::LeaseKeeper::new(
        store.clone(),
        health.clone(),
        config.windows.length,
        config.windows.periods,
        replica.clone(),
        publisher.clone(),
    );
    tasks.spawn(keeper.run(stop.clone()));
    let parts = Parts {
        config: config.windows.clone(),
        callback_lengths: config.callback_lengths,
        store: store.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        leases,
        throttle: SweepThrottle::default(),
        own_metrics: config.metrics_counters,
    };
    let mut counters = Vec::new();
    for length in config.lengths.all() {
        let (named, seen) = Named::new(parts.clone(), &config.lengths, length);
        tasks.spawn(named.run(stop.clone()));
        counters.push((length, seen));
    }
    let admin = Admin {
        lengths: config.lengths,
        token: config.admin_token,
        store: store.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        snapshot,
        counters,
        replica: replica.clone(),
        stop: stop.clone(),
    };
    tasks.spawn(admin::serve(listener, admin));
    tasks.spawn(watch::watch(
        health.clone(),
        store.clone(),
        publisher.clone(),
        config.windows.grace,
        stop.clone(),
    ));
    let length = config.windows.length;
    tasks.spawn(parts.unnamed().run(stop.clone()));
    let client = config.callbacks.client()?;
    let callbacks = callbacks::Callbacks::new(&config.callbacks, client, length, store, metrics, replica);
    tasks.spawn(callbacks.run(stop.clone()));

    until_asked(&mut tasks, stop_signal()).await?;
    tracing::info!("stopping: deliveries in progress may finish");
    stop.cancel();
    let done = async {
        while let Some(task) = tasks.join_next().await {
            task.context(TASK_FAILED)?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(STOP_WITHIN, done).await.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "not stopped within {} s; other replicas take over the deliveries",
            STOP_WITHIN.as_secs()
        ))
    })?;
    tracing::info!("stopped");
    Ok(())
}

/// Waits until a stop is requested, while these tasks run.
///
/// # Errors
/// If one of them ends before that, by a panic or otherwise. The process should then end and be
/// started again.
async fn until_asked(tasks: &mut JoinSet<()>, asked: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        asked = asked => asked,
        Some(ended) = tasks.join_next() => {
            ended.context(TASK_FAILED)?;
            anyhow::bail!("a task of the reporter has ended before the reporter")
        }
    }
}

/// Returns a name that no other replica and no later run of this one has.
fn replica_name() -> String {
    format!("{:08x}-{}", fastrand::u32(..), std::process::id())
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the error message if a task ends while no stop is requested.
    async fn unasked(task: impl Future<Output = ()> + Send + 'static) -> String {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        tasks.spawn(task);
        let error = until_asked(&mut tasks, std::future::pending()).await;
        format!("{:#}", error.expect_err("an error"))
    }

    #[tokio::test]
    async fn a_task_that_ends_ends_the_reporter() {
        let panicked = unasked(async { panic!("oh no") }).await;
        assert!(
            panicked.contains(TASK_FAILED) && panicked.contains("oh no"),
            "{panicked}"
        );
        assert!(unasked(async {}).await.contains("ended before"));
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        assert!(until_asked(&mut tasks, async { Ok(()) }).await.is_ok());
    }
}
