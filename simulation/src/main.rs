//! Runs seeds: Verve's own code with simulated surroundings and faults.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mimalloc::MiMalloc;
use verve_simulation::mutation::{MUTATIONS, Mutation};
use verve_simulation::plan::Plan;
use verve_simulation::run::{Outcome, run};
use verve_simulation::shrink::shrink;

/// Memory allocation takes much of the run time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Runs Verve's own code on simulated machines with faults, and checks its promises
#[derive(Parser)]
#[command(name = "verve-simulation", version)]
struct Args {
    /// Number of seeds to run
    #[arg(long, default_value_t = 1000, conflicts_with = "minutes")]
    seeds: u64,
    /// First seed; by default a random one, which nobody has run yet
    #[arg(long)]
    seed: Option<u64>,
    /// Run as many seeds as possible in this number of minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Print what happens in each seed, even if there is no problem
    #[arg(long)]
    story: bool,
    /// Print how many seeds it takes to find each inserted fault, up to --seeds
    #[arg(long, conflicts_with_all = ["minutes", "story"])]
    mutations: bool,
}

/// The totals of all seeds so far.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: u64,
    faults: usize,
    answered: usize,
    simulated: Duration,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.faults += outcome.faults;
        self.answered += outcome.answered;
        self.simulated += outcome.simulated;
        self.failed += u64::from(!outcome.wrong.is_empty());
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.mutations {
        return find_mutations(args.seed.unwrap_or(1), args.seeds);
    }
    let begun = Instant::now();
    let first = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let within = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let is_over = |seed: u64| match within {
        Some(within) => begun.elapsed() >= within,
        None => seed - first >= args.seeds,
    };
    let (next, sum) = (AtomicU64::new(first), Mutex::new(Sum::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if is_over(seed) {
                break;
            }
            let outcome = run(&Plan::new(seed), args.story, None);
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.add(&outcome);
            // The first seed that fails also gets a smaller plan with its story; for the others the
            // problems are enough.
            if args.story || !outcome.wrong.is_empty() {
                print_seed(seed, &outcome, sum.failed == 1 && !args.story);
            }
        }
    };
    at_once(work);
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds from {first} on in {seconds:.0} s: {:.1} hours, {} faults, {} requests answered; {} failed",
        sum.seeds,
        sum.simulated.as_secs_f64() / 3600.0,
        sum.faults,
        sum.answered,
        sum.failed
    );
    ExitCode::from(u8::from(sum.failed > 0))
}

/// Runs `work` on each processor.
fn at_once(work: impl Fn() + Copy + Send) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

/// Prints for each mutation how many seeds it takes to find a problem.
fn find_mutations(first: u64, seeds: u64) -> ExitCode {
    let (next, missed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let find = |mutation: &'static Mutation| {
        let mut met = 0;
        let found = (first..first + seeds).find_map(|seed| {
            let outcome = run(&Plan::new(seed), false, Some(mutation));
            met += u64::from(outcome.is_met);
            Some((seed - first + 1, outcome.wrong.into_iter().next()?))
        });
        match found {
            Some((seeds, wrong)) => println!("{seeds:>6} seeds: {}: {wrong}", mutation.name),
            None => {
                missed.fetch_add(1, Ordering::Relaxed);
                println!(
                    "  NOT FOUND by {seeds} seeds, {met} of which came there: {}",
                    mutation.name
                );
            }
        }
    };
    let work = || {
        while let Some(mutation) = MUTATIONS.get(next.fetch_add(1, Ordering::Relaxed)) {
            find(mutation);
        }
    };
    at_once(work);
    ExitCode::from(u8::from(missed.into_inner() > 0))
}

/// Prints the story and the problems of a seed.
///
/// If `shrunk`, also prints a smaller plan that has a problem, and its story.
fn print_seed(seed: u64, outcome: &Outcome, shrunk: bool) {
    outcome.story.iter().for_each(|line| println!("{line}"));
    if !outcome.wrong.is_empty() {
        println!("seed {seed}:");
    }
    outcome.wrong.iter().for_each(|wrong| println!("  {wrong}"));
    if !shrunk {
        return;
    }
    let plan = shrink(&Plan::new(seed));
    let smaller = run(&plan, true, None);
    println!(
        "a smaller plan ({} faults, {} requests, {} servers, {:?}, windows of {} s, {} sets, late for {} s, instances {:?}, drifts {:?}, {} replicas):",
        plan.faults.len(),
        plan.requests.len(),
        plan.servers,
        plan.followed,
        plan.window_seconds,
        plan.partitions,
        plan.late_seconds,
        plan.machines,
        plan.drifts_ppm,
        plan.replicas
    );
    smaller.wrong.iter().for_each(|wrong| println!("  {wrong}"));
    let windows = smaller.wrong.iter().filter_map(|wrong| wrong.window);
    let names: Vec<String> = windows
        .flat_map(|window| [window.to_string(), window.start().to_string()])
        .collect();
    let is_relevant = |line: &&String| {
        names.is_empty() || !line.contains(" redis") || names.iter().any(|name| line.contains(name.as_str()))
    };
    smaller
        .story
        .iter()
        .filter(is_relevant)
        .for_each(|line| println!("  {line}"));
}
