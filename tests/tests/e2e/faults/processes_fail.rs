//! Tests failures of reporters and hosts.
//!
//! Another reporter resumes where the last one stopped, in every state. The whole table is in
//! `redis_fails`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future;
use tokio::time::sleep;
use verve_protocol::{Report, Window};
use verve_tests::broker::Broker;
use verve_tests::host::Kind;
use verve_tests::kafka::{Kafka, Record};
use verve_tests::link::{Gate, Hold, Link};
use verve_tests::process::Signal;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, wait};

use crate::faults::trial::{Trial, assert_in_order};
use crate::site::{SOON, Site};

/// For a takeover from a dead leader: its lease of 2 s expires first.
const TAKEOVER: Duration = Duration::from_secs(30);
/// Longer than a lease.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(3);

/// The number of ids in the tested window.
const IDS: u64 = 7;

/// The step at which a reporter is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The window is counted, and Kafka has nothing yet.
    Counted,
    /// Kafka has the record, and the reporter does not know it.
    Published,
    /// Kafka has acknowledged, and nothing is recorded.
    Acknowledged,
    /// The report is recorded, and the reporter does not know it.
    Recorded,
    /// The window's allowed lateness is over, and this is not recorded.
    Final,
}

const STEPS: [Step; 5] = [
    Step::Counted,
    Step::Published,
    Step::Acknowledged,
    Step::Recorded,
    Step::Final,
];

/// A reporter whose connections to Redis and to Kafka can be held.
struct Stage<'a> {
    site: Site,
    link: Link,
    broker: &'a Broker,
    topic: String,
    flags: Vec<String>,
}

impl<'a> Stage<'a> {
    async fn new(broker: &'a Broker) -> Result<Self> {
        let site = Site::new(1).await?;
        let link = Link::start(site.redis.server().address()).await?;
        let (url, topic) = (format!("redis://{}", link.address()), clock::unique("steps"));
        broker.kafka().create_topic(&topic, 1).await?;
        let flags = site.flags(&[
            "--redis-urls",
            &url,
            "--kafka-brokers",
            broker.kafka().brokers(),
            "--kafka-topic",
            &topic,
            "--late-seconds",
            "3",
        ]);
        Ok(Self {
            site,
            link,
            broker,
            topic,
            flags,
        })
    }

    /// Holds the reporter at this step of this window, which has [`IDS`] ids.
    fn gate(&self, step: Step, window: Window) -> Gate {
        let key = window.to_string();
        let recorded = recorded(window, step == Step::Final);
        match step {
            Step::Counted => self.broker.link().gate(&[&self.topic, &key], Hold::Request),
            Step::Published => self.broker.link().gate(&[&self.topic, &key], Hold::Answer),
            Step::Acknowledged | Step::Final => self.link.gate(&[&recorded], Hold::Request),
            Step::Recorded => self.link.gate(&[&recorded], Hold::Answer),
        }
    }

    /// Waits for a record of `window`, and returns all records.
    async fn reported(&self, window: Window) -> Result<Vec<Record>> {
        let key = window.to_string();
        wait::until("a record", TAKEOVER, || async {
            let records = self.broker.kafka().read_all(&self.topic).await.ok()?;
            records.iter().any(|record| record.key == key).then_some(records)
        })
        .await
        .with_context(|| format!("of {key}"))
    }

    async fn killed_at(&self, step: Step) -> Result<()> {
        let killed = Reporter::ready(&self.flags).await?;
        // After the first report Redis knows the scripts, and each is one request.
        self.reported(clock::current_window(self.site.length)).await?;
        let window = clock::next_window(self.site.length).await.next();
        let mut gate = self.gate(step, window);
        self.site.add(window, 0..IDS.cast_signed()).await?;
        gate.reached(SOON).await.with_context(|| killed.process().log())?;
        killed.process().kill();
        let _other = Reporter::start(&self.flags)?;
        let records = self.reported(clock::next_window(self.site.length).await).await?;
        assert_in_order(&self.site, &records);
        let corrected = records.iter().find(|record| record.header("revision") != "0");
        ensure!(corrected.is_none(), "a revision: {records:#?}");
        let of_window = records.iter().filter(|record| record.key == window.to_string());
        let counts: Vec<&str> = of_window.map(|record| record.value.as_str()).collect();
        let right = match step {
            Step::Counted | Step::Recorded | Step::Final => counts == ["7"],
            // Whether Kafka shows a record that it has not acknowledged is up to Kafka.
            Step::Published => counts == ["7"] || counts == ["7", "7"],
            // The next reporter cannot know that Kafka has it.
            Step::Acknowledged => counts == ["7", "7"],
        };
        ensure!(right, "{window}: {counts:?}");
        // Held until here; otherwise the held command would still arrive.
        drop(gate);
        Ok(())
    }
}

