//! The cost of a request, compared with the peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use verve_tests::host::Kind;
use verve_tests::net;
use verve_tests::redis::RedisServer;

use crate::load::{self, Run, Traffic};
use crate::page::{Page, grouped, median};
use crate::targets::{Component, Target};
use crate::{Options, targets};

/// The names of the programs in tables, `verve-host` first.
const HOST: &str = "verve-host";
const HELLO: &str = "verve-host, hello";
const GO: &str = "Go, native";
const AXUM: &str = "axum (Rust, native)";
const SPIN: &str = "Spin";
const HOST_LENGTHS: &str = "verve-host, three lengths";
const HOST_P2: &str = "verve-host, WASI 0.2";
const SPIN_P2: &str = "Spin, WASI 0.2";

async fn all(redis: &str) -> Result<Vec<Target>> {
    let mut targets = vec![
        Target::host(HOST, Kind::VerveHost, Component::Accept, redis, &[]).await?,
        Target::host(HELLO, Kind::VerveHost, Component::Hello, redis, &[]).await?,
        Target::host(HOST_P2, Kind::VerveHostP2, Component::Accept, redis, &[]).await?,
        Target::host(
            HOST_LENGTHS,
            Kind::VerveHost,
            Component::Accept,
            redis,
            &["--variable", "window_seconds=60,3600,86400"],
        )
        .await?,
        Target::go(redis).await?,
        Target::axum(redis).await?,
    ];
    if Kind::available().contains(&Kind::Spin) {
        targets.push(Target::host(SPIN, Kind::Spin, Component::Accept, redis, &[]).await?);
        targets.push(Target::host("Spin, hello", Kind::Spin, Component::Hello, redis, &[]).await?);
    }
    Ok(targets)
}

/// The medians of several runs, each figure separately.
///
/// `cpu` is the processor time of a request in microseconds.
#[derive(Clone, Copy, Default)]
struct Measured {
    run: Run,
    cpu: f64,
}

fn middle(runs: &[Measured]) -> Measured {
    let of = |figure: fn(&Measured) -> f64| median(runs.iter().map(figure));
    Measured {
        run: Run {
            rate: of(|m| m.run.rate),
            p50: of(|m| m.run.p50),
            p99: of(|m| m.run.p99),
            p999: of(|m| m.run.p999),
            requests: runs.iter().map(|m| m.run.requests).sum(),
            errors: runs.iter().map(|m| m.run.errors).sum(),
        },
        cpu: of(|m| m.cpu),
    }
}

fn measure(target: &Target, run: impl Fn(SocketAddr) -> Result<Run>) -> Result<Measured> {
    let before = target.cpu_seconds();
    let run = run(target.address()).with_context(|| target.name.clone())?;
    let cpu = (target.cpu_seconds() - before) * 1e6 / run.requests.max(1) as f64;
    ensure!(run.errors == 0, "{}: {} requests failed", target.name, run.errors);
    Ok(Measured { run, cpu })
}

