//! The reporter: callbacks a second, the delay of windows to Kafka, and memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use verve_protocol::{Keys, Partition};
use verve_tests::broker::Broker;
use verve_tests::kafka::Records;
use verve_tests::process::cpu_seconds;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, wait};

use crate::Options;
use crate::page::{Page, grouped, median};
use crate::targets::memory_mb;

/// The number of callbacks to deliver in a round.
const JOBS: u64 = 20_000;
/// The number of ids in the window that is used to measure memory.
const MANY: i64 = 10_000_000;
/// The namespace of the reporters.
pub const NAMESPACE: &str = "bench";
/// The value of `--grace-ms`.
const GRACE_MS: u64 = 500;

/// Measures the reporter and adds the section to the page.
pub async fn reporter(options: &Options, page: &mut Page) -> Result<()> {
    page.section("The reporter");
    let callbacks = callbacks(options).await?;
    let (lags, memory) = windows().await?;
    let p99 = lags.get(lags.len() * 99 / 100).copied().unwrap_or_default();
    page.table(&[
        ["", ""].map(str::to_owned).to_vec(),
        vec![
            "callbacks a second, to a sink that answers in 5 ms".to_owned(),
            grouped(callbacks.0),
        ],
        vec![
            "processor time of a callback".to_owned(),
            format!("{} µs", grouped(callbacks.1)),
        ],
        vec![
            format!(
                "from a window's end and `--grace-ms` to its record at a consumer, {} windows",
                lags.len()
            ),
            format!("median {} ms, p99 {} ms", grouped(median(lags.clone())), grouped(p99)),
        ],
        vec![
            "memory with windows of 10 million ids".to_owned(),
            format!("{} MB", grouped(memory)),
        ],
    ]);
    Ok(())
}

/// A reporter with a Redis and a broker of its own.
pub struct Site {
    _broker: Broker,
    pub redis: RedisServer,
    pub reporter: Reporter,
    /// The records of the reporter.
    pub records: Records,
}

impl Site {
    /// Starts a reporter of windows of these lengths, in [`NAMESPACE`].
    pub async fn start(window_seconds: &str, grace_ms: u64) -> Result<Self> {
        let broker = Broker::start().await?;
        let kafka = broker.kafka();
        let redis = RedisServer::start().await?;
        let topic = clock::unique("bench");
        kafka.create_topic(&topic, 1).await?;
        let records = kafka.consume(&topic).await?;
        let (url, grace) = (redis.url(), grace_ms.to_string());
        let mut flags = vec![
            "--redis-urls",
            &url,
            "--namespace",
            NAMESPACE,
            "--window-seconds",
            window_seconds,
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
        Ok(Self {
            _broker: broker,
            redis,
            reporter,
            records,
        })
    }
}

/// Measures callbacks a second, and the processor time of one in microseconds.
async fn callbacks(options: &Options) -> Result<(f64, f64)> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let redis = RedisServer::start().await?;
        let sink = Sink::start().await?;
        sink.answer("/hook", [Answer::status(200).after(Duration::from_millis(5))]);
        let url = redis.url();
        let flags = [
            "--redis-urls",
            &url,
            "--namespace",
            "bench",
            "--callback-allow",
            "127.0.0.1",
        ];
        let keys = Keys::new("bench".parse()?);
        let start = clock::current_window(clock::length(60)).start();
        let fill = "for i = 1, ARGV[3] do redis.call('XADD', KEYS[1], '*', 'endpoint', ARGV[1], 'method', 'get', 'window', ARGV[2]) end";
        let mut eval = redis::cmd("EVAL");
        eval.arg(fill)
            .arg(1)
            .arg(keys.callbacks())
            .arg(sink.url("/hook"))
            .arg(start)
            .arg(JOBS);
        eval.exec_async(&mut redis.connection().await?).await?;
        let reporter = Reporter::start(&flags)?;
        let came = |count: usize| {
            let sink = &sink;
            wait::until("callbacks", Duration::from_secs(120), move || async move {
                (sink.count() >= count).then_some(Instant::now())
            })
        };
        // The measurement starts when deliveries are under way.
        let first = usize::try_from(JOBS / 10)?;
        let begin = came(first).await?;
        let (before, counted) = (cpu_seconds(reporter.process().pid()), sink.count());
        let end = came(usize::try_from(JOBS)?).await.context("not all callbacks came")?;
        let made = (sink.count() - counted) as f64;
        rates.push(made / (end - begin).as_secs_f64());
        costs.push((cpu_seconds(reporter.process().pid()) - before) * 1e6 / made);
    }
    Ok((median(rates), median(costs)))
}

/// Returns the delays of records in milliseconds, sorted, and the memory in MB.
///
/// A delay lasts from the end of the window and the grace to the arrival of the record.
async fn windows() -> Result<(Vec<f64>, f64)> {
    let site = Site::start("1", GRACE_MS).await?;
    let (reporter, records) = (&site.reporter, &site.records);
    let length = clock::length(1);
    // A full window in the future.
    let full = length.window_at_ms(clock::now_ms() + 90_000);
    let keys = Keys::new(NAMESPACE.parse()?);
    let mut connection = site.redis.connection().await?;
    for first in (0..MANY).step_by(5_000) {
        let mut add = redis::cmd("SADD");
        add.arg(keys.ids(full, Partition::Whole)).arg(
            (first..first + 5_000)
                .map(|id| 1_000_000_000 + id * 37)
                .collect::<Vec<_>>(),
        );
        add.exec_async(&mut connection).await?;
    }
    // Records of windows that ended earlier are read late.
    let settled_ms = clock::now_ms() + 5_000;
    let mut lags = Vec::new();
    let mut memory: f64 = 0.0;
    loop {
        let record = records.next(Duration::from_secs(120)).await.context("no record came")?;
        let now_ms = clock::now_ms() as f64;
        memory = memory.max(memory_mb(reporter.process().pid()));
        let start: verve_protocol::Window = length
            .window_starting(u64::try_from(record.key.parse::<jiff::Timestamp>()?.as_second())?)
            .context("a key that is no window")?;
        if start.end_ms() > settled_ms {
            lags.push(now_ms - (start.end_ms() + GRACE_MS) as f64);
        }
        if start >= full {
            anyhow::ensure!(
                record.value == MANY.to_string(),
                "the full window has {} ids",
                record.value
            );
            break;
        }
    }
    lags.sort_by(f64::total_cmp);
    Ok((lags, memory))
}
