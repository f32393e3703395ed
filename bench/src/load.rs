//! The load generators: wrk in closed loop, oha at a fixed rate.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use verve_tests::paths;

/// The ids that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Random ids out of a million.
    Random,
    /// Nine of ten ids were sent before.
    Repeats,
}

impl Traffic {
    /// Returns the name for tables and for the load script.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Repeats => "repeats",
        }
    }
}

/// The result of a run. Latencies are in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// Median latency.
    pub p50: f64,
    /// Latency that one of a hundred requests exceeds.
    pub p99: f64,
    /// Latency that one of a thousand requests exceeds.
    pub p999: f64,
    /// Requests that were not answered 200.
    pub errors: u64,
}

#[derive(Deserialize)]
struct Wrk {
    requests: u64,
    microseconds: f64,
    errors: u64,
    p50: f64,
    p99: f64,
    p999: f64,
}

/// Sends requests as fast as `connections` clients get their answers.
pub fn closed(address: SocketAddr, connections: usize, traffic: Traffic, time: Duration) -> Result<Run> {
    let script = paths::repository().join("bench/load.lua");
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "2", "--timeout", "10s"])
        .args(["--connections", &connections.max(2).to_string()])
        .args(["--duration", &format!("{}s", time.as_secs().max(1))])
        .arg("--script")
        .arg(script)
        .arg(format!("http://{address}/"))
        .env("TRAFFIC", traffic.name())
        .env("SEED", seed().to_string());
    let text = output(wrk)?;
    let line = text
        .lines()
        .rfind(|line| line.starts_with('{'))
        .context("wrk printed no result")?;
    let wrk: Wrk = serde_json::from_str(line)?;
    Ok(Run {
        requests: wrk.requests,
        rate: wrk.requests as f64 / wrk.microseconds * 1e6,
        p50: wrk.p50 / 1e3,
        p99: wrk.p99 / 1e3,
        p999: wrk.p999 / 1e3,
        errors: wrk.errors,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Oha {
    summary: OhaSummary,
    latency_percentiles: OhaPercentiles,
    status_code_distribution: std::collections::BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OhaSummary {
    requests_per_sec: f64,
}

#[derive(Deserialize)]
struct OhaPercentiles {
    p50: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
}

/// Sends `rate` requests a second, even if earlier ones have no answer yet.
///
/// A late answer does not delay the clock of later requests.
pub fn open(oha: &Path, address: SocketAddr, rate: u32, time: Duration) -> Result<Run> {
    let mut command = Command::new(oha);
    command
        .args([
            "--no-tui",
            "--output-format",
            "json",
            "--latency-correction",
            "-c",
            "100",
        ])
        .args(["-q", &rate.to_string(), "-z", &format!("{}s", time.as_secs().max(1))])
        .args([
            "--rand-regex-url",
            &format!("http://{address}/api/verve/accept\\?id=[1-9][0-9]{{5}}"),
        ]);
    let oha: Oha = serde_json::from_str(&output(command)?).context("oha's result")?;
    let count = |is_ok: bool| {
        let of = oha
            .status_code_distribution
            .iter()
            .filter(|(code, _)| (*code == "200") == is_ok);
        of.map(|(_, count)| count).sum()
    };
    Ok(Run {
        requests: count(true),
        rate: oha.summary.requests_per_sec,
        p50: oha.latency_percentiles.p50 * 1e3,
        p99: oha.latency_percentiles.p99 * 1e3,
        p999: oha.latency_percentiles.p999 * 1e3,
        errors: count(false),
    })
}

fn output(mut command: Command) -> Result<String> {
    let shown = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{shown} failed: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Returns a seed that no other run within a day has.
fn seed() -> u64 {
    verve_tests::clock::now_ms() / 100 % 1_000_000
}
