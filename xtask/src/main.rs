//! The project's own commands: `cargo xtask <command>`.
//!
//! The commands are `build`, `up`, `test`, `bench`, `chaos`, `simulate`, `fuzz`, `screenshots`,
//! `reference`, `images` and `kafka`. Missing tools are installed where possible, and named in one
//! line where not. This program is compiled before anything else, so it has few dependencies.

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

/// Builds, runs and tests Verve
///
/// Missing tools are installed where possible.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Install missing packages with sudo, without asking first
    ///
    /// Root is never asked.
    #[arg(long, global = true)]
    install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the component, the host and the reporter, or one of them
    Build(build::Args),
    /// Starts everything, and shows each record as it arrives
    ///
    /// Everything is Redis, two hosts, the reporter and a Kafka broker.
    Up(up::Args),
    /// Checks and tests everything, end to end, with a real Redis and a real Kafka
    Test(test::Args),
    /// Makes every part fail under traffic, and checks the counts
    ///
    /// Parts are killed, stopped, paused and cut off; each id must be counted exactly once.
    Chaos(chaos::Args),
    /// Runs the real code on simulated machines, and checks the guarantees
    ///
    /// The faults are determined by seeds.
    Simulate(simulate::Args),
    /// Searches with libFuzzer for texts that break the code that reads them
    Fuzz(fuzz::Args),
    /// Measures Verve and its peers, and writes docs/benchmarks.md
    Bench(bench::Args),
    /// Takes the screenshots of the live page in docs/ again
    Screenshots,
    /// Regenerates the reference of the programs and of the public API
    ///
    /// It writes docs/verve-host.md and docs/verve-reporter.md from the help texts of these
    /// programs, and the listings of the public API of the published crates.
    Reference,
    /// Builds and tests the container images of deploy/, with buildah
    ///
    /// The images contain static programs only.
    Images,
    /// Runs a real Apache Kafka (one node) in the foreground, for tests
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
            sys::log(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
