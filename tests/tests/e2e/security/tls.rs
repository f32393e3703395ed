//! Redis and Kafka over TLS, with passwords.
//!
//! Covers a private authority, client certificates, and names that differ from those in the
//! certificate.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use verve_protocol::Method;
use verve_tests::authority::{Authority, Certificate};
use verve_tests::host::Kind;
use verve_tests::kafka::Kafka;
use verve_tests::process::Process;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::{self, Reporter};
use verve_tests::{clock, http, net, wait};

use crate::site::{SOON, Site};

const USER: &str = "verve";
const PASSWORD: &str = "hunter2-hunter2";

/// A site whose Redis also offers TLS, on another port.
struct Secure {
    site: Site,
    port: u16,
    authority: Authority,
    client: Certificate,
}

impl Secure {
    /// Starts one with a certificate for `localhost`, not for 127.0.0.1.
    async fn new(asks_for_certificates: bool) -> Result<Self> {
        let authority = Authority::new()?;
        let server = authority.vouch_for("server", "DNS:localhost")?;
        let client = authority.vouch_for("client", "DNS:client")?;
        let port = net::free_address()?.port();
        let shown = |path: &Path| path.display().to_string();
        let mut options = RedisServer::options().append_only();
        for argument in [
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &shown(&server.certificate),
            "--tls-key-file",
            &shown(&server.key),
            "--tls-ca-cert-file",
            &shown(&authority.certificate()),
            "--tls-auth-clients",
            if asks_for_certificates { "yes" } else { "no" },
            "--user",
            USER,
            "on",
            &format!(">{PASSWORD}"),
            "~*",
            "+@all",
        ] {
            options = options.argument(argument);
        }
        let redis = options.start().await?;
        Ok(Self {
            site: Site::with_redis(60, redis),
            port,
            authority,
            client,
        })
    }

    fn url(&self, host: &str, password: &str) -> String {
        format!("rediss://{USER}:{password}@{host}:{}", self.port)
    }

    fn flags(&self, url: &str, more: &[(&str, &Path)]) -> Vec<String> {
        let mut flags = self.site.flags(&["--redis-urls", url]);
        flags.extend(
            more.iter()
                .flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]),
        );
        flags
    }

    /// Returns the doctor's output with these flags.
    async fn doctor(&self, url: &str, more: &[(&str, &Path)]) -> Result<String> {
        let mut command = reporter::command()?;
        command.arg("doctor").args(self.flags(url, more));
        let process = Process::spawn("verve-reporter doctor", command)?;
        process.wait(SOON).await?;
        Ok(process.log())
    }
}

