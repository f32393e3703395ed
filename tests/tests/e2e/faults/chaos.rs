//! Short runs of `verve-chaos`, which is `cargo xtask chaos`.
//!
//! The faults are the same each time.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use verve_tests::paths;
use verve_tests::process::Process;

async fn run(seconds: &str, more: &[&str]) -> Result<()> {
    // Checked here, since `verve-chaos` reports a missing program at much greater length.
    paths::verve_host()?;
    paths::verve_reporter()?;
    paths::component()?;
    let mut command = Command::new(paths::program("verve-chaos")?);
    command.args(["--seconds", seconds, "--seed", "1"]).args(more);
    let process = Process::spawn("verve-chaos", command)?;
    let status = process.wait(Duration::from_secs(400)).await?;
    assert_eq!(status.code(), Some(0), "{}", process.log());
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_whatever_fails() -> Result<()> {
    run("60", &[]).await
}

#[tokio::test]
async fn nothing_is_lost_of_a_named_counter() -> Result<()> {
    run("30", &["--named"]).await
}

#[tokio::test]
async fn nothing_is_lost_on_a_cluster() -> Result<()> {
    run("60", &["--cluster"]).await
}
