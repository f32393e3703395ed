//! `cargo xtask simulate`: builds and runs `verve-simulation`.
//!
//! It runs the real code on simulated machines.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, sys};

#[derive(clap::Args)]
pub struct Args {
    /// Number of seeds to run
    #[arg(long, conflicts_with = "minutes")]
    seeds: Option<u64>,
    /// First seed; one that was never run before if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Run seeds for this number of minutes, regardless of their number
    #[arg(long)]
    minutes: Option<f64>,
    /// Print the steps of each run, regardless of its result
    #[arg(long)]
    story: bool,
    /// Insert one fault after the other
    ///
    /// Reports how many seeds it takes to find each.
    #[arg(long)]
    mutations: bool,
}

pub fn run(args: &Args) -> Result<()> {
    build::native(&[build::SIMULATION])?;
    let mut command = Command::new(sys::binary(build::SIMULATION));
    let mut option = |flag: &str, value: Option<String>| {
        command.args(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    };
    option("--seeds", args.seeds.map(|seeds| seeds.to_string()));
    option("--seed", args.seed.map(|seed| seed.to_string()));
    option("--minutes", args.minutes.map(|minutes| minutes.to_string()));
    let flags = [(args.story, "--story"), (args.mutations, "--mutations")];
    command.args(
        flags
            .into_iter()
            .filter_map(|(is_given, flag)| is_given.then_some(flag)),
    );
    // Replaces this process, so that Ctrl-C and the exit code are those of the program.
    Err(command.exec()).context("cannot run verve-simulation")
}
