//! Many named counters: how soon their records come, and what the reporter takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use verve_protocol::{CounterName, Keys, Partition, Window};
use verve_tests::broker::Broker;
use verve_tests::clock;
use verve_tests::process::{cpu_seconds, threads};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;

use crate::page::{Page, grouped, median};
use crate::targets::memory_mb;

/// How many counters the namespace has.
const REGISTERED: u64 = 10_000;
/// How many of them have ids in each window.
const ACTIVE: [u64; 3] = [10, 100, 1000];
/// The windows that are measured.
const WINDOWS: usize = 3;
/// The length of windows, in seconds.
const SECONDS: u32 = 10;
/// The value of `--grace-ms`.
const GRACE_MS: u64 = 2000;

/// Measures the reporter with many counters and adds the section to the page.
pub async fn counters(page: &mut Page) -> Result<()> {
    page.section("Many counters");
    page.paragraph(&format!(
        "A namespace has {} named counters, some of which have ids in each window of {SECONDS} s. \
         The time is from a window's end and `--grace-ms` to the arrival of its last record at a consumer, \
         in the median of {WINDOWS} windows.",
        grouped(REGISTERED as f64)
    ));
    let head = [
        "counters with ids",
        "all records within",
        "memory",
        "threads",
        "reporter's share of a processor",
        "Redis' share",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for active in ACTIVE {
        table.push(with(active).await?);
    }
    page.table(&table);
    Ok(())
}

/// Returns the row of the table for this many counters with ids.
async fn with(active: u64) -> Result<Vec<String>> {
    let broker = Broker::start().await?;
    let kafka = broker.kafka();
    let redis = RedisServer::start().await?;
    let topic = clock::unique("bench");
    kafka.create_topic(&topic, 1).await?;
    let records = kafka.consume(&topic).await?;
    let (arrived, mut records_read) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        while let Some(record) = records.next(Duration::from_secs(120)).await {
            let _ = arrived.send((clock::now_ms(), record));
        }
    });
    let keys = Keys::new("bench".parse()?);
    let mut connection = redis.connection().await?;
    let mut register = redis::pipe();
    for number in 0..REGISTERED {
        register
            .zadd(keys.counters(), name(number)?.as_str(), clock::now_ms() / 1000)
            .ignore();
    }
    register.exec_async(&mut connection).await?;
    let (url, grace, seconds) = (redis.url(), GRACE_MS.to_string(), SECONDS.to_string());
    let mut flags = vec![
        "--redis-urls",
        &url,
        "--namespace",
        "bench",
        "--window-seconds",
        &seconds,
    ];
    flags.extend([
        "--grace-ms",
        &grace,
        "--kafka-brokers",
        kafka.brokers(),
        "--kafka-topic",
        &topic,
    ]);
    let reporter = Reporter::ready(&flags).await?;
    let pids = [reporter.process().pid(), redis.process().pid()];
    let length = clock::length(SECONDS);
    // The first window is not measured: all counters are found in it.
    clock::next_window(length).await;
    let mut begin = None;
    let mut windows = BTreeSet::new();
    for number in 0..=WINDOWS {
        let window = clock::current_window(length);
        for first in (0..active).step_by(500) {
            add(&keys, window, first..active.min(first + 500))
                .exec_async(&mut connection)
                .await?;
        }
        if number > 0 {
            windows.insert(window);
        }
        clock::next_window(length).await;
        if number == 0 {
            begin = Some((clock::now_ms(), pids.map(cpu_seconds)));
        }
    }
    let (begin_ms, cpu) = begin.context("several windows")?;
    let took_s = (clock::now_ms() - begin_ms) as f64 / 1000.0;
    let shares: Vec<f64> = pids
        .iter()
        .zip(cpu)
        .map(|(pid, before)| (cpu_seconds(*pid) - before) / took_s)
        .collect();
    let mut came: BTreeMap<Window, (u64, f64)> = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while came
        .iter()
        .filter(|(window, (count, _))| windows.contains(window) && *count == active)
        .count()
        < WINDOWS
    {
        let record = timeout_at(deadline, records_read.recv()).await.ok().flatten();
        let (at_ms, record) = record.with_context(|| format!("not all records came: {came:?}"))?;
        let Some((_, key)) = record.key.split_once('/') else {
            continue;
        };
        let start = u64::try_from(key.parse::<jiff::Timestamp>()?.as_second())?;
        let window = length.window_starting(start).context("a key that is no window")?;
        anyhow::ensure!(record.value == "1" || !windows.contains(&window), "{record:?}");
        let lag = at_ms as f64 - (window.end_ms() + GRACE_MS) as f64;
        let (count, last) = came.entry(window).or_default();
        (*count, *last) = (*count + 1, last.max(lag));
    }
    let lags = came
        .into_iter()
        .filter(|(window, _)| windows.contains(window))
        .map(|(_, (_, lag))| lag);
    reading.abort();
    let (memory, threads) = (memory_mb(pids[0]), threads(pids[0])?);
    Ok(vec![
        active.to_string(),
        format!("{} ms", grouped(median(lags))),
        format!("{} MB", grouped(memory)),
        threads.to_string(),
        format!("{:.1} %", shares[0] * 100.0),
        format!("{:.1} %", shares[1] * 100.0),
    ])
}

fn name(number: u64) -> Result<CounterName> {
    Ok(format!("campaign-{number}").parse()?)
}

/// Returns the commands with which instances add one id to each of these counters.
fn add(keys: &Keys, window: Window, numbers: std::ops::Range<u64>) -> redis::Pipeline {
    let mut all = redis::pipe();
    for name in numbers.filter_map(|number| name(number).ok()) {
        let of = keys.named(name.clone());
        let now = clock::now_ms() as f64 / 1000.0;
        all.zadd(keys.counters(), name.as_str(), now).ignore();
        all.zadd(keys.counters_in_use(), name.as_str(), now).ignore();
        all.zadd(
            of.windows(window.length()),
            verve_protocol::keys::indexed(window, 1),
            now,
        )
        .ignore();
        all.sadd(of.ids(window, Partition::Whole), 1).ignore();
        all.hset_multiple(of.stats(window), &[("requests", 1), ("new", 1)])
            .ignore();
    }
    all
}