/// Returns how a window's report begins in the command that records it.
///
/// This is the field, and the value's length, which precedes the value.
fn recorded(window: Window, is_final: bool) -> String {
    let report = Report {
        count: IDS,
        revision: 0,
        time: clock::now_ms(),
        first: clock::now_ms(),
        is_final,
        ..Report::default()
    };
    format!("{}\r\n${}\r\n", window.start(), report.to_json().len())
}

#[tokio::test]
async fn a_reporter_killed_between_two_steps() -> Result<()> {
    let broker = Broker::start().await?;
    let killed_at = async |step| {
        let stage = Stage::new(&broker).await?;
        stage.killed_at(step).await.with_context(|| format!("{step:?}"))
    };
    future::try_join_all(STEPS.map(killed_at)).await.map(drop)
}

/// A former leader's record arrives after its successor has reported a newer count.
#[tokio::test]
async fn a_record_on_its_way_for_longer_than_the_lease() -> Result<()> {
    let broker = Broker::start().await?;
    let stage = Stage::new(&broker).await?;
    let former = Reporter::ready(&stage.flags).await?;
    stage.reported(clock::current_window(stage.site.length)).await?;
    let window = clock::next_window(stage.site.length).await.next();
    let mut gate = stage.gate(Step::Counted, window);
    stage.site.add(window, 0..IDS.cast_signed()).await?;
    gate.reached(SOON).await?;
    former.process().pause()?;
    stage.site.add(window, 100..102).await?;
    let _successor = Reporter::start(&stage.flags)?;
    let last = |records: &[Record]| {
        let mut of_window = records.iter().filter(|record| record.key == window.to_string());
        of_window.next_back().map(|record| record.value.clone())
    };
    // The successor first publishes the former leader's pending revision unchanged.
    wait::until("the successor's count", SOON, || async {
        let records = stage.reported(window).await.ok()?;
        (last(&records)? == "9").then_some(())
    })
    .await?;
    gate.open();
    former.process().signal(Signal::SIGCONT)?;
    let leads_no_longer = |line: &str| line.contains("lost the lease") || line.contains("giving up the lease");
    former.process().wait_for_line(SOON, leads_no_longer).await?;
    let records = stage.reported(clock::next_window(stage.site.length).await).await?;
    assert_in_order(&stage.site, &records);
    assert_eq!(last(&records).as_deref(), Some("9"));
    Ok(())
}

#[tokio::test]
async fn the_leader_killed_and_paused() -> Result<()> {
    let kafka = Kafka::for_tests()?;
    let redis = RedisServer::options().append_only().start().await?;
    let mut trial = Trial::start(Kind::VerveHost, redis, kafka).await?;
    for _ in 0..2 {
        trial.another_reporter()?;
    }
    // The first one leads, because it was alone.
    trial.reporters[0].process().kill();
    let leads = |reporter: &&Reporter| reporter.process().log().contains("holding the lease");
    let leader = wait::until("another leader", TAKEOVER, || async {
        trial.reporters[1..].iter().find(leads)
    });
    let leader = leader.await?.process();
    leader.pause()?;
    sleep(BEYOND_THE_LEASE).await;
    leader.signal(Signal::SIGCONT)?;
    let answers = trial.finish(kafka).await?;
    assert!(answers.all_ok(), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn the_host_killed() -> Result<()> {
    let kafka = Kafka::for_tests()?;
    for kind in Kind::available() {
        let redis = RedisServer::options().append_only().start().await?;
        let mut trial = Trial::start(kind, redis, kafka).await?;
        trial.host.restart().await?;
        sleep(Duration::from_secs(1)).await;
        trial.site.redis.kill();
        sleep(Duration::from_secs(1)).await;
        trial.host.restart().await?;
        sleep(Duration::from_secs(1)).await;
        trial.host.process().kill();
        trial.site.redis.restart().await?;
        trial.host.restart().await?;
        let answers = trial.finish(kafka).await?;
        // Requests are sent one at a time, so each of the three kills can lose at most one.
        assert!(answers.ok > 0 && answers.others.len() <= 3, "{kind:?}: {answers:?}");
    }
    Ok(())
}
