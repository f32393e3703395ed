//! How the cost grows: more hosts, more Redis, more ids.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Result;
use verve_protocol::{Id, Keys, Partition};
use verve_tests::clock;
use verve_tests::cluster::Cluster;
use verve_tests::host::Kind;
use verve_tests::redis::RedisServer;

use crate::Options;
use crate::load::{self, Traffic};
use crate::page::{Page, grouped, median};
use crate::requests::size_kb;
use crate::targets::{Component, Target};

/// The component by itself: size, time to instantiate, memory.
pub async fn component(options: &Options, page: &mut Page) -> Result<()> {
    page.section("The component");
    let redis = RedisServer::start().await?;
    // Each request on an instance of its own, against all on a few.
    let one_each = ["--max-instance-reuse-count", "1"];
    let fresh = Target::host("fresh", Kind::VerveHost, Component::Hello, &redis.url(), &one_each).await?;
    let reused = Target::host("reused", Kind::VerveHost, Component::Hello, &redis.url(), &[]).await?;
    let mut costs = Vec::new();
    for _ in 0..options.rounds {
        let cpu = |target: &Target| -> Result<f64> {
            let before = target.cpu_seconds();
            let run = load::closed(target.address(), 10, Traffic::Random, options.time())?;
            Ok((target.cpu_seconds() - before) * 1e6 / run.requests.max(1) as f64)
        };
        let fresh = cpu(&fresh)?;
        costs.push(fresh - cpu(&reused)?);
    }
    // Requests that wait, each in an instance of its own.
    let single = [
        "--max-instance-concurrent-reuse-count",
        "1",
        "--idle-instance-timeout",
        "60s",
    ];
    let many = Target::host("many", Kind::VerveHost, Component::Accept, &redis.url(), &single).await?;
    load::closed(many.address(), 2, Traffic::Random, Duration::from_secs(1))?;
    let few = many.memory_mb();
    load::closed(many.address(), 400, Traffic::Random, Duration::from_secs(3))?;
    let per_instance = (many.memory_mb() - few) / 398.0;
    page.table(&[
        ["", ""].map(str::to_owned).to_vec(),
        vec![
            "size".to_owned(),
            format!("{} KB", grouped(size_kb("accept_component.wasm")?)),
        ],
        vec![
            "size of hello".to_owned(),
            format!("{} KB", grouped(size_kb("verve_hello.wasm")?)),
        ],
        vec![
            "to instantiate hello, and end it".to_owned(),
            format!("{} µs of processor time", grouped(median(costs))),
        ],
        vec![
            "memory of an instance that has served".to_owned(),
            format!("{} MB", grouped(per_instance)),
        ],
        vec![
            "memory of `verve-host` with a few instances".to_owned(),
            format!("{} MB", grouped(few)),
        ],
    ]);
    Ok(())
}

/// More hosts, more Redis, more ids.
pub async fn scale(options: &Options, page: &mut Page) -> Result<()> {
    page.section("How it grows");
    hosts(options, page).await?;
    clusters(options, page).await?;
    ids(page).await
}

/// 1, 2 and 4 hosts with as much load each, each on one processor alone, shared as there are fewer than hosts.
async fn hosts(options: &Options, page: &mut Page) -> Result<()> {
    page.say("1, 2 and 4 hosts, each on one processor alone and with 25 connections of its own: the cost of a request must not grow.\n");
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let redis = RedisServer::start().await?;
    let mut targets = Vec::new();
    for number in 0..4 {
        let name = format!("host {number}");
        targets.push(Target::host_on(number % processors, &name, &redis.url()).await?);
    }
    let mut rows = vec![["hosts", "requests/s in all", "CPU µs"].map(str::to_owned).to_vec()];
    let mut bars = Vec::new();
    for count in [1, 2, 4] {
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let used = || targets[..count].iter().map(Target::cpu_seconds).sum::<f64>();
            let before = used();
            let runs = targets[..count].iter().map(|target| {
                let (address, time) = (target.address(), options.time());
                tokio::task::spawn_blocking(move || load::closed(address, 25, Traffic::Random, time))
            });
            let runs: Vec<_> = runs.collect();
            let (mut rate, mut requests) = (0.0, 0);
            for run in runs {
                let run = run.await??;
                rate += run.rate;
                requests += run.requests;
            }
            rates.push(rate);
            cpus.push((used() - before) * 1e6 / requests.max(1) as f64);
        }
        let cpu = median(cpus);
        bars.push((format!("{count} hosts"), cpu));
        rows.push(vec![count.to_string(), grouped(median(rates)), grouped(cpu)]);
    }
    page.table(&rows);
    page.bars("benchmarks-hosts.svg", "Processor time of a request, µs", &bars);
    Ok(())
}

