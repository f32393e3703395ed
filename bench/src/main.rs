//! `cargo xtask bench`: measures Verve beside its peers, in one run, and writes `docs/benchmarks.md`.
//!
//! Absolute rates drift on most machines, so everything that is compared runs interleaved, in several rounds, on the same
//! processors, the same Redis and the same traffic; what counts are medians and ratios.
//!
//! - [`targets`]: the programs under load; [`load`]: the load generators
//! - [`requests`]: rates, latencies, writes, Redis commands; [`scale`]: how the cost grows; [`reporter`]: the sidecar
//! - [`page`]: tables and plots

mod load;
mod page;
mod reporter;
mod requests;
mod scale;
mod targets;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use verve_tests::paths;

use crate::page::Page;

/// Measures Verve beside its peers
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
pub struct Options {
    /// How often each thing is measured; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// A minute, for a look before and after a change: rates at 100 connections alone, in two rounds. Writes no page
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "only", "page"])]
    quick: bool,

    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// The load generator for fixed rates
    #[arg(long, hide = true)]
    oha: Option<PathBuf>,
    /// Where the page goes; parts that were not measured are not on it
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Requests a second in closed loop, beside the peers
    Rates,
    /// Latencies at 10,000 requests a second
    Latency,
    /// Responses that leave in two writes
    Writes,
    /// Redis commands per request
    Commands,
    /// Requests a second while Redis is away
    Away,
    /// The component by itself
    Component,
    /// How the cost grows
    Scale,
    /// The reporter
    Reporter,
}

impl Options {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut options = Options::parse();
    if options.quick {
        (options.rounds, options.seconds, options.only) = (2, 3, vec![Part::Rates]);
    }
    let options = options;
    let wanted = |part: Part| options.only.is_empty() || options.only.contains(&part);
    let mut page = Page::new(&options)?;
    if wanted(Part::Rates) {
        requests::rates(&options, &mut page).await?;
    }
    if wanted(Part::Latency) {
        requests::latency(&options, &mut page).await?;
    }
    if wanted(Part::Writes) {
        requests::writes(&options, &mut page).await?;
    }
    if wanted(Part::Commands) {
        requests::commands(&options, &mut page).await?;
    }
    if wanted(Part::Away) {
        requests::away(&options, &mut page).await?;
    }
    if wanted(Part::Component) {
        scale::component(&options, &mut page).await?;
    }
    if wanted(Part::Scale) {
        scale::scale(&options, &mut page).await?;
    }
    if wanted(Part::Reporter) {
        reporter::reporter(&options, &mut page).await?;
    }
    if options.quick {
        return Ok(());
    }
    let path = paths::repository().join(&options.page);
    let folder = path.parent().context("a folder")?;
    fs::create_dir_all(folder)?;
    page.write(&path)?;
    println!("\nwritten: {}", path.display());
    Ok(())
}
