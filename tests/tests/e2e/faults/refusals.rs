//! A Redis that answers a reporter's commands with errors.
//!
//! For any error and any command, `/readyz` reports the error, the log contains it once, and the
//! reporter catches up as soon as the refusal is over.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use redis::AsyncCommands;
use verve_protocol::{Method, Report, Window};
use verve_tests::redis::{Options, RedisServer};
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::{clock, http, net, wait};

use crate::site::{SOON, Site};

/// How long until a refusal is over and its jobs are delivered.
///
/// A refusal is over when it has not occurred for five seconds; a job that was taken can be claimed
/// after fifteen.
const OVER: Duration = Duration::from_secs(40);

/// A reporter whose Redis starts to refuse commands.
struct Case {
    name: String,
    site: Site,
    reporter: Reporter,
    sink: Sink,
}

impl Case {
    async fn start(name: &str, redis: Options) -> Result<Self> {
        let site = Site::with_redis(1, redis.start().await?);
        let reporter = site
            .reporter(&["--callback-allow", "127.0.0.1", "--divide-periods", "2"])
            .await?;
        let (name, sink) = (name.to_owned(), Sink::start().await?);
        let case = Self {
            name,
            site,
            reporter,
            sink,
        };
        case.reporter.process().wait_for_text("window reported", SOON).await?;
        Ok(case)
    }

    /// Runs a command of the operator, given in words.
    async fn redis(&self, command: &str) -> Result<()> {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap_or_default());
        for word in words {
            cmd.arg(word);
        }
        let mut redis = self.site.connection().await?;
        cmd.exec_async(&mut redis).await.with_context(|| command.to_owned())
    }

    /// Waits until `/readyz` reports this error.
    async fn wait_for_problem(&self, error: &str) -> Result<()> {
        wait::until("a problem", SOON, || async {
            let ready = http::get(self.reporter.address(), "/readyz").await.ok()?;
            (ready.status == 503 && ready.text().contains(error) && ready.text().contains(", since ")).then_some(())
        })
        .await
        .with_context(|| format!("{}: {error}:\n{}", self.name, self.reporter.process().log()))?;
        Ok(())
    }

    /// Adds ids and a callback job to a window that ends while Redis refuses.
    async fn feed(&self) -> Result<Window> {
        let window = clock::next_window(self.site.length).await;
        self.site.add(window, 0..3).await?;
        self.site.add_job(&self.sink.url("/job"), Method::Get, window).await?;
        Ok(window)
    }

    /// Waits until the reporter is ready, and asserts that it has caught up.
    ///
    /// This window is reported with its ids, its job is delivered, and the error was logged, but
    /// not repeatedly.
    async fn assert_made_up_for(&self, window: Window, error: &str) -> Result<()> {
        let log = || format!("{}:\n{}", self.name, self.reporter.process().log());
        self.reporter.wait_ready(OVER).await.with_context(log)?;
        wait::until("the report", SOON, || async {
            let mut redis = self.site.connection().await.ok()?;
            let key = self.site.keys().reports(self.site.length);
            let json: String = redis.hget(key, window.start()).await.ok()?;
            (Report::from_json(&json).ok()?.count == 3).then_some(())
        })
        .await
        .with_context(log)?;
        // A job that was taken and not settled is claimed later.
        wait::until("the callback", OVER, || async {
            self.sink.received_at("/job").first().map(|_| ())
        })
        .await
        .with_context(log)?;
        self.assert_logged(error);
        Ok(())
    }

    fn assert_logged(&self, error: &str) {
        let lines = self.reporter.process().lines();
        let lines = lines
            .iter()
            .filter(|line| line.contains(error) && line.contains("trying again"));
        let lines: Vec<_> = lines.collect();
        // Once for each part of the reporter that may see it first.
        assert!((1..=2).contains(&lines.len()), "{}: {lines:#?}", self.name);
    }
}

/// The reporter's user may no longer run one command, alone or in a script.
#[tokio::test]
async fn each_command_of_the_lease_the_count_the_recording_and_the_queue() -> Result<()> {
    let commands = [
        // The lease.
        "get",
        "pexpire",
        // The count.
        "scard",
        // The recording.
        "hset",
        "eval",
        // The queue.
        "xreadgroup",
        "xautoclaim",
        "zrangebyscore",
        "xack",
    ];
    let refuse = async |command: &str| -> Result<()> {
        let case = Case::start(command, RedisServer::options()).await?;
        // Loaded scripts run by another command.
        let all = |sign: &str| match command {
            "eval" => format!("{sign}eval {sign}evalsha"),
            _ => format!("{sign}{command}"),
        };
        case.redis(&format!("ACL SETUSER default {}", all("-"))).await?;
        let window = case.feed().await?;
        case.wait_for_problem("refuses commands").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        case.redis(&format!("ACL SETUSER default {}", all("+"))).await?;
        case.assert_made_up_for(window, "refuses commands").await
    };
    try_join_all(commands.map(refuse)).await?;
    Ok(())
}

