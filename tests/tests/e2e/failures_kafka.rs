//! When Kafka fails: windows wait, and are reported once it is back. The whole table is in `failures_redis`.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use verve_tests::broker::Broker;
use verve_tests::host::Kind;
use verve_tests::process::Signal;
use verve_tests::redis::RedisServer;

use crate::trial::Trial;

const A_WHILE: Duration = Duration::from_secs(3);
/// Longer than the reporter waits for an acknowledgement, so that it does not know what has become of a record.
const BEYOND_DELIVERY: Duration = Duration::from_secs(11);

/// One after the other, since a broker of one's own takes long to start.
#[tokio::test]
async fn kafka_killed_paused_and_stopped() -> Result<()> {
    let mut broker = Broker::start().await?;
    let redis = RedisServer::options().append_only().start().await?;
    let trial = Trial::start(Kind::VerveHost, redis, broker.kafka()).await?;
    broker.process().kill();
    sleep(A_WHILE).await;
    broker.restart().await?;
    broker.process().pause()?;
    sleep(BEYOND_DELIVERY).await;
    broker.process().signal(Signal::SIGCONT)?;
    sleep(A_WHILE).await;
    broker.link().cut();
    sleep(A_WHILE).await;
    broker.link().mend();
    sleep(A_WHILE).await;
    broker.link().hold();
    sleep(A_WHILE).await;
    broker.link().mend();
    broker.process().terminate(Duration::from_secs(30)).await?;
    broker.restart().await?;
    let answers = trial.finish(broker.kafka()).await?;
    assert!(answers.all_ok(), "{answers:?}");
    Ok(())
}
