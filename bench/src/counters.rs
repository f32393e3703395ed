//! Many named counters: how soon their records come, and what the reporter takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use verve_protocol::{CounterName, Keys, Partition, Window};
use verve_tests::clock;
use verve_tests::kafka::Records;
use verve_tests::process::{cpu_seconds, threads};

use crate::page::{Page, grouped, median};
use crate::reporter::{NAMESPACE, Site};
use crate::targets::memory_mb;

/// How many counters the namespace has.
const REGISTERED: u64 = 10_000;
/// How many of them have ids in each window.
const ACTIVE: [u64; 3] = [10, 100, 1000];
/// The windows that are measured.
const WINDOWS: usize = 3;
/// The length of main windows, in seconds.
const SECONDS: u32 = 10;
/// The length of longer windows, in seconds.
const LONGER: u32 = 30;
/// The value of `--grace-ms`.
const GRACE_MS: u64 = 2000;

/// Measures the reporter with many counters and adds the section to the page.
pub async fn counters(page: &mut Page) -> Result<()> {
    page.section("Many counters");
    page.paragraph(&format!(
        "A namespace has {} named counters, some of which have ids in each window of {SECONDS} s and of {LONGER} s. \
         The time is from a window's end and `--grace-ms` to the arrival of its last record at a consumer: \
         the median of {WINDOWS} windows, and the longest, at whose end windows of both lengths are reported.",
        grouped(REGISTERED as f64)
    ));
    let head = [
        "counters with ids",
        "all records within, median",
        "longest",
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
    let Site {
        redis,
        reporter,
        records,
        ..
    } = &Site::start(&format!("{SECONDS},{LONGER}"), GRACE_MS).await?;
    let keys = Keys::new(NAMESPACE.parse()?);
    let mut connection = redis.connection().await?;
    let mut register = redis::pipe();
    for number in 0..REGISTERED {
        register
            .zadd(keys.counters(), name(number)?.as_str(), clock::now_ms() / 1000)
            .ignore();
    }
    register.exec_async(&mut connection).await?;
    let pids = [reporter.process().pid(), redis.process().pid()];
    let length = clock::length(SECONDS);
    let mut fill = async |window: Window| {
        for first in (0..active).step_by(500) {
            let numbers = first..active.min(first + 500);
            add(&keys, window, numbers).exec_async(&mut connection).await?;
        }
        anyhow::Ok(clock::next_window(length).await)
    };
    // The first window is not measured: all counters are found in it.
    let mut window = fill(clock::next_window(length).await).await?;
    let (begin, cpu) = (Instant::now(), pids.map(cpu_seconds));
    let first = window;
    let filling = async {
        for _ in 0..WINDOWS {
            window = fill(window).await?;
        }
        let took_s = begin.elapsed().as_secs_f64();
        let taken = pids.iter().zip(cpu);
        let shares = taken.map(|(pid, before)| (cpu_seconds(*pid) - before) / took_s);
        anyhow::Ok(shares.collect::<Vec<f64>>())
    };
    let (shares, lags) = tokio::try_join!(filling, lags(records, first, active))?;
    let (memory, threads) = (memory_mb(pids[0]), threads(pids[0])?);
    Ok(vec![
        active.to_string(),
        format!("{} ms", grouped(median(lags.clone()))),
        format!("{} ms", grouped(lags.into_iter().fold(0.0, f64::max))),
        format!("{} MB", grouped(memory)),
        threads.to_string(),
        format!("{:.1} %", shares[0] * 100.0),
        format!("{:.1} %", shares[1] * 100.0),
    ])
}

/// Returns how long the last record of each window took to arrive, in milliseconds.
///
/// The main windows begin with `first`, and have records of this many counters. A window also has
/// the records of the longer one that ends with it.
async fn lags(records: &Records, first: Window, active: u64) -> Result<Vec<f64>> {
    let windows = std::iter::successors(Some(first), |window| Some(window.next()));
    let mut came: BTreeMap<String, (Window, u64, f64)> = BTreeMap::new();
    for window in windows.take(WINDOWS) {
        came.insert(window.to_string(), (window, 0, 0.0));
        let longer = longer(window);
        if longer.end() == window.end() {
            came.insert(format!("{longer}/{}", longer.length().iso_8601()), (longer, 0, 0.0));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(u64::from(SECONDS) * WINDOWS as u64 + 30);
    while came.values().any(|(_, count, _)| *count < active) {
        let left = deadline.saturating_duration_since(Instant::now());
        let record = records.next(left).await;
        let record = record.with_context(|| format!("not all records came: {came:?}"))?;
        let Some((window, count, last)) = record.key.split_once('/').and_then(|(_, key)| came.get_mut(key)) else {
            continue;
        };
        anyhow::ensure!(record.value == "1", "{record:?}");
        let lag = clock::now_ms() as f64 - (window.end_ms() + GRACE_MS) as f64;
        (*count, *last) = (*count + 1, last.max(lag));
    }
    let mut of_end: BTreeMap<u64, f64> = BTreeMap::new();
    for (window, _, last) in came.into_values() {
        let of_end = of_end.entry(window.end()).or_default();
        *of_end = of_end.max(last);
    }
    Ok(of_end.into_values().collect())
}

fn name(number: u64) -> Result<CounterName> {
    Ok(format!("campaign-{number}").parse()?)
}

/// Returns the longer window that contains a main one.
fn longer(window: Window) -> Window {
    clock::length(LONGER).window_at_ms(window.start() * 1000)
}

/// Returns the commands with which instances add one id to each of these counters.
fn add(keys: &Keys, window: Window, numbers: std::ops::Range<u64>) -> redis::Pipeline {
    let mut all = redis::pipe();
    for name in numbers.filter_map(|number| name(number).ok()) {
        let of = keys.named(name.clone());
        let now = clock::now_ms() as f64 / 1000.0;
        all.zadd(keys.counters(), name.as_str(), now).ignore();
        for window in [window, longer(window)] {
            let length = window.length();
            all.zadd(keys.counters_in_use(length), name.as_str(), now).ignore();
            all.zadd(of.windows(length), verve_protocol::keys::indexed(window, 1), now)
                .ignore();
            all.sadd(of.ids(window, Partition::Whole), 1).ignore();
            all.hincr(of.stats(window), "requests", 1).ignore();
            all.hincr(of.stats(window), "new", 1).ignore();
        }
    }
    all
}
