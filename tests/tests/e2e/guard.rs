//! Where callbacks may not go.

use anyhow::{Context, Result};
use verve_protocol::Method;
use verve_tests::clock;
use verve_tests::sink::Sink;

use crate::site::{SOON, Site, field};

/// A sink that whatever leads to this machine reaches, by IPv4 and IPv6.
async fn sink_everywhere() -> Result<Sink> {
    match Sink::start_on("[::]:0").await {
        Ok(sink) => Ok(sink),
        // A machine without IPv6.
        Err(_) => Sink::start_on("0.0.0.0:0").await,
    }
}

/// Host as in the endpoint, address as in the error.
const REFUSED: [(&str, &str); 24] = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.1.2.3", "127.1.2.3"),
    ("localhost", "127.0.0.1|::1"),
    ("[::1]", "::1"),
    ("0.0.0.0", "0.0.0.0"),
    ("[::]", "::"),
    // Private networks, link-local (with the clouds' metadata), carrier-grade NAT.
    ("10.0.0.1", "10.0.0.1"),
    ("172.16.0.1", "172.16.0.1"),
    ("172.31.255.255", "172.31.255.255"),
    ("192.168.0.1", "192.168.0.1"),
    ("169.254.169.254", "169.254.169.254"),
    ("100.64.0.1", "100.64.0.1"),
    ("[fd00::1]", "fd00::1"),
    ("[fe80::1]", "fe80::1"),
    // No unicast.
    ("255.255.255.255", "255.255.255.255"),
    ("224.0.0.1", "224.0.0.1"),
    ("[ff02::1]", "ff02::1"),
    // Other spellings of 127.0.0.1.
    ("2130706433", "127.0.0.1"),
    ("0x7f000001", "127.0.0.1"),
    ("0177.0.0.1", "127.0.0.1"),
    ("127.1", "127.0.0.1"),
    ("%31%32%37.0.0.1", "127.0.0.1"),
    ("[::ffff:127.0.0.1]", "127.0.0.1|::ffff:7f00:1"),
    ("[64:ff9b::127.0.0.1]", "127.0.0.1|64:ff9b::7f00:1"),
];

#[tokio::test]
async fn private_addresses_are_refused_by_default() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = sink_everywhere().await?;
    let reporter = site.reporter(&["--callback-attempts", "1"]).await?;
    let window = clock::current_window(site.length);
    let endpoint = |host: &str| format!("http://{host}:{}/", sink.port());
    for (host, _) in REFUSED {
        site.add_job(&endpoint(host), Method::Get, window).await.context(host)?;
    }
    let dead = site
        .dead(REFUSED.len(), SOON)
        .await
        .with_context(|| reporter.process().log())?;
    for (host, address) in REFUSED {
        let job = dead.iter().find(|job| field(job, "endpoint") == endpoint(host));
        let error = field(job.context(host)?, "error");
        assert!(
            address.split('|').any(|a| error.contains(a)),
            "{host}: {address} is not in {error:?}"
        );
        assert!(!error.contains("refused (os error"), "{host} was connected to: {error}");
    }
    assert!(sink.received().is_empty(), "{:#?}", sink.received());
    Ok(())
}

#[tokio::test]
async fn what_is_allowed_is_reached_and_nothing_beside() -> Result<()> {
    for (flags, reached, refused) in [
        (
            &["--callback-allow", "127.0.0.1"][..],
            &["127.0.0.1"][..],
            &["[::1]", "127.0.0.2", "10.0.0.1"][..],
        ),
        (
            &["--callback-allow", "127.0.0.0/8"],
            &["127.0.0.1", "127.0.0.2", "2130706433"],
            &["[::1]"],
        ),
        (
            &["--callback-allow", "localhost"],
            &["localhost"],
            &["127.0.0.1", "10.0.0.1"],
        ),
        (
            &["--callback-allow", "127.0.0.1", "--callback-allow", "127.0.0.3/32"],
            &["127.0.0.1", "127.0.0.3"],
            &["127.0.0.2"],
        ),
        // Only that: public addresses are out of reach too. (Nothing would be sent to one if this failed: port 1.)
        (
            &["--callback-allow-only", "--callback-allow", "127.0.0.1"],
            &["127.0.0.1"],
            &["127.0.0.2", "192.88.99.1", "[2001:4860:4860::8888]"],
        ),
    ] {
        let context = flags.join(" ");
        let site = Site::new(60).await?;
        let sink = Sink::start_on("0.0.0.0:0").await?;
        let reporter = site.reporter(&[flags, &["--callback-attempts", "1"]].concat()).await?;
        let window = clock::current_window(site.length);
        for host in reached.iter().chain(refused) {
            let path = host.replace(['[', ']', ':'], "");
            let endpoint = format!("http://{host}:{}/{path}", sink.port());
            site.add_job(&endpoint, Method::Get, window).await?;
        }
        for host in reached {
            let received = sink.wait_for(&format!("/{host}"), 1, SOON).await;
            received.with_context(|| format!("{context}: {host}; {}", reporter.process().log()))?;
        }
        let dead = site.dead(refused.len(), SOON).await.context(context.clone())?;
        for job in dead {
            let error = field(&job, "error");
            let host = field(&job, "endpoint").replace("http://", "").replace(['[', ']'], "");
            let address = host.rsplit_once(':').map_or("", |(address, _)| address);
            assert!(error.contains(address), "{context}: {address} is not in {error:?}");
            assert!(
                !error.contains("os error"),
                "{context}: {address} was connected to: {error}"
            );
        }
        assert_eq!(sink.received().len(), reached.len(), "{context}");
    }
    Ok(())
}

#[tokio::test]
async fn the_fixed_callback_is_guarded_too() -> Result<()> {
    let site = Site::new(1).await?;
    let sink = sink_everywhere().await?;
    // A name: what it leads to is known only when it is called. A private address is refused at once, see `startup`.
    let url = format!("http://localhost:{}/fixed", sink.port());
    let _reporter = site
        .reporter(&["--callback-url", &url, "--callback-attempts", "1"])
        .await?;
    let dead = site.dead(1, SOON).await?;
    let error = field(&dead[0], "error");
    assert!(error.contains("127.0.0.1") || error.contains("::1"), "{dead:?}");
    assert!(sink.received().is_empty());
    Ok(())
}
