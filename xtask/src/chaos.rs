//! `cargo xtask chaos`: builds the programs, then runs `verve-chaos`.
//!
//! `verve-chaos` injects faults into every part, and checks every count.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, install, kafka, sys};

#[derive(clap::Args)]
pub struct Args {
    /// Duration of the faults in seconds
    ///
    /// The last round is completed, and the calm after it takes up to two minutes more.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Repeat the faults of the run with this seed; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Use a Redis Cluster, three primaries and three replicas, instead of one server
    #[arg(long)]
    cluster: bool,
    /// Count in named counters too, and in windows of two lengths
    #[arg(long)]
    named: bool,
}

pub fn run(args: &Args) -> Result<()> {
    install::ensure(&[install::REDIS])?;
    build::component()?;
    build::native(&[build::HOST, build::REPORTER, build::CHAOS])?;
    kafka::prepare()?;
    let mut command = Command::new(sys::binary(build::CHAOS));
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if args.cluster {
        command.arg("--cluster");
    }
    if args.named {
        command.arg("--named");
    }
    // Replaces this process, so that Ctrl-C and the exit code are those of the program.
    Err(command.exec()).context("cannot run verve-chaos")
}
