//! `cargo xtask chaos`: builds what it takes, then runs `verve-chaos`, which harms every part and checks every count.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, install, kafka, sys};

#[derive(clap::Args)]
pub struct Args {
    /// How long faults go on; the last round is finished, and the calm after it takes up to two minutes more.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Repeats the faults of another run; drawn by lot without it.
    #[arg(long)]
    seed: Option<u64>,
    /// On a Redis Cluster, three primaries and three replicas, instead of one server.
    #[arg(long)]
    cluster: bool,
    /// Through an application that counts by the interface, in a named counter too: the example `login`.
    #[arg(long)]
    named: bool,
}

pub fn run(args: &Args) -> Result<()> {
    install::ensure(&[install::REDIS])?;
    if args.named {
        build::components()?;
    } else {
        build::component()?;
    }
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
    // In this process's place, so that Ctrl-C and the exit code are its own.
    Err(command.exec()).context("cannot run verve-chaos")
}