#[tokio::test]
async fn the_reporter_uses_tls_and_checks_the_authority() -> Result<()> {
    let secure = Secure::new(false).await?;
    let authority = secure.authority.certificate();
    let url = secure.url("localhost", PASSWORD);
    let trusting = [("--redis-ca-file", authority.as_path())];
    let reporter = Reporter::ready(&secure.flags(&url, &trusting)).await?;
    let window = clock::current_window(secure.site.length);
    secure.site.add(window, 1..=3).await?;
    let text = secure.doctor(&url, &trusting).await?;
    assert!(text.contains("components write") && !text.contains("problem"), "{text}");

    // An authority that is not trusted here.
    let text = secure.doctor(&url, &[]).await?;
    assert!(
        text.contains("problem  Redis rediss://localhost") && text.contains("certificate"),
        "{text}"
    );
    // The certificate is for another name.
    let text = secure.doctor(&secure.url("127.0.0.1", PASSWORD), &trusting).await?;
    assert!(
        text.contains("problem  Redis rediss://127.0.0.1") && text.contains("host name"),
        "{text}"
    );
    // Without TLS, or with a wrong password.
    let text = secure.doctor(&url.replace("rediss", "redis"), &[]).await?;
    assert!(text.contains("problem  Redis redis://localhost"), "{text}");
    let wrong = secure
        .doctor(&secure.url("localhost", "hunter3-hunter3"), &trusting)
        .await?;
    assert!(wrong.contains("user and the password"), "{wrong}");
    for log in [reporter.process().log(), text, wrong] {
        assert!(!log.contains("hunter"), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_redis_that_asks() -> Result<()> {
    let secure = Secure::new(true).await?;
    let authority = secure.authority.certificate();
    let url = secure.url("localhost", PASSWORD);
    let all = [
        ("--redis-ca-file", authority.as_path()),
        ("--redis-cert-file", &secure.client.certificate),
        ("--redis-key-file", &secure.client.key),
    ];
    let _reporter = Reporter::ready(&secure.flags(&url, &all)).await?;
    let text = secure.doctor(&url, &all[..1]).await?;
    assert!(text.contains("problem  Redis rediss://localhost"), "{text}");
    for (flags, word) in [
        (vec![all[0], all[1]], "both"),
        (vec![("--redis-ca-file", Path::new("/dev/null")), all[1], all[2]], "PEM"),
        (
            vec![all[0], ("--redis-cert-file", all[2].1), ("--redis-key-file", all[2].1)],
            "PEM",
        ),
        (vec![("--redis-ca-file", Path::new("/nowhere"))], "/nowhere"),
    ] {
        let mut command = reporter::command()?;
        command.args(secure.flags(&url, &flags));
        let process = Process::spawn("verve-reporter", command)?;
        assert_eq!(process.wait(SOON).await?.code(), Some(64), "{}", process.log());
        assert!(process.log().contains(word), "{word}: {}", process.log());
    }
    Ok(())
}

/// Both builds of the component trust the authority in OpenSSL's variable.
#[tokio::test]
async fn the_component_uses_tls_and_checks_the_authority() -> Result<()> {
    let secure = Secure::new(false).await?;
    let authority = secure.authority.certificate();
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let answers = async |url: &str, trusting: bool| -> Result<(u16, Option<String>, String)> {
            let mut options = secure.site.host(kind).variable("redis_urls", url);
            if trusting {
                options = options.environment("SSL_CERT_FILE", &authority.display().to_string());
            }
            let host = options.start().await?;
            let id = clock::now_ms();
            let answer = http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
            Ok((
                answer.status,
                answer.header("verve-outcome").map(str::to_owned),
                host.process().log(),
            ))
        };
        let not_recorded = if kind == Kind::VerveHostP2 {
            (503, None)
        } else {
            (200, Some("spooled".to_owned()))
        };
        let good = secure.url("localhost", PASSWORD);
        let (status, outcome, log) = answers(&good, true).await.context("trusted")?;
        assert_eq!((status, outcome), (200, Some("new".to_owned())), "{kind:?}: {log}");
        for (url, trusting) in [
            (good.as_str(), false),
            (&secure.url("127.0.0.1", PASSWORD), true),
            (&secure.url("localhost", "hunter3-hunter3"), true),
        ] {
            let (status, outcome, log) = answers(url, trusting).await?;
            assert_eq!((status, outcome), not_recorded, "{kind:?} {url} {trusting}: {log}");
            assert!(!log.contains("hunter"), "{kind:?}: {log}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn kafka_by_tls_and_scram() -> Result<()> {
    let authority = Authority::new()?;
    let server = authority.vouch_for("server", "DNS:localhost")?;
    let folder = tempfile::tempdir()?;
    let pem = folder.path().join("server.pem");
    let parts = [std::fs::read(&server.key)?, std::fs::read(&server.certificate)?];
    std::fs::write(&pem, parts.concat())?;
    let (port, secure_port) = (net::free_address()?.port(), net::free_address()?.port());
    let user = format!("{USER}:{PASSWORD}");
    let kafka = Kafka::real_secure(port, &folder.path().join("kafka"), secure_port, &pem, &user).await?;

    let site = Site::with_redis(2, RedisServer::options().append_only().start().await?);
    let topic = clock::unique("secure");
    kafka.create_topic(&topic, 1).await?;
    let ca = format!("ssl.ca.location={}", authority.certificate().display());
    let flags = |broker: &str, options: &[&str]| {
        let mut all = vec!["--kafka-brokers", broker, "--kafka-topic", &topic];
        all.extend(options.iter().flat_map(|option| ["--kafka-option", option]));
        site.flags(&all)
    };
    let broker = format!("localhost:{secure_port}");
    let password = format!("sasl.password={PASSWORD}");
    let right = [
        "security.protocol=SASL_SSL",
        "sasl.mechanism=SCRAM-SHA-512",
        "sasl.username=verve",
        &password,
        &ca,
    ];
    let reporter = Reporter::ready(&flags(&broker, &right)).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 1..=5).await?;
    wait::until("the record", SOON, || async {
        let records = kafka.read_all(&topic).await.ok()?;
        let record = records.into_iter().find(|record| record.key == window.to_string())?;
        (record.value == "5").then_some(())
    })
    .await
    .with_context(|| reporter.process().log())?;

    let doctor = async |broker: &str, options: &[&str]| -> Result<String> {
        let mut command = reporter::command()?;
        command.arg("doctor").args(flags(broker, options));
        let process = Process::spawn("verve-reporter doctor", command)?;
        process.wait(SOON).await?;
        Ok(process.log())
    };
    let output = doctor(&broker, &right).await?;
    assert!(!output.contains("problem"), "{output}");
    let mut wrong_password = right;
    wrong_password[3] = "sasl.password=hunter3-hunter3";
    let wrong_password = doctor(&broker, &wrong_password).await?;
    assert!(wrong_password.contains("and sasl.password,"), "{wrong_password}");
    // An authority that is not trusted here, a name that is not in the certificate, and no TLS.
    for (broker, options, fix) in [
        (broker.as_str(), &right[..4], "ssl.ca.location"),
        (&format!("127.0.0.1:{secure_port}"), &right, "ssl.ca.location"),
        (&broker, &[], "security.protocol"),
    ] {
        let output = doctor(broker, options).await?;
        assert!(
            output.contains("problem  Kafka") && output.contains(fix),
            "{broker} {options:?}: {output}"
        );
        assert!(!output.contains("hunter"), "{output}");
    }
    for text in [reporter.process().log(), output, wrong_password] {
        assert!(!text.contains("hunter"), "{text}");
    }
    Ok(())
}

/// The certificate of an endpoint is by a private authority.
///
/// A reporter calls it only if it is given this authority.
#[tokio::test]
async fn callbacks_check_the_authority() -> Result<()> {
    let authority = Authority::new()?;
    let certificate = authority.vouch_for("endpoint", "DNS:localhost")?;
    let port = net::free_address()?.port().to_string();
    let mut endpoint = Command::new("openssl");
    endpoint.args(["s_server", "-www", "-accept", &port, "-cert"]);
    endpoint.arg(&certificate.certificate).arg("-key").arg(&certificate.key);
    let _endpoint = Process::spawn("openssl s_server", endpoint)?;
    for (trusting, expected) in [(true, "callback delivered"), (false, "callback failed")] {
        let site = Site::with_one_window().await?;
        let mut command = reporter::command()?;
        let listen = net::free_address()?.to_string();
        command.args(site.flags(&["--callback-allow", "localhost", "--listen", &listen]));
        if trusting {
            command.env("SSL_CERT_FILE", authority.certificate());
        }
        let process = Process::spawn("verve-reporter", command)?;
        let url = format!("https://localhost:{port}/");
        site.add_job(&url, Method::Get, clock::current_window(site.length))
            .await?;
        process.wait_for_text(expected, SOON).await?;
    }
    Ok(())
}
