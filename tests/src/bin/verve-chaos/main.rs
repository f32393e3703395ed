//! `verve-chaos`: all of Verve under steady traffic, while its parts fail.
//!
//! Every part is killed, stopped, paused and cut off. `cargo xtask chaos` builds and starts this
//! program.
//!
//! - [`schedule`]: the faults and their times, drawn from a seed
//! - [`parts`]: the parts that run, and how they fail; [`logs`]: their output
//! - [`traffic`], [`tally`], [`series`]: the clients, and what follows from their answers
//! - [`settle`], [`verdict`]: the quiet time at the end, and whether every promise was kept
//!
//! In each round, a part has at most one fault. After the round, there are no faults until the
//! spools are empty. So the ids that a host has spooled are in Redis before the allowed lateness of
//! their window is over. The contract requires this from the operator.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use fastrand::Rng;
use futures::future;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use verve_protocol::WindowLengths;
use verve_tests::clock;

use logs::Logs;
use parts::Parts;
use series::Series;
use settle::Observed;
use traffic::{Asked, Traffic};
use verdict::Check;

mod logs;
mod parts;
mod schedule;
mod series;
mod settle;
mod tally;
mod traffic;
mod verdict;

/// Makes every part of Verve fail under traffic, and checks the counts
///
/// Parts are killed, stopped, paused and cut off; each id must be counted exactly once.
#[derive(Parser)]
#[command(name = "verve-chaos")]
struct Args {
    /// How long faults occur, in seconds
    ///
    /// The last round is completed, and settling takes up to two minutes more.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Repeat the faults of the run with this seed; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Use a Redis Cluster, three primaries and three replicas, instead of one server
    #[arg(long)]
    cluster: bool,
    /// Count in named counters too, and in windows of two lengths
    #[arg(long)]
    named: bool,
}

/// The length of windows, in seconds.
const ONE_LENGTH: &str = "2";
const TWO_LENGTHS: &str = "2,6";
/// The least time without faults between two rounds.
const REST: Duration = Duration::from_secs(2);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// The maximum number of problems of one kind that are printed.
const SHOWN: usize = 10;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let logs = Logs::new();
    let redis = match args.cluster {
        false => schedule::Redis::Server,
        true => schedule::Redis::Cluster,
    };
    let flags = [(args.cluster, " --cluster"), (args.named, " --named")];
    let flags: String = flags
        .iter()
        .filter_map(|(given, flag)| given.then_some(*flag))
        .collect();
    println!("chaos for {} s{flags}, seed {seed}", args.seconds);
    // In all cases, dropping the parts ends them.
    let kept = tokio::select! {
        kept = run(redis, &args, seed, &logs) => kept,
        () = interrupted() => return ExitCode::FAILURE,
    };
    let error = match kept {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => "FAILED".to_owned(),
        Err(error) => format!("FAILED: {error:#}"),
    };
    eprintln!("verve-chaos: {error}");
    eprintln!(
        "the same faults again: cargo xtask chaos --seconds {} --seed {seed}{flags}",
        args.seconds
    );
    match logs.save(seed) {
        Ok(folder) => eprintln!("the logs of all parts: {}", folder.display()),
        Err(error) => eprintln!("verve-chaos: {error:#}"),
    }
    ExitCode::FAILURE
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Returns whether every promise was kept.
async fn run(redis: schedule::Redis, args: &Args, seed: u64, logs: &Logs) -> Result<bool> {
    let lengths = if args.named { TWO_LENGTHS } else { ONE_LENGTH };
    let lengths: WindowLengths = lengths.parse()?;
    let parts = Parts::start(redis, args.named, lengths).await?;
    let kept = disturb(&parts, args.seconds, seed, logs).await;
    parts.collect(logs).await;
    kept
}

async fn disturb(parts: &Parts, seconds: u64, seed: u64, logs: &Logs) -> Result<bool> {
    let mut rng = Rng::with_seed(seed);
    let begin_ms = clock::now_ms();
    let asked = Asked {
        sink: parts.sink.url(""),
        counters: parts.counters.clone(),
    };
    let mut traffic = Traffic::start(parts.addresses.clone(), parts.lengths.main(), asked, &mut rng);
    logs.event("all parts run, and clients send");
    tokio::select! {
        done = rounds(parts, Duration::from_secs(seconds), rng, logs) => done?,
        () = progress(&traffic, logs) => {}
    }
    traffic.stop().await;
    logs.event("no more faults and requests; waiting until all is settled");
    // Requests without an answer also end before the last window ends.
    sleep(REST).await;
    let all = Series::all(&parts.counters, &parts.lengths, begin_ms);
    let jobs = traffic.tally().jobs.clone();
    let seen = settle::settle(parts, &all, &jobs).await?;
    parts.check().await?;
    keep(&all, &traffic, &seen, logs);
    let checks = verdict::verdict(&all, &traffic.tally(), &seen)?;
    summary(&traffic, &checks);
    Ok(checks.iter().all(|check| check.problems.is_empty()))
}

async fn rounds(parts: &Parts, time: Duration, mut rng: Rng, logs: &Logs) -> Result<()> {
    let begin = Instant::now();
    let mut number = 0;
    while begin.elapsed() < time {
        number += 1;
        let faults = schedule::round(parts.redis(), &mut rng);
        logs.event(&format!("round {number}: {} faults", faults.len()));
        future::try_join_all(faults.iter().map(|fault| async {
            sleep(fault.after).await;
            let (part, trouble, ms) = (fault.part, fault.trouble, fault.lasts.as_millis());
            logs.event(&format!("{part} {trouble} for {ms} ms"));
            parts.suffer(fault, logs).await?;
            logs.event(&format!("{part} runs again"));
            anyhow::Ok(())
        }))
        .await?;
        sleep(REST).await;
        parts.well(logs).await?;
        settle::drained(parts).await?;
        parts.check().await?;
    }
    Ok(())
}

async fn progress(traffic: &Traffic, logs: &Logs) {
    loop {
        sleep(PROGRESS_EVERY).await;
        let outcomes: Vec<String> = traffic
            .tally()
            .outcomes
            .iter()
            .map(|(name, n)| format!("{n} {name}"))
            .collect();
        logs.event(&format!("requests: {}", outcomes.join(", ")));
    }
}

/// Keeps the data that is needed to examine a failure.
fn keep(all: &[Series], traffic: &Traffic, seen: &Observed, logs: &Logs) {
    for record in &seen.records {
        logs.keep(
            "records",
            &format!("{} = {} {:?}\n", record.key, record.value, record.headers),
        );
    }
    for series in all {
        let Some(last) = series.windows.last() else { continue };
        let (seconds, name) = (last.length().seconds(), series.name());
        for (number, bounds) in series.tally(&traffic.tally()).windows(last.start() / seconds) {
            logs.keep("bounds", &format!("{}{name}: {bounds:?}\n", number * seconds));
        }
    }
}

fn summary(traffic: &Traffic, checks: &[Check]) {
    let tally = traffic.tally();
    println!("\n{} requests:", tally.requests());
    for (outcome, n) in &tally.outcomes {
        println!("{n:>10} {outcome}");
    }
    println!();
    for Check { name, seen, problems } in checks {
        println!(
            "{name:<48} {:<7} {seen}",
            if problems.is_empty() { "ok" } else { "FAILED" }
        );
        for problem in problems.iter().take(SHOWN) {
            println!("    {problem}");
        }
        if problems.len() > SHOWN {
            println!("    and {} more", problems.len() - SHOWN);
        }
    }
}
