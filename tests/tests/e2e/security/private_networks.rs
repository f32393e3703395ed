//! Addresses to which callbacks may not go.

use anyhow::{Context, Result};
use redis::AsyncCommands as _;
use verve_protocol::Method;
use verve_tests::host::Kind;
use verve_tests::process::Process;
use verve_tests::sink::Sink;
use verve_tests::{clock, http, paths, reporter};

use crate::site::{SOON, Site, field};

/// Starts a sink on all addresses of this machine, IPv4 and IPv6.
async fn sink_everywhere() -> Result<Sink> {
    match Sink::start_on("[::]:0").await {
        Ok(sink) => Ok(sink),
        // A machine without IPv6.
        Err(_) => Sink::start_on("0.0.0.0:0").await,
    }
}

/// Host as in the endpoint, address as in the error.
const REFUSED: [(&str, &str); 49] = [
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
    // Not unicast.
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
    ("017700000001", "127.0.0.1"),
    ("0x7f.0x0.0x0.0x1", "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1"),
    // Some systems do not know this name.
    ("localhost.", "127.0.0.1|::1|lookup"),
    ("LOCALHOST", "127.0.0.1|::1"),
    ("%6c%6f%63%61%6c%68%6f%73%74", "127.0.0.1|::1"),
    ("[0:0:0:0:0:0:0:1]", "::1"),
    ("[::ffff:7f00:1]", "127.0.0.1|::ffff:7f00:1"),
    ("[::ffff:10.0.0.1]", "10.0.0.1|::ffff:a00:1"),
    ("[64:ff9b::a9fe:a9fe]", "169.254.169.254|64:ff9b::a9fe:a9fe"),
    // IPv6 forms that may lead to an IPv4 address: compatible, translated, 6to4, Teredo, private
    // NAT64.
    ("[::127.0.0.1]", "::127.0.0.1|::7f00:1"),
    ("[::ffff:0:127.0.0.1]", "::ffff:0:7f00:1"),
    ("[2002:7f00:1::]", "2002:7f00:1::"),
    ("[2001:0:7f00:1::]", "2001:0:7f00:1::"),
    ("[64:ff9b:1::7f00:1]", "64:ff9b:1::7f00:1"),
    // Documentation, benchmarks, reserved and unassigned addresses.
    ("192.0.2.1", "192.0.2.1"),
    ("198.51.100.1", "198.51.100.1"),
    ("203.0.113.1", "203.0.113.1"),
    ("198.18.0.1", "198.18.0.1"),
    ("240.0.0.1", "240.0.0.1"),
    ("[2001:db8::1]", "2001:db8::1"),
    ("[3fff::1]", "3fff::1"),
    ("[fec0::1]", "fec0::1"),
    ("[4000::1]", "4000::1"),
    ("[100::1]", "100::1"),
];