/// Measures requests a second in closed loop.
pub async fn rates(options: &Options, page: &mut Page) -> Result<()> {
    let redis = RedisServer::start().await?;
    let targets = all(&redis.url()).await?;
    page.section("Requests a second");
    page.paragraph(
        "Closed loop: each client sends its next request after it has received the answer (wrk).\n\
         CPU is the processor time that the program itself spends on a request.\n",
    );
    for (connections, traffic) in [
        (10, Traffic::Random),
        (100, Traffic::Random),
        (400, Traffic::Random),
        (100, Traffic::Repeats),
    ] {
        if options.quick && connections != 100 {
            continue;
        }
        let mut runs: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
        for _ in 0..options.rounds {
            for target in &targets {
                let measured = measure(target, |address| {
                    load::closed(address, connections, traffic, options.time())
                })?;
                runs.entry(&target.name).or_default().push(measured);
            }
        }
        let of = |name: &str| runs.get(name).map(|runs| middle(runs)).unwrap_or_default();
        let (go, axum) = (of(GO), of(AXUM));
        let ids = match traffic {
            Traffic::Random => "ids random over a million",
            Traffic::Repeats => "nine of ten ids repeated",
        };
        page.paragraph(&format!("### {connections} connections, {ids}\n"));
        let head = [
            "",
            "requests/s",
            "of Go's",
            "of axum's",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU µs",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for target in &targets {
            let Measured { run, cpu } = of(&target.name);
            rows.push(vec![
                target.name.clone(),
                grouped(run.rate),
                format!("{:.2}", run.rate / go.run.rate),
                format!("{:.2}", run.rate / axum.run.rate),
                grouped(run.p50),
                grouped(run.p99),
                grouped(run.p999),
                grouped(cpu),
            ]);
        }
        page.table(&rows);
        page.paragraph(&format!(
            "`accept` reaches {:.2} of the rate of `hello`.\n",
            of(HOST).run.rate / of(HELLO).run.rate
        ));
        if connections == 100 {
            let bars: Vec<_> = targets
                .iter()
                .map(|target| (target.name.clone(), of(&target.name).run.rate))
                .collect();
            let title = format!("Requests a second, 100 connections, {ids}");
            page.bars(&format!("benchmarks-{}.svg", traffic.name()), &title, &bars);
        }
    }
    Ok(())
}

