//! Applications of others that count by Verve's library: `examples`, as they are documented.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use verve_tests::host::{Instance, Kind, Options};
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, paths};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// An example's application, on this site's Redis.
fn example(site: &Site, kind: Kind, name: &str) -> Result<Options> {
    let manifest = paths::repository().join("examples").join(name).join("spin.toml");
    let manifest = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    // Beside the components, in the folder of a test.
    let options = Instance::options(kind).manifest(manifest.replace("\"../../target", "\"target"));
    Ok(options
        .variable("redis_urls", &site.redis_urls())
        .variable("namespace", &site.namespace)
        .variable("window_seconds", &site.length.to_string()))
}

#[tokio::test]
async fn a_rust_component_that_depends_on_the_crate() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "pixel")?.start().await?;
        let load = async |visitor: &str| http::get(instance.addr(), &format!("/pixel.gif?visitor={visitor}")).await;
        let window = clock::next_window(site.length).await;
        for visitor in ["1", "2", "1", "-9223372036854775808"] {
            let pixel = load(visitor).await?;
            assert_eq!(pixel.status, 200, "{kind:?}: {}", instance.process().log());
            assert_eq!(pixel.header("content-type"), Some("image/gif"), "{kind:?}");
        }
        assert_eq!(
            clock::current_window(site.length),
            window,
            "this machine is too slow for this test"
        );
        assert_eq!(load("somebody").await?.status, 400, "{kind:?}");
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, "3", "{kind:?}");

        // What is counted while Redis is away waits on disk.
        site.redis.kill();
        let away = clock::next_window(site.length).await;
        assert_eq!(load("7").await?.status, 200, "{kind:?}: {}", instance.process().log());
        let counted_in = [away, away.next()];
        site.redis.restart().await?;
        let counted = ledger.read_until(Duration::from_secs(30), |ledger| {
            counted_in
                .iter()
                .any(|window| ledger.of(*window).last().is_some_and(|record| record.value == "1"))
        });
        counted.await.with_context(|| instance.process().log())?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_the_variables_is_said() -> Result<()> {
    let site = Site::new(60).await?;
    for kind in Kind::available() {
        let instance = example(&site, kind, "pixel")?
            .variable("window_seconds", "soon")
            .start()
            .await?;
        let pixel = http::get(instance.addr(), "/pixel.gif?visitor=1").await?;
        assert_eq!(pixel.status, 500, "{kind:?}");
        instance.process().wait_for_text("window_seconds", SOON).await?;
    }
    Ok(())
}
