//! Runs seeds: in each, Verve's own code with everything around it simulated, and faults.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use verve_simulation::plan::Plan;
use verve_simulation::run::run;

/// Runs Verve's own code on simulated machines, with faults, and checks what it promises
#[derive(Parser)]
#[command(name = "verve-simulation", version)]
struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them; with --story what is done is told
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how many minutes to run seeds, however many they are
    #[arg(long)]
    minutes: Option<f64>,
    /// Tell what is done
    #[arg(long)]
    story: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let begun = Instant::now();
    let within = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let (mut seeds, mut failed, mut faults, mut answered) = (0u64, 0u64, 0, 0);
    let mut simulated = Duration::ZERO;
    for seed in args.seed.. {
        match within {
            Some(within) if begun.elapsed() >= within => break,
            None if seeds == args.seeds => break,
            _ => {}
        }
        let outcome = run(&Plan::new(seed), args.story);
        seeds += 1;
        faults += outcome.faults;
        answered += outcome.answered;
        simulated += outcome.simulated;
        outcome.story.iter().for_each(|line| println!("{line}"));
        if !outcome.wrong.is_empty() {
            failed += 1;
            println!("seed {seed}:");
            outcome.wrong.iter().for_each(|wrong| println!("  {wrong}"));
        }
    }
    let hours = simulated.as_secs_f64() / 3600.0;
    println!(
        "{seeds} seeds in {:.1} s: {hours:.1} hours, {faults} faults, {answered} requests answered; {failed} seeds failed",
        begun.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(failed > 0))
}
