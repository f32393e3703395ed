//! The output of `verve-up`.

use std::io::Write;

use verve_tests::kafka::Record;
use verve_tests::process::OnLine;
use verve_tests::sink::Received;

use crate::Args;
use crate::parts::{self, Parts, TOPIC};

pub fn starting(kafka: bool) {
    let broker = if kafka {
        "Apache Kafka (takes some seconds)"
    } else {
        "Kafka"
    };
    println!("starting Redis, {broker}, two hosts and the reporter");
}

/// Shows the addresses of the parts, and what to try.
pub fn running(parts: &Parts, args: &Args) {
    let broker = match parts.kafka.is_real() {
        true => "a real Apache Kafka",
        false => "librdkafka's embedded broker; --kafka runs a real one",
    };
    println!("\nVerve is up. Ctrl-C ends it all.\n");
    println!("  Redis     {}", parts.redis.urls());
    for host in &parts.hosts {
        println!("  host      http://{}", host.addr());
    }
    println!(
        "  reporter  http://{} (/readyz, /metrics, /api/counts)",
        parts.reporter.address
    );
    println!("  Kafka     {} ({broker})\n", parts.kafka.brokers());
    if let Some(host) = parts.hosts.first() {
        println!("  try:   curl -i 'http://{}/api/verve/accept?id=42'", host.addr());
    }
    println!(
        "  look:  http://{}/ shows the ids as they are counted\n",
        parts.reporter.address
    );
    let seconds = args.window_seconds.seconds();
    println!("Records of the topic {TOPIC}, one for each window of {seconds} s, about 2 s after its end:\n");
}

/// Shows a record as received, and what the demo knows about its window.
pub fn record(record: &Record, sent: Option<&str>) {
    let header = |name| record.header(name);
    println!(
        "{}  {:>6} unique  revision {}  requests {}  duplicates {}{}",
        record.key,
        record.value,
        header("revision"),
        header("requests"),
        header("duplicates"),
        sent.map(|sent| format!("  | {sent}")).unwrap_or_default()
    );
}

/// Shows the reports of the last windows, with `verve-reporter counts`.
pub fn counts(parts: &Parts, args: &Args) -> anyhow::Result<()> {
    let mut command = verve_tests::reporter::command()?;
    command.args(["counts", "--limit", &args.windows.unwrap_or(10).to_string()]);
    let redis = &parts.redis;
    command.args(["--redis-urls", &redis.urls(), "--partitions", parts::partitions(redis)]);
    command.args(["--window-seconds", &args.window_seconds.to_string()]);
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "verve-reporter counts: {}", output.status);
    println!("\nverve-reporter counts:\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Shows a callback that reached the demo's sink.
pub fn callback(received: &Received) {
    let window = received.header("verve-window").unwrap_or_default();
    println!(
        "  callback: {} {} {} (window {window})",
        received.method, received.target, received.body
    );
}

/// Prints the lines of a part's log that `wanted` accepts.
pub fn lines_of(name: &'static str, wanted: impl Fn(&str) -> bool + Send + Sync + 'static) -> OnLine {
    Box::new(move |line| {
        if wanted(line) {
            // Not `println!`: it panics if nobody reads the output, and this thread must not panic.
            let _ = writeln!(std::io::stdout(), "  {name}: {line}");
        }
    })
}

/// Returns whether a log line is important for the user.
pub fn is_warning(line: &str) -> bool {
    let plain = |word: &str| word == "WARN" || word == "ERROR";
    line.split_whitespace().take(3).any(plain)
}
