//! The project's own commands, `cargo xtask build | up | test | bench | chaos | simulate | fuzz | screenshots | reference | kafka`.
//!
//! What they need and the machine lacks is installed where that can be done, and named in one line where it cannot.
//! This program is compiled before anything else, so it depends on next to nothing.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cargo;
mod chaos;
mod failures;
mod fuzz;
mod images;
mod install;
mod java;
mod kafka;
mod page;
mod public;
mod python;
mod simulate;
mod sys;
mod test;
mod up;

/// Builds, runs and tests Verve. Missing tools are installed where possible.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Install what the machine lacks by sudo, without asking first. Root is never asked.
    #[arg(long, global = true)]
    install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the component, the host and the reporter, or one of them.
    Build(build::Args),
    /// Starts everything: Redis, two hosts, the reporter and a Kafka broker, and shows each record as it comes.
    Up(up::Args),
    /// Checks and tests everything, end to end, with a real Redis and a real Kafka.
    Test(test::Args),
    /// Kills, stops, pauses and cuts off every part under traffic, and checks that each id was counted exactly once.
    Chaos(chaos::Args),
    /// Runs the real code on simulated machines, with faults by seeds, and checks what is promised.
    Simulate(simulate::Args),
    /// Looks for texts that break what reads them, by libFuzzer.
    Fuzz(fuzz::Args),
    /// Measures Verve beside its peers, and writes docs/benchmarks.md.
    Bench(bench::Args),
    /// Takes the pictures of the live page that are in docs/ again.
    Screenshots,
    /// Writes docs/verve-host.md and docs/verve-reporter.md anew, by what these programs say of themselves, and the listings of what is public in the published crates.
    Reference,
    /// Builds the container images of deploy/ by buildah, from static programs and nothing else, and tries them.
    Images,
    /// Runs a real Apache Kafka (one node) in the foreground, for tests.
    Kafka(kafka::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.install {
        install::allow_sudo();
    }
    let result = match cli.command {
        Command::Build(args) => build::run(&args),
        Command::Up(args) => up::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Screenshots => test::screenshots(),
        Command::Reference => build::reference(),
        Command::Images => images::run(),
        Command::Kafka(args) => kafka::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sys::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
