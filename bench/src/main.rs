//! `cargo xtask bench`: measures Verve and its peers.
//!
//! It writes `docs/benchmarks.md`. All measurements are made in one run. Absolute rates drift on
//! most machines, so everything that is compared runs interleaved, in several rounds, on the same
//! processors, the same Redis and the same traffic. The results are medians and ratios.
//!
//! - [`targets`]: the programs under load; [`load`]: the load generators
//! - [`requests`]: rates, latencies, writes, Redis commands; [`scale`]: the growth of the cost;
//!   [`reporter`]: the reporter; [`counters`]: many named counters
//! - [`page`]: tables and plots

mod counters;
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

/// Measures Verve and its peers
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
pub struct Options {
    /// Number of measurements of each value; the result is their median
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Duration of each measurement, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Run for a minute, to compare before and after a change
    ///
    /// Measures only rates at 100 connections, in two rounds, and writes no page.
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "only", "page"])]
    quick: bool,

    /// Measure only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Program that generates load at fixed rates
    #[arg(long, hide = true)]
    oha: Option<PathBuf>,
    /// File of the page, which has only the parts that were measured
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Requests a second in closed loop, compared with the peers
    Rates,
    /// Latencies at 10,000 requests a second
    Latency,
    /// Responses that leave in two writes
    Writes,
    /// Redis commands per request
    Commands,
    /// Requests a second while Redis is unreachable
    Away,
    /// The component alone
    Component,
    /// The growth of the cost
    Scale,
    /// The reporter
    Reporter,
    /// Many named counters
    Counters,
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
    if wanted(Part::Counters) {
        counters::counters(&mut page).await?;
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
