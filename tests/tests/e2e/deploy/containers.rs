//! What the containers of `deploy/` run, tested without containers.
//!
//! These are their health checks, and Redis with its configuration.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use verve_tests::host::Kind;
use verve_tests::process::Process;
use verve_tests::reporter::without_settings;
use verve_tests::shipped::{compose, strings, text, the_instruction};
use verve_tests::{net, paths};

use crate::site::{SOON, Site};

/// Runs an image's health check, from its Containerfile, on another port.
async fn healthy(program: &str, port: u16) -> Result<bool> {
    let line = the_instruction(program, "HEALTHCHECK")?;
    let (_, command) = line.split_once("CMD ").context("a command")?;
    let command: Vec<String> = serde_json::from_str(command)?;
    let name = format!("verve-{program}");
    ensure!(command[0] == format!("/usr/local/bin/{name}"), "{command:?}");
    let mut check = tokio::process::Command::from(without_settings(Command::new(paths::program(&name)?)));
    let own = format!("127.0.0.1:{}", the_instruction(program, "EXPOSE")?);
    let there = format!("127.0.0.1:{port}");
    if program == "host" {
        ensure!(command.contains(&own), "{command:?} asks nobody on {own:?}");
        check.args(command[1..].iter().map(|word| word.replace(&own, &there)));
    } else {
        // The same variable as for the reporter itself.
        check.args(&command[1..]).env("VERVE_LISTEN", there);
    }
    let output = tokio::time::timeout(Duration::from_secs(10), check.output()).await??;
    Ok(output.status.success())
}

#[tokio::test]
async fn health_checks_see_life_and_death() -> Result<()> {
    let site = Site::new(60).await?;
    let host = site.host(Kind::VerveHost).start().await?;
    let reporter = site.reporter(&[]).await?;
    // A program that waits for Redis is healthy.
    site.redis.kill();
    let (host_port, reporter_port) = (host.addr().port(), reporter.address().port());
    assert!(healthy("host", host_port).await?);
    assert!(healthy("reporter", reporter_port).await?);
    // Each program lacks the other's health path.
    assert!(!healthy("host", reporter_port).await?);
    assert!(!healthy("reporter", host_port).await?);
    host.process().kill();
    reporter.process().kill();
    assert!(!healthy("host", host_port).await?);
    assert!(!healthy("reporter", reporter_port).await?);
    Ok(())
}

/// Redis reads its configuration in the form in which the compose file passes it.
///
/// It requires the password, and stops on request.
#[tokio::test]
async fn redis_takes_its_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = net::free_address()?;
    let mut config = text("deploy/redis.conf")?;
    for (shipped, here) in [
        ("dir /data\n", format!("dir {}\n", folder.path().display())),
        (
            "bind * -::*\n",
            format!("bind {}\nport {}\n", address.ip(), address.port()),
        ),
    ] {
        ensure!(config.contains(shipped), "{shipped:?} is not in deploy/redis.conf");
        config = config.replace(shipped, &here);
    }
    let file = folder.path().join("redis.conf");
    fs::write(&file, config)?;
    let service = compose()?.remove("redis").context("redis")?;
    let mut entrypoint = strings(&service["entrypoint"]);
    let script = entrypoint.pop().context("a script")?.replace("$$", "$");
    let mut command = Command::new(&entrypoint[0]);
    command.args(&entrypoint[1..]).env("REDISCLI_AUTH", "hunter2");
    command.arg(script.replace("/etc/redis.conf", &file.display().to_string()));
    let server = Process::spawn("redis-server", command)?;
    server.wait_for_text("Ready to accept connections", SOON).await?;

    let ask = async |userinfo: &str| -> Result<BTreeMap<String, String>> {
        let client = redis::Client::open(format!("redis://{userinfo}{address}"))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut config = redis::cmd("CONFIG");
        Ok(config.arg("GET").arg("*").query_async(&mut connection).await?)
    };
    assert!(ask("").await.is_err(), "no password was asked for");
    let config = ask(":hunter2@").await?;
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
    ] {
        assert_eq!(config.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(server.terminate(SOON).await?.code(), Some(0), "{}", server.log());
    Ok(())
}
