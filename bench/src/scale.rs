//! The growth of the cost with more hosts, more Redis and more ids.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Result;
use redis::AsyncCommands;
use verve_protocol::slot::{SLOTS, slot};
use verve_protocol::{Id, Keys, Partition, Partitions, Window};
use verve_tests::clock;
use verve_tests::cluster::Cluster;
use verve_tests::host::Kind;
use verve_tests::process::cpu_seconds;
use verve_tests::redis::RedisServer;

use crate::Options;
use crate::load::{self, Traffic};
use crate::page::{Page, grouped, median};
use crate::requests::size_kb;
use crate::targets::{Component, Target};

/// The number of ids in [`balance`].
const IDS: i64 = 10_000_000;

/// Measures the component alone: size, time to instantiate, memory.
pub async fn component(options: &Options, page: &mut Page) -> Result<()> {
    page.section("The component");
    let redis = RedisServer::start().await?;
    // Each request on its own instance, compared with all requests on a few instances.
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
    // Requests that wait, each in its own instance.
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

/// Measures the cost with more hosts, more Redis and more ids.
pub async fn scale(options: &Options, page: &mut Page) -> Result<()> {
    page.section("How it grows");
    hosts(options, page).await?;
    clusters(options, page).await?;
    balance(page).await?;
    ids(page).await
}

/// Measures 1, 2 and 4 hosts with the same load each, each pinned to one processor.
///
/// Hosts share processors if there are fewer processors than hosts.
async fn hosts(options: &Options, page: &mut Page) -> Result<()> {
    page.paragraph(
        "1, 2 and 4 hosts, each pinned to one processor and with 25 connections of its own.\n\
         The cost of a request must not grow.\n",
    );
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

/// Measures the same load on one server and on a cluster.
///
/// The ids of a window are in one set and in several.
async fn clusters(options: &Options, page: &mut Page) -> Result<()> {
    page.paragraph(
        "One host with 100 connections, on one Redis server and on a cluster of three primaries on the same processors.\n\
         The ids of a window are in 1, 16 and 64 partitions.\n\
         The difference in processor time is the cost of the cluster for the host.\n\
         The processor time of Redis is the sum of all its nodes.\n",
    );
    let server = RedisServer::start().await?;
    let cluster = Cluster::start(3, 0).await?;
    let mut targets = Vec::new();
    for (name, urls, nodes) in [
        ("one server", server.url(), std::slice::from_ref(&server)),
        ("three primaries", cluster.urls(), cluster.nodes()),
    ] {
        for count in [1, 16, 64] {
            let namespace = format!("namespace=bench-{count}");
            let partitions = format!("partitions={count}");
            let variables = ["--variable", &partitions, "--variable", &namespace];
            let target = Target::host("host", Kind::VerveHost, Component::Accept, &urls, &variables).await?;
            targets.push((name, count, target, nodes, Vec::new(), Vec::new(), Vec::new()));
        }
    }
    for _ in 0..options.rounds {
        for (_, _, target, nodes, rates, cpus, of_redis) in &mut targets {
            let used = || nodes.iter().map(|node| cpu_seconds(node.process().pid())).sum::<f64>();
            let (before, redis_before) = (target.cpu_seconds(), used());
            let run = load::closed(target.address(), 100, Traffic::Random, options.time())?;
            let of_each = |seconds: f64| seconds * 1e6 / run.requests.max(1) as f64;
            rates.push(run.rate);
            cpus.push(of_each(target.cpu_seconds() - before));
            of_redis.push(of_each(used() - redis_before));
        }
    }
    let mut rows = vec![
        ["Redis", "partitions", "requests/s", "CPU µs", "Redis' CPU µs"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, count, _, _, rates, cpus, of_redis) in targets {
        rows.push(vec![
            name.to_owned(),
            count.to_string(),
            grouped(median(rates)),
            grouped(median(cpus)),
            grouped(median(of_redis)),
        ]);
    }
    page.table(&rows);
    Ok(())
}

/// Measures how evenly the nodes of a cluster share a window of 10 million ids.
///
/// Also measures the time to count the window.
async fn balance(page: &mut Page) -> Result<()> {
    page.paragraph(
        "10 million ids in one window on a cluster of three primaries.\n\
         The table shows the size of the fullest partition and of the fullest node, relative to an even share.\n\
         It also shows the median for the fullest node over a thousand consecutive windows.\n\
         The last column is the time to count the window, with one `SCARD` for each partition.\n",
    );
    let head = [
        "partitions",
        "fullest partition",
        "fullest node",
        "of 1,000 windows, median",
        "counting, ms",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let keys = Keys::new("bench".parse()?);
    for count in [1, 4, 16, 64] {
        let cluster = Cluster::start(3, 0).await?;
        let mut redis = cluster.connection().await?;
        let partitions = Partitions::try_new(count)?;
        let mut window = clock::current_window(clock::length(60));
        let mut waiting: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for number in 0..IDS {
            // Ids of ten digits, like the user ids of a platform.
            let id = Id(1_000_000_000 + number * 37);
            let key = keys.ids(window, id.partition(partitions));
            let ids = waiting.entry(key.clone()).or_default();
            ids.push(id.to_string());
            if ids.len() == 5_000 {
                let ids = std::mem::take(ids);
                let () = redis.sadd(key, ids).await?;
            }
        }
        for (key, ids) in waiting.into_iter().filter(|(_, ids)| !ids.is_empty()) {
            let () = redis.sadd(key, ids).await?;
        }
        let mut times = Vec::new();
        let mut sizes: Vec<u64> = Vec::new();
        for _ in 0..100 {
            let begin = Instant::now();
            sizes.clear();
            for partition in partitions.all() {
                sizes.push(redis.scard(keys.ids(window, partition)).await?);
            }
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::ensure!(sizes.iter().sum::<u64>() == IDS as u64, "ids are missing: {sizes:?}");
        // The slots are distributed as `redis-cli --cluster create` does it.
        let share = |window: Window| {
            let mut nodes = [0; 3];
            for (partition, size) in partitions.all().zip(&sizes) {
                nodes[usize::from(slot(&keys.ids(window, partition))) * 3 / usize::from(SLOTS)] += size;
            }
            nodes.into_iter().max().unwrap_or_default() as f64 * 3.0 / IDS as f64
        };
        let fullest_node = share(window);
        let mut shares = Vec::new();
        for _ in 0..1_000 {
            window = window.next();
            shares.push(share(window));
        }
        let fullest = sizes.iter().max().copied().unwrap_or_default() as f64;
        rows.push(vec![
            count.to_string(),
            format!("{:.3}", fullest * f64::from(count) / IDS as f64),
            format!("{fullest_node:.2}"),
            format!("{:.2}", median(shares)),
            format!("{:.1}", median(times)),
        ]);
    }
    page.table(&rows);
    Ok(())
}

/// Measures windows of 10 thousand to 10 million ids.
async fn ids(page: &mut Page) -> Result<()> {
    page.paragraph(
        "The cost of a window in Redis: the time to record one id, the time to count the window, and the memory.\n",
    );
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
            // Ids of ten digits, like the user ids of a platform.
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
