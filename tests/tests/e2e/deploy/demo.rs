//! `verve-up --demo`: the first command of a new user.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use verve_tests::process::{Process, Signal};
use verve_tests::{http, paths, reporter};

/// Returns a `verve-up` without settings from the environment of the tests.
fn command(arguments: &[&str]) -> Result<Command> {
    // Checked here, since `verve-up` reports a missing program at much greater length.
    paths::verve_host()?;
    paths::verve_reporter()?;
    paths::component()?;
    let mut command = reporter::without_settings(Command::new(paths::program("verve-up")?));
    command.args(arguments);
    Ok(command)
}

/// One after the other, because both need the ports that users expect.
#[tokio::test]
async fn verve_up() -> Result<()> {
    the_demo_counts_right_and_ends(&[]).await?;
    the_demo_counts_right_and_ends(&["--cluster"]).await?;
    an_interrupt_ends_all_that_it_started().await
}

async fn the_demo_counts_right_and_ends(more: &[&str]) -> Result<()> {
    let arguments = ["--demo", "--windows", "2", "--window-seconds", "2"];
    let process = Process::spawn("verve-up", command(&[&arguments[..], more].concat())?)?;
    let status = process.wait(Duration::from_secs(60)).await?;
    assert_eq!(status.code(), Some(0), "{}", process.log());
    let lines = process.lines();
    assert!(lines.iter().any(|line| line.contains("look:  http://")), "{lines:#?}");
    // Its last output is the table of its windows.
    let table = lines.iter().skip_while(|line| !line.starts_with("WINDOW"));
    let windows = table.skip(1).filter(|line| line.starts_with("20"));
    assert_eq!(windows.count(), 2, "{lines:#?}");
    Ok(())
}

async fn an_interrupt_ends_all_that_it_started() -> Result<()> {
    let process = Process::spawn("verve-up", command(&["--window-seconds", "1"])?)?;
    let patience = Duration::from_secs(60);
    // The example request, as printed for the user.
    let line = process.wait_for_text("/api/verve/accept?id=", patience).await?;
    let url = line
        .split(['"', '\'', ' '])
        .find_map(|word| word.strip_prefix("http://"));
    let (address, path) = url.and_then(|url| url.split_once('/')).context("a URL to try")?;
    let address = address.replace("localhost", "127.0.0.1").parse()?;
    assert_eq!(http::get(address, &format!("/{path}")).await?.status, 200, "{line}");
    process.signal(Signal::SIGINT)?;
    let status = process.wait(Duration::from_secs(20)).await?;
    assert!(
        http::get(address, "/").await.is_err(),
        "{status}: a host is left behind"
    );
    Ok(())
}