/// The same load on one server and on a cluster, with the ids of a window in one set and in more.
async fn clusters(options: &Options, page: &mut Page) -> Result<()> {
    page.say(
        "One host, 100 connections: one server, and a cluster of three primaries on the same processors, with the ids of a window in 1, 16 \
         and 64 partitions. What the cluster costs the host is the difference in processor time.\n",
    );
    let server = RedisServer::start().await?;
    let cluster = Cluster::start(3, 0).await?;
    let mut targets = Vec::new();
    for (name, urls) in [("one server", server.url()), ("three primaries", cluster.urls())] {
        for count in [1, 16, 64] {
            let namespace = format!("namespace=bench-{count}");
            let partitions = format!("partitions={count}");
            let variables = ["--variable", &partitions, "--variable", &namespace];
            let target = Target::host("host", Kind::VerveHost, Component::Accept, &urls, &variables).await?;
            targets.push((name, count, target, Vec::new(), Vec::new()));
        }
    }
    for _ in 0..options.rounds {
        for (_, _, target, rates, cpus) in &mut targets {
            let before = target.cpu_seconds();
            let run = load::closed(target.address(), 100, Traffic::Random, options.time())?;
            rates.push(run.rate);
            cpus.push((target.cpu_seconds() - before) * 1e6 / run.requests.max(1) as f64);
        }
    }
    let mut rows = vec![
        ["Redis", "partitions", "requests/s", "CPU µs"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, count, _, rates, cpus) in targets {
        rows.push(vec![
            name.to_owned(),
            count.to_string(),
            grouped(median(rates)),
            grouped(median(cpus)),
        ]);
    }
    page.table(&rows);
    Ok(())
}

/// Windows of 10 thousand to 10 million ids.
async fn ids(page: &mut Page) -> Result<()> {
    page.say("A window in Redis: recording an id into it, counting it, and what it takes.\n");
    let head = ["ids in the window", "SADD of one more, µs", "SCARD, µs", "bytes per id"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let redis = RedisServer::start().await?;
    let mut connection = redis.connection().await?;
    let keys = Keys::new("bench".parse()?);
    let window = clock::current_window(clock::length(60));
    let key = keys.ids(window, Partition::Whole);
    let mut filled = 0_i64;
    let mut bars = Vec::new();
    for count in [10_000_i64, 100_000, 1_000_000, 10_000_000] {
        while filled < count {
            let mut add = redis::cmd("SADD");
            add.arg(&key);
            // Ids of ten digits, as of a platform's users.
            for id in filled..(filled + 5_000) {
                add.arg(Id(1_000_000_000 + id * 37).to_string());
            }
            add.exec_async(&mut connection).await?;
            filled += 5_000;
        }
        let mut times = Vec::new();
        for id in 0..2_000 {
            let mut add = redis::cmd("SADD");
            add.arg(&key).arg(id);
            let begin = Instant::now();
            add.exec_async(&mut connection).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let added = median(times);
        let mut times = Vec::new();
        for _ in 0..2_000 {
            let mut scard = redis::cmd("SCARD");
            scard.arg(&key);
            let begin = Instant::now();
            scard.exec_async(&mut connection).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let mut usage = redis::cmd("MEMORY");
        usage.arg("USAGE").arg(&key).arg("SAMPLES").arg(1000);
        let bytes: f64 = usage.query_async(&mut connection).await?;
        bars.push((format!("{} ids", grouped(count as f64)), bytes / count as f64));
        rows.push(vec![
            grouped(count as f64),
            grouped(added),
            grouped(median(times)),
            grouped(bytes / count as f64),
        ]);
    }
    page.table(&rows);
    page.bars("benchmarks-ids.svg", "Redis memory of a window, bytes per id", &bars);
    Ok(())
}