/// Keys of the wrong type.
#[tokio::test]
async fn each_key_of_the_wrong_type() -> Result<()> {
    let refuse = async |which: &str| -> Result<()> {
        let case = Case::start(which, RedisServer::options()).await?;
        let keys = case.site.keys();
        let window = clock::next_window(case.site.length).await;
        let key = match which {
            "reports" => keys.reports(case.site.length),
            "stream" => keys.callbacks(),
            "retry" => keys.callbacks_retry(),
            _ => case.site.ids(window),
        };
        case.redis(&format!("SET {key} x")).await?;
        case.wait_for_problem("WRONGTYPE").await?;
        case.redis(&format!("DEL {key}")).await?;
        let window = case.feed().await?;
        case.assert_made_up_for(window, "WRONGTYPE").await
    };
    try_join_all(["reports", "stream", "retry", "ids"].map(refuse)).await?;
    Ok(())
}

/// The whole server refuses, with each kind of error.
#[tokio::test]
async fn each_kind_of_error() -> Result<()> {
    // A full server is not here: it does not prevent reports, see `redis_fails::redis_full`.
    let kinds: [(&str, &[&str], &[&str]); 2] = [
        ("READONLY", &["REPLICAOF 127.0.0.1 1"], &["REPLICAOF NO ONE"]),
        (
            "MISCONF",
            &["CONFIG SET dir /proc", "CONFIG SET save 1 1", "BGSAVE"],
            &["CONFIG SET stop-writes-on-bgsave-error no"],
        ),
    ];
    let refuse = async |(kind, begin, end): (&str, &[&str], &[&str])| -> Result<()> {
        let redis = RedisServer::options().argument("--enable-protected-configs");
        let case = Case::start(kind, redis.argument("yes")).await?;
        // Before the refusal, because the test is refused as well.
        let window = case.feed().await?;
        for command in begin {
            // The value of `save` is a single argument that contains a space.
            match command.strip_prefix("CONFIG SET save ") {
                Some(value) => case.site.redis.set("save", value).await?,
                None => case.redis(command).await?,
            }
        }
        case.wait_for_problem(kind).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        for command in end {
            case.redis(command).await?;
        }
        case.assert_made_up_for(window, kind).await
    };
    let all = try_join_all(kinds.map(refuse));
    let cluster = async {
        // A cluster node without slots: no node serves the keys.
        let port = net::free_address()?.port().to_string();
        let redis = ["--cluster-enabled", "yes", "--cluster-port", &port];
        let redis = redis
            .iter()
            .fold(RedisServer::options(), |options, argument| options.argument(argument));
        let case = Site::with_redis(1, redis.start().await?);
        let reporter = Reporter::start(&case.flags(&[]))?;
        wait::until("a problem", SOON, || async {
            let ready = http::get(reporter.address(), "/readyz").await.ok()?;
            (ready.status == 503 && ready.text().contains("has the slots")).then_some(())
        })
        .await
        .with_context(|| reporter.process().log())
    };
    futures::try_join!(all, cluster)?;
    Ok(())
}

/// A Redis that is up, and still loads its data.
#[tokio::test]
async fn a_server_that_loads_its_data() -> Result<()> {
    // Five seconds in all. While it loads, it handles connections every 1,000 keys.
    let redis = RedisServer::options().append_only().argument("--key-load-delay");
    let mut case = Case::start("LOADING", redis.argument("200")).await?;
    let mut fill = redis::pipe();
    for key in 0..25_000 {
        fill.set(format!("other:{key}"), 1).ignore();
    }
    fill.exec_async(&mut case.site.connection().await?).await?;
    let window = case.feed().await?;
    let (restarted, problem) = {
        let Case {
            site, reporter, name, ..
        } = &mut case;
        let address = reporter.address();
        let problem = wait::until("a problem", SOON, || async move {
            let ready = http::get(address, "/readyz").await.ok()?;
            (ready.status == 503 && ready.text().contains("LOADING")).then_some(())
        });
        let (restarted, problem) = futures::join!(site.redis.restart(), problem);
        (
            restarted,
            problem.with_context(|| format!("{name}:\n{}", reporter.process().log())),
        )
    };
    problem?;
    restarted?;
    case.assert_made_up_for(window, "LOADING").await
}
