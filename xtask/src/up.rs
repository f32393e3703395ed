//! `cargo xtask up`: builds the programs, then runs `verve-up`.
//!
//! `verve-up` starts and shows everything.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, install, kafka};

#[derive(clap::Args)]
pub struct Args {
    /// Send requests and two callbacks, and show what was sent beside each record
    #[arg(long)]
    demo: bool,
    /// Run a real Apache Kafka instead of the embedded broker
    ///
    /// The first run downloads it (40 MB).
    #[arg(long)]
    kafka: bool,
    /// Run a Redis Cluster, three primaries and three replicas, instead of one server
    #[arg(long)]
    cluster: bool,
    /// Length of a window, in seconds
    #[arg(long, default_value_t = 10)]
    window_seconds: u32,
    /// With --demo: stop after this number of windows
    ///
    /// The program fails if the counts and the sent requests do not agree.
    #[arg(long, requires = "demo", value_name = "N")]
    windows: Option<u32>,
}

pub fn run(args: &Args) -> Result<()> {
    install::ensure(&[install::REDIS])?;
    build::component()?;
    let programs = build::quick()?;
    if args.kafka {
        kafka::prepare()?;
    }
    let mut command = Command::new(programs.join(build::UP));
    command.args(["--window-seconds", &args.window_seconds.to_string()]);
    command
        .args(args.demo.then_some("--demo"))
        .args(args.kafka.then_some("--kafka"))
        .args(args.cluster.then_some("--cluster"));
    if let Some(windows) = args.windows {
        command.args(["--windows", &windows.to_string()]);
    }
    // Replaces this process, so that Ctrl-C and the exit code are those of the program.
    Err(command.exec()).context("cannot run verve-up")
}
