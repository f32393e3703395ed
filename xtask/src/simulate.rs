//! `cargo xtask simulate`: builds and runs `verve-simulation`, which runs the real code on simulated machines.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, sys};

#[derive(clap::Args)]
pub struct Args {
    /// How many seeds to run.
    #[arg(long, conflicts_with = "minutes")]
    seeds: Option<u64>,
    /// The first of them; one that nobody has run yet if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// For how many minutes to run seeds, however many they are.
    #[arg(long)]
    minutes: Option<f64>,
    /// Tells what is done, whatever comes of it.
    #[arg(long)]
    story: bool,
    /// Puts in one fault after the other, and says how many seeds it takes to find each.
    #[arg(long)]
    mutations: bool,
}

pub fn run(args: &Args) -> Result<()> {
    build::native(&[build::SIMULATION])?;
    let mut command = Command::new(sys::binary(build::SIMULATION));
    let mut say = |flag: &str, value: Option<String>| {
        command.args(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    };
    say("--seeds", args.seeds.map(|seeds| seeds.to_string()));
    say("--seed", args.seed.map(|seed| seed.to_string()));
    say("--minutes", args.minutes.map(|minutes| minutes.to_string()));
    let flags = [(args.story, "--story"), (args.mutations, "--mutations")];
    command.args(
        flags
            .into_iter()
            .filter_map(|(is_given, flag)| is_given.then_some(flag)),
    );
    // In this process's place, so that Ctrl-C and the exit code are its own.
    Err(command.exec()).context("cannot run verve-simulation")
}
