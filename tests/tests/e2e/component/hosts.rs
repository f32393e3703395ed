//! What the hosts do besides running the component.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use verve_tests::host::{Instance, Kind};
use verve_tests::http::{self, Connection};
use verve_tests::paths;
use verve_tests::process::{Signal, cpu_seconds};
use verve_tests::redis::RedisServer;

use crate::site::{SOON, Site};

/// Returns the repository's manifest with only these hosts allowed.
fn manifest_allowing(hosts: &str) -> Result<String> {
    let text = fs::read_to_string(paths::manifest())?;
    let mut replaced = false;
    let lines = text.lines().map(|line| {
        if line.starts_with("allowed_outbound_hosts") {
            replaced = true;
            return format!("allowed_outbound_hosts = [{hosts}]");
        }
        line.to_owned()
    });
    let manifest = lines.collect::<Vec<_>>().join("\n");
    assert!(replaced, "spin.toml has a line allowed_outbound_hosts");
    Ok(manifest)
}

/// Returns how many connections the server has ever had, this one included.
async fn connections(redis: &RedisServer) -> Result<u64> {
    let mut connection = redis.connection().await?;
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("total_connections_received:"));
    Ok(line.expect("the statistic").trim().parse()?)
}

#[tokio::test]
async fn only_allowed_hosts_are_reached() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let port = site.redis.server().address().port();
        for (id, (hosts, outcome)) in (0..).zip([
            (r#""redis://*:*", "rediss://*:*""#.to_owned(), "new"),
            (format!(r#""redis://127.0.0.1:{port}""#), "new"),
            (r#""redis://127.0.0.1:*""#.to_owned(), "new"),
            (format!(r#""redis://*:{port}""#), "new"),
            ("\"{{ redis_urls }}\"".to_owned(), "new"),
            (String::new(), "spooled"),
            (r#""redis://127.0.0.1:1""#.to_owned(), "spooled"),
            (format!(r#""redis://127.0.0.2:{port}""#), "spooled"),
            (format!(r#""http://127.0.0.1:{port}""#), "spooled"),
            (format!(r#""rediss://127.0.0.1:{port}""#), "spooled"),
            (format!(r#""redis://localhost:{port}""#), "spooled"),
        ]) {
            let options = site.host(kind).manifest(manifest_allowing(&hosts)?);
            let instance = options.start().await?;
            let before = connections(site.redis.server()).await?;
            let response = http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await?;
            assert_eq!(
                response.header("verve-outcome"),
                Some(outcome),
                "{kind:?} [{hosts}]: {}",
                instance.process().log()
            );
            if outcome == "spooled" {
                let new = connections(site.redis.server()).await? - before;
                assert_eq!(new, 1, "{kind:?} [{hosts}]: Redis was reached");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_host_finishes_what_it_has_begun() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::with_one_window().await?;
        let instance = site.host(Kind::VerveHost).start().await?;
        // One connection waits for its next request; several wait for Redis to answer theirs.
        let mut idle = Connection::open(instance.addr()).await?;
        assert_eq!(idle.get("/api/verve/accept?id=1").await?.status, 200);
        site.redis.pause()?;
        let mut slow = Vec::new();
        for id in 10..18 {
            let mut connection = Connection::open(instance.addr()).await?;
            let request = format!("GET /api/verve/accept?id={id} HTTP/1.1\r\nhost: verve.test\r\n\r\n");
            connection.send(request.as_bytes()).await?;
            slow.push(connection);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        instance.process().signal(signal)?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(instance.process().exit_status(), None, "{signal} waits for requests");
        let late = Connection::open(instance.addr()).await;
        assert!(late.is_err(), "{signal}: new connections are still accepted");
        site.redis.resume()?;
        for mut connection in slow {
            let response = connection.receive(false).await?;
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{signal}");
        }
        let status = instance.process().wait(SOON).await?;
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_host_stops_at_once() -> Result<()> {
    let site = Site::with_one_window().await?;
    let instance = site.host(Kind::VerveHost).start().await?;
    // The client keeps the connection open and sends nothing more.
    let mut idle = Connection::open(instance.addr()).await?;
    assert_eq!(idle.get("/api/verve/accept?id=1").await?.status, 200);
    let begin = Instant::now();
    let status = instance.terminate().await?;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_an_error() -> Result<()> {
    let site = Site::with_one_window().await?;
    let instance = site.host(Kind::VerveHost).start().await?;
    let mut command = Kind::VerveHost.command(&paths::manifest())?;
    command.args(["--listen", &instance.addr().to_string()]);
    let second = verve_tests::process::Process::spawn("second host", command)?;
    let status = second.wait(SOON).await?;
    assert!(!status.success());
    assert!(second.log().contains(&instance.addr().to_string()), "{}", second.log());
    Ok(())
}

#[tokio::test]
async fn answers_leave_in_one_piece() -> Result<()> {
    // Between a client with delayed acknowledgements and a host without TCP_NODELAY, two writes
    // stall for 40 ms; one write never does.
    let site = Site::with_one_window().await?;
    let instance = Instance::options(Kind::VerveHost)
        .variable("redis_urls", &site.redis_urls())
        .start()
        .await?;
    let mut connection = Connection::open(instance.addr()).await?;
    let mut in_pieces = 0;
    for id in 0..200 {
        let response = connection.get(&format!("/api/verve/accept?id={id}")).await?;
        assert_eq!(response.status, 200);
        in_pieces += usize::from(response.reads > 1);
    }
    assert!(in_pieces < 20, "{in_pieces} of 200 answers came in pieces");
    Ok(())
}

/// Returns the files in a folder and in its subfolders.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// A restarted host does not compile again.
///
/// A host compiles if it cannot keep the result, or if it finds a broken one.
#[tokio::test]
async fn compiled_components_are_cached() -> Result<()> {
    let site = Site::with_one_window().await?;
    let folder = tempfile::tempdir()?;
    let start = async |cache: &Path| -> Result<(f64, String)> {
        let cache = cache.display().to_string();
        let host = site.host(Kind::VerveHost).environment("XDG_CACHE_HOME", &cache);
        let instance = host.start().await?;
        let answer = http::get(instance.addr(), "/api/verve/accept?id=1").await?;
        assert_eq!(answer.status, 200, "{}", instance.process().log());
        Ok((cpu_seconds(instance.process().pid()), instance.process().log()))
    };
    let (compiling, _) = start(folder.path()).await?;
    let kept = files(folder.path())?;
    assert!(!kept.is_empty());
    let (loading, _) = start(folder.path()).await?;
    assert!(
        loading < compiling / 2.0,
        "{compiling} s of processor time, then {loading}"
    );
    for file in kept {
        fs::write(file, "broken")?;
    }
    let (again, _) = start(folder.path()).await?;
    assert!(again > compiling / 2.0, "{compiling} s of processor time, then {again}");
    let (_, log) = start(Path::new("/dev/null")).await?;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    Ok(())
}