/// Measures latencies at a fixed rate.
pub async fn latency(options: &Options, page: &mut Page) -> Result<()> {
    const RATE: u32 = 10_000;
    let oha = options
        .oha
        .as_ref()
        .context("--oha is missing: run `cargo xtask bench`")?;
    let redis = RedisServer::start().await?;
    let targets = all(&redis.url()).await?;
    page.section("Latency at 10,000 requests a second");
    page.paragraph(
        "Open loop: each request is sent at its scheduled time, even if earlier requests have no answer yet (oha, 100 connections).\n",
    );
    let mut runs: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
    for _ in 0..options.rounds {
        for target in &targets {
            let measured = measure(target, |address| load::open(oha, address, RATE, options.time()))?;
            runs.entry(&target.name).or_default().push(measured);
        }
    }
    let head = ["", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for target in &targets {
        let Measured { run, cpu } = middle(&runs[target.name.as_str()]);
        let figures = [run.rate, run.p50, run.p99, run.p999, cpu].map(grouped);
        rows.push(std::iter::once(target.name.clone()).chain(figures).collect());
    }
    page.table(&rows);
    Ok(())
}

/// Measures responses in two writes, and their cost with Nagle's algorithm.
pub async fn writes(options: &Options, page: &mut Page) -> Result<()> {
    let redis = RedisServer::start().await?;
    page.section("Responses in two writes");
    page.paragraph(
        "If `TCP_NODELAY` is off, as in Spin, a response whose head and body leave in two writes waits 40 ms for a delayed acknowledgement.\n\
         One client checks whether the first read contains the whole response; p99 is that of 10 connections.\n",
    );
    let mut rows = vec![["", "in two writes", "p99 ms"].map(str::to_owned).to_vec()];
    let mut targets = vec![
        Target::host("TCP_NODELAY on", Kind::VerveHost, Component::Accept, &redis.url(), &[]).await?,
        Target::host(
            "TCP_NODELAY off",
            Kind::VerveHost,
            Component::Accept,
            &redis.url(),
            &["--no-tcp-nodelay"],
        )
        .await?,
    ];
    if Kind::available().contains(&Kind::Spin) {
        targets.push(Target::host(SPIN, Kind::Spin, Component::Accept, &redis.url(), &[]).await?);
    }
    for target in &targets {
        let mut p99 = Vec::new();
        let mut share = Vec::new();
        for _ in 0..options.rounds {
            let (address, time) = (target.address(), options.time());
            let load = tokio::task::spawn_blocking(move || load::closed(address, 10, Traffic::Random, time));
            share.push(two_writes(target.address(), time).await?);
            p99.push(load.await??.p99);
        }
        rows.push(vec![
            target.name.clone(),
            format!("{:.2}%", 100.0 * median(share)),
            grouped(median(p99)),
        ]);
    }
    page.table(&rows);
    Ok(())
}

/// Returns the share of responses that do not fit completely into the first read.
async fn two_writes(address: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(address).await?;
    let end = tokio::time::Instant::now() + time;
    let (mut all, mut two) = (0_u32, 0_u32);
    let mut buffer = [0; 4096];
    while tokio::time::Instant::now() < end {
        let request = format!("GET /api/verve/accept?id={all} HTTP/1.1\r\nhost: verve.bench\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let (mut length, mut reads) = (0, 0);
        while !buffer[..length].ends_with(b"\r\n\r\nok") {
            let read = stream.read(&mut buffer[length..]).await?;
            ensure!(read > 0, "the connection was closed");
            length += read;
            reads += 1;
        }
        all += 1;
        two += u32::from(reads > 1);
    }
    Ok(f64::from(two) / f64::from(all.max(1)))
}

/// Counts Redis commands per request.
pub async fn commands(options: &Options, page: &mut Page) -> Result<()> {
    page.section("Redis commands per request");
    page.paragraph(
        "Counted by `INFO commandstats`, with 100 connections.\n\
         The commands for expiry, statistics and connecting are included.\n",
    );
    let mut rows = vec![["", "random", "repeats"].map(str::to_owned).to_vec()];
    for kind in Kind::available() {
        let redis = RedisServer::start().await?;
        let name = name(kind);
        let target = Target::host(name, kind, Component::Accept, &redis.url(), &[]).await?;
        let mut row = vec![name.to_owned()];
        for traffic in [Traffic::Random, Traffic::Repeats] {
            let before = commands_so_far(&redis).await?;
            let run = load::closed(target.address(), 100, traffic, options.time())?;
            // Some commands are sent only after the responses.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let commands = commands_so_far(&redis).await? - before;
            row.push(format!("{:.3}", commands as f64 / run.requests as f64));
        }
        rows.push(row);
    }
    page.table(&rows);
    Ok(())
}

/// Measures requests a second with and without a reachable Redis.
pub async fn away(options: &Options, page: &mut Page) -> Result<()> {
    page.section("While Redis is unreachable");
    page.paragraph(
        "The same host, with a Redis and with an address that refuses connections.\n\
         Without Redis each id goes to the spool on disk.\n\
         100 connections, ids random over a million.\n",
    );
    let redis = RedisServer::start().await?;
    let nobody = format!("redis://{}", net::free_address()?);
    let head = ["", "with Redis, requests/s", "without", "ratio", "p99 ms without"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for kind in Kind::available() {
        let name = name(kind);
        let with = Target::host(name, kind, Component::Accept, &redis.url(), &[]).await?;
        let without = Target::host(name, kind, Component::Accept, &nobody, &[]).await?;
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            for (target, runs) in [&with, &without].into_iter().zip(&mut runs) {
                runs.push(measure(target, |address| {
                    load::closed(address, 100, Traffic::Random, options.time())
                })?);
            }
        }
        let [with, without] = runs.map(|runs| middle(&runs).run);
        rows.push(vec![
            name.to_owned(),
            grouped(with.rate),
            grouped(without.rate),
            format!("{:.2}", without.rate / with.rate),
            grouped(without.p99),
        ]);
    }
    page.table(&rows);
    Ok(())
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::VerveHost => HOST,
        Kind::Spin => SPIN,
        Kind::VerveHostP2 => HOST_P2,
        Kind::SpinP2 => SPIN_P2,
    }
}

async fn commands_so_far(redis: &RedisServer) -> Result<u64> {
    let mut connection = redis.connection().await?;
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut connection)
        .await?;
    // Lines are like `cmdstat_sadd:calls=3,usec=…`. The INFO commands of this function do not
    // count.
    let calls = info.lines().filter(|line| !line.starts_with("cmdstat_info"));
    let calls = calls.filter_map(|line| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok());
    Ok(calls.sum())
}

/// Returns the size of a component's file, in KB.
pub fn size_kb(file: &str) -> Result<f64> {
    Ok(std::fs::metadata(targets::wasm(file)?)?.len() as f64 / 1000.0)
}