/// URLs without a valid host, or with parts that an endpoint may not have.
///
/// Such a job is given up without a call.
const NO_ENDPOINTS: [&str; 10] = [
    "http://user@127.0.0.1/",
    "http://user:password@127.0.0.1/",
    "http://127.0.0.1@e.com/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://127.0.0.1\\@e.com/",
    "http://１２７.0.0.1/",
    "http://ⓛocalhost/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
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

/// The component refuses these endpoints.
///
/// The reporter gives up their jobs, if another client has queued them.
#[tokio::test]
async fn a_job_with_an_invalid_endpoint_becomes_a_dead_letter() -> Result<()> {
    let site = Site::new(60).await?;
    let reporter = site.reporter(&["--callback-allow", "127.0.0.0/8"]).await?;
    let window = clock::current_window(site.length).start().to_string();
    let host = site.host(Kind::VerveHost).start().await?;
    for endpoint in NO_ENDPOINTS {
        let encoded: String = endpoint.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = http::get(host.addr(), &format!("/api/verve/accept?id=1&endpoint={encoded}")).await?;
        assert_eq!(
            (answer.status, answer.header("verve-error")),
            (400, Some("invalid-endpoint")),
            "{endpoint}"
        );
        let fields = [("endpoint", endpoint), ("method", "get"), ("window", &window)];
        let () = site
            .connection()
            .await?
            .xadd(site.keys().callbacks(), "*", &fields)
            .await?;
    }
    let dead = site
        .dead(NO_ENDPOINTS.len(), SOON)
        .await
        .with_context(|| reporter.process().log())?;
    for endpoint in NO_ENDPOINTS {
        let job = dead
            .iter()
            .find(|job| field(job, "endpoint") == endpoint)
            .context(endpoint)?;
        assert!(!field(job, "error").is_empty(), "{job:?}");
    }
    Ok(())
}

/// A name with several addresses leads only to the allowed ones.
///
/// A name that leads elsewhere later gains nothing.
#[tokio::test]
async fn names_resolve_only_to_allowed_addresses() -> Result<()> {
    let site = Site::new(60).await?;
    let allowed = Sink::start_on("127.0.0.2:0").await?;
    let forbidden = Sink::start_on(&format!("127.0.0.3:{}", allowed.port())).await?;
    let folder = tempfile::tempdir()?;
    let names = folder.path().join("hosts");
    std::fs::write(
        &names,
        "127.0.0.3 both.test\n127.0.0.2 both.test\n127.0.0.4 other.test\n127.0.0.2 moves.test\n127.0.0.4 xn--both-9qa.test\n",
    )?;
    let mut command = reporter::command()?;
    command
        .args(site.flags(&[
            "--callback-allow",
            "127.0.0.2",
            "--callback-attempts",
            "1",
            "--listen",
            "127.0.0.1:0",
        ]))
        .env("LD_PRELOAD", paths::libnss_wrapper()?)
        .env("NSS_WRAPPER_HOSTS", &names);
    let reporter = Process::spawn("verve-reporter", command)?;
    let window = clock::current_window(site.length);
    let endpoint = |name: &str| format!("http://{name}:{}/{name}", allowed.port());
    // Alone: while the file of names is being read, concurrent lookups find no address.
    site.add_job(&endpoint("moves.test"), Method::Get, window).await?;
    allowed
        .wait_for("/moves.test", 1, SOON)
        .await
        .with_context(|| reporter.log())?;
    for name in ["both.test", "other.test", "xn--both-9qa.test"] {
        site.add_job(&endpoint(name), Method::Get, window).await?;
    }
    allowed
        .wait_for("/both.test", 1, SOON)
        .await
        .with_context(|| reporter.log())?;
    let dead = site.dead(2, SOON).await.with_context(|| reporter.log())?;
    let error = |dead: &[Vec<(String, String)>], name: &str| -> Option<String> {
        let job = dead.iter().find(|job| field(job, "endpoint") == endpoint(name))?;
        Some(field(job, "error").to_owned())
    };
    let refused = error(&dead, "other.test").context("other.test")?;
    assert!(
        refused.contains("127.0.0.4") && refused.contains("--callback-allow"),
        "{refused}"
    );

    // Its owner points the name to another address, and closes the open connection.
    let port = allowed.port();
    drop(allowed);
    std::fs::write(&names, "127.0.0.3 moves.test\n")?;
    // The file is read again if it is newer by a second.
    let newer = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    std::fs::File::options()
        .append(true)
        .open(&names)?
        .set_modified(newer)?;
    site.add_job(&format!("http://moves.test:{port}/moves.test"), Method::Get, window)
        .await?;
    let dead = site.dead(3, SOON).await.with_context(|| reporter.log())?;
    let moved = dead
        .iter()
        .any(|job| field(job, "endpoint").contains("moves.test") && field(job, "error").contains("127.0.0.3"));
    assert!(moved, "{dead:#?}");
    assert!(forbidden.received().is_empty(), "{:#?}", forbidden.received());
    Ok(())
}

#[tokio::test]
async fn only_allowed_addresses_are_reached() -> Result<()> {
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
        // Only this address: public ones are refused too. (If this failed, nothing would be sent:
        // port 1.)
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
    // A name, because its address is known only at the call. A private address is refused
    // immediately, see `startup`.
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
