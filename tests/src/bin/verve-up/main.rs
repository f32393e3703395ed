//! `verve-up`: all of Verve on this machine, to try it.
//!
//! `cargo xtask up` builds and starts this program.
//!
//! - [`guard`]: the process that the user starts: forwards Ctrl-C, and leaves nothing running
//! - [`parts`]: Redis, Kafka, hosts and reporter, started and ended in order
//! - [`demo`]: requests and callbacks, and a tally to compare with the counts
//! - [`show`]: the output

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use verve_protocol::WindowLength;

mod demo;
mod guard;
mod parts;
mod show;
mod stop;

/// Runs Redis, Kafka, two hosts and the reporter, and shows each published record
///
/// Ctrl-C ends everything.
#[derive(Parser)]
#[command(name = "verve-up")]
struct Args {
    /// Send requests and two callbacks, and show what was sent beside each record
    #[arg(long)]
    demo: bool,
    /// Run a real Apache Kafka instead of the embedded broker
    #[arg(long)]
    kafka: bool,
    /// Run a Redis Cluster, three primaries and three replicas, instead of one server
    #[arg(long)]
    cluster: bool,
    /// Length of a window, in seconds
    #[arg(long, default_value = "10")]
    window_seconds: WindowLength,
    /// With --demo: stop after this number of windows
    ///
    /// The program fails if the counts differ from what was sent.
    #[arg(long, requires = "demo", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,
    /// Set by the guard for the process that does the work
    #[arg(long, hide = true)]
    guarded: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.guarded { up(&args) } else { guard::run() };
    result.unwrap_or_else(|error| {
        eprintln!("verve-up: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn up(args: &Args) -> Result<ExitCode> {
    let mut stop = stop::when_guard_signals();
    show::starting(args.kafka);
    let parts = tokio::select! {
        parts = parts::Parts::start(args) => parts?,
        // Dropping the parts ends those that have started.
        () = stop.wait() => return Ok(ExitCode::SUCCESS),
    };
    let records = parts.kafka.consume(parts::TOPIC).await?;
    show::running(&parts, args);
    let mut demo = match args.demo {
        true => Some(demo::Demo::start(&parts, args).await?),
        false => None,
    };
    let agrees = tokio::select! {
        agrees = watch(&parts, &records, &mut demo) => agrees?,
        () = stop.wait() => true,
    };
    if let Some(demo) = demo {
        demo.end();
        show::counts(&parts, args)?;
    }
    parts.stop().await;
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows records and callbacks as they arrive.
///
/// Ends when the demo ends, if it does, and returns whether everything agreed.
async fn watch(
    parts: &parts::Parts,
    records: &verve_tests::kafka::Records,
    demo: &mut Option<demo::Demo>,
) -> Result<bool> {
    loop {
        if let Some(record) = records.next(std::time::Duration::from_millis(200)).await {
            let sent = demo.as_mut().and_then(|demo| demo.reported(&record));
            show::record(&record, sent.as_deref());
        }
        if let Some(demo) = demo {
            demo.new_callbacks().iter().for_each(show::callback);
            if let Some(verdict) = demo.verdict() {
                println!("\n{verdict}");
                return Ok(verdict.agrees());
            }
        }
        parts.check()?;
    }
}
