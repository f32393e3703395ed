//! Runs the steps of docs/deploy.md as written.
//!
//! Only the ports differ, windows are shorter, and Kafka is the tests' own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use verve_tests::kafka::Kafka;
use verve_tests::process::Process;
use verve_tests::reporter::without_settings;
use verve_tests::{http, net, paths, shipped, wait};

use crate::site::SOON;

/// A fenced code block.
#[derive(Debug)]
struct Block {
    language: String,
    text: String,
}

/// Returns the blocks of the section that begins with this line.
fn blocks(page: &str, section: &str) -> Vec<Block> {
    let (_, section) = page.split_once(section).unwrap_or_default();
    let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in section.lines().map(|line| line.strip_prefix("   ").unwrap_or(line)) {
        match (line.strip_prefix("```"), blocks.last_mut()) {
            (Some(language), _) if !inside => blocks.push(Block {
                language: language.to_owned(),
                text: String::new(),
            }),
            (None, Some(block)) if inside => block.text = format!("{}{line}\n", block.text),
            _ => {}
        }
        inside ^= line.starts_with("```");
    }
    blocks
}

/// Returns the leading digits of ten free ports; the steps use the last digit.
fn ten_ports() -> Result<u16> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    // Below the range from which systems assign ports automatically.
    let tens = (0..200).map(|_| fastrand::u16(1_100..3_200));
    let mut free = tens.filter(|tens| (0..10).all(|digit| is_free(tens * 10 + digit)));
    free.next().context("ten free ports")
}

/// Replaces text that must be present.
fn replace(text: &mut String, from: &str, to: &str) -> Result<()> {
    ensure!(text.contains(from), "{from:?} is not in {text}");
    *text = text.replace(from, to);
    Ok(())
}

/// Returns a command for a shell without other settings.
fn shell(folder: &Path, script: &str) -> Command {
    let mut command = without_settings(Command::new("sh"));
    command.args(["-ec", script]).current_dir(folder);
    command
}

/// Starts a step that runs, or whose programs run, until this is dropped.
fn begin(folder: &Path, script: &str) -> Result<Process> {
    let mut command = shell(folder, &format!("{script}\nwait"));
    command.process_group(0);
    Process::spawn("a step", command)
}

/// Runs a step to its end, and returns its output.
async fn run(folder: &Path, script: &str) -> Result<String> {
    let step = Process::spawn("a step", shell(folder, script))?;
    let status = step.wait(SOON).await?;
    ensure!(status.success(), "{script}: {status}: {}", step.log());
    Ok(step.log())
}

async fn answers(step: &Process, address: SocketAddr, path: &str) -> Result<()> {
    let answer = wait::until(path, SOON, || async {
        let answer = http::get(address, path).await.ok()?;
        (answer.status == 200).then_some(())
    });
    answer.await.with_context(|| step.log())
}

#[tokio::test]
async fn each_step_has_the_documented_result() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for shown in ["target", "deploy", "spin.toml"] {
        let there = match shown {
            "target" => paths::target(),
            file => paths::repository().join(file),
        };
        symlink(there, folder.path().join(shown))?;
    }
    let steps = blocks(&shipped::text("docs/deploy.md")?, "\n## Step by step\n");
    let languages: Vec<&str> = steps.iter().map(|block| &*block.language).collect();
    assert_eq!(languages, ["sh", "sh", "sh", "sh", "toml", "sh", "sh", "sh"]);
    let mut steps = steps.into_iter().map(|block| block.text);
    let mut next = || steps.next().context("a step");

    let (hosts, admin) = (ten_ports()?, ten_ports()?);
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (redis, entrance) = (net::free_address()?, net::free_address()?);
    let (redis_port, entrance_port) = (redis.port().to_string(), entrance.port().to_string());

    let mut step = next()?;
    replace(&mut step, "redis-server", &format!("redis-server --port {redis_port}"))?;
    let server = begin(folder.path(), &step)?;
    server.wait_for_text("Ready to accept connections", SOON).await?;

    // Kafka's tools are not available here, so the topic is created directly.
    let step = next()?;
    assert!(
        step.contains("--create --topic unique-requests --partitions 1"),
        "{step}"
    );
    let kafka = Kafka::embedded()?;
    kafka.create_topic("unique-requests", 1).await?;

    let mut step = next()?;
    replace(&mut step, "6379", &redis_port)?;
    replace(&mut step, "300$n", &format!("{hosts}$n"))?;
    replace(
        &mut step,
        "SPIN_VARIABLE_REDIS",
        "SPIN_VARIABLE_WINDOW_SECONDS=2 SPIN_VARIABLE_REDIS",
    )?;
    let started = begin(folder.path(), &step)?;
    for digit in 1..=3 {
        answers(&started, at(hosts * 10 + digit), "/.well-known/spin/health").await?;
    }

    let mut step = next()?;
    replace(&mut step, "127.0.0.1:300", &format!("127.0.0.1:{hosts}"))?;
    replace(
        &mut step,
        "sed",
        &format!("sed -e 's/listen 8080/listen {entrance_port}/'"),
    )?;
    let nginx = begin(folder.path(), &step)?;
    answers(&nginx, entrance, "/healthz").await?;

    let mut settings = next()?;
    replace(&mut settings, "6379", &redis_port)?;
    replace(&mut settings, "127.0.0.1:9092", kafka.brokers())?;
    fs::write(folder.path().join("data/verve.toml"), settings + "window-seconds = 2\n")?;

    let mut step = next()?;
    replace(&mut step, "909$n", &format!("{admin}$n"))?;
    let reporters = begin(folder.path(), &step)?;
    for digit in 0..=1 {
        answers(&reporters, at(admin * 10 + digit), "/readyz").await?;
    }

    let mut step = next()?;
    replace(&mut step, "8080", &entrance_port)?;
    let (request, counts) = step.trim_end().rsplit_once('\n').context("two commands")?;
    let answer = run(folder.path(), request).await?;
    // The progress output of curl may be anywhere.
    let has_ok = answer.lines().any(|line| line == "ok");
    assert!(answer.contains("200 OK") && has_ok, "{answer}");
    wait::until("the request in a table", SOON, async || {
        let table = run(folder.path(), counts).await.ok()?;
        let mut uniques = (table.lines().skip(1)).filter_map(|line| line.split_whitespace().nth(1));
        uniques.any(|unique| unique == "1").then_some(())
    })
    .await?;
    // A count in the table is in Kafka before.
    let records = kafka.read_all("unique-requests").await?;
    assert!(records.iter().any(|record| record.value == "1"), "{records:?}");

    let output = run(folder.path(), &next()?).await?;
    assert!(!output.contains("\nproblem"), "{output}");
    assert!(output.contains(" 0 to fix"), "{output}");
    let page = http::get(at(admin * 10), "/").await?;
    assert!(page.text().contains("Unique ids in windows of 2 s"));
    Ok(())
}
