//! Tests `verve-reporter top` in its own terminal.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use verve_tests::process::Process;
use verve_tests::reporter::{self, without_settings};
use verve_tests::{clock, paths, wait};

use crate::site::{SOON, Site};

#[tokio::test]
async fn it_shows_the_activity_until_q() -> Result<()> {
    let site = Site::with_one_window().await?;
    let _reporter = site.reporter(&[]).await?;
    site.add(clock::current_window(site.length), 0..4321).await?;
    let flags = site.flags(&[]).into_iter();
    // A terminal that is not displayed has no size by default.
    let words = flags.map(|flag| format!("'{flag}'")).collect::<Vec<_>>().join(" ");
    let program = paths::verve_reporter()?;
    let line = format!("stty rows 40 columns 120; exec {} top {words}", program.display());
    let mut command = without_settings(Command::new("script"));
    command.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut terminal = command.spawn().context("script, of util-linux")?;
    let (mut keyboard, screen) = (terminal.stdin.take(), terminal.stdout.take());
    let (sender, shown) = mpsc::channel();
    thread::spawn(move || {
        let screen = screen.into_iter().flat_map(std::io::Read::bytes).map_while(Result::ok);
        for byte in screen {
            if sender.send(byte).is_err() {
                break;
            }
        }
    });
    let mut seen = Vec::new();
    let mut shows = async |text: &str| {
        let found = wait::until(text, SOON, || {
            seen.extend(shown.try_iter());
            let is_there = String::from_utf8_lossy(&seen).contains(text);
            async move { is_there.then_some(()) }
        });
        found.await
    };
    // Unchanged cells are not drawn again, nor are spaces.
    for text in ["4,321", "ends", "replica"] {
        shows(text).await?;
    }
    keyboard.as_mut().context("its keyboard")?.write_all(b"q")?;
    let status = wait::until("its end", SOON, || {
        let ended = terminal.try_wait();
        async { ended.ok().flatten() }
    })
    .await?;
    ensure!(status.success(), "{status}");
    // The terminal is restored.
    shows("\u{1b}[?1049l").await
}

#[tokio::test]
async fn without_a_terminal_it_is_an_error() -> Result<()> {
    let mut command = reporter::command()?;
    command.arg("top");
    let top = Process::spawn("verve-reporter top", command)?;
    let status = top.wait(SOON).await?;
    assert_eq!(status.code(), Some(1));
    assert!(top.log().contains("expected a terminal"), "{}", top.log());
    Ok(())
}
