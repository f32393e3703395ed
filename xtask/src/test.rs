//! `cargo xtask test`: all checks, one step after the other, and a summary.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, WASM, cargo, cargo_for_wasm, cargo_wasm};
use crate::{build, failures, install, kafka, public, python, sys};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    only: Option<Only>,
    /// Run only tests whose name contains one of these, and no checks
    ///
    /// The checks are those of format, lints and documentation.
    filters: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Only {
    /// Formatting, lints, documentation, unit and property tests: no server is started
    Quick,
    /// The suites that run a second time, with each site on its own Redis Cluster
    OnCluster,
}

/// The time limit for the start of a broker whose jars are present.
const BROKER_PATIENCE: Duration = Duration::from_secs(90);
const BROKER_LOG: &str = "log";

pub fn run(args: &Args) -> Result<()> {
    // The path is read now: a step may rebuild this program, and the system then calls it deleted.
    let program = env::current_exe()?;
    if matches!(args.only, Some(Only::Quick)) {
        return quick();
    }
    let on_cluster_alone = args.only.is_some();
    let all = !on_cluster_alone && args.filters.is_empty();
    let mut steps = Steps::default();
    if all {
        checks(&mut steps);
    }
    let built = steps.run("build", || {
        install::ensure(&[
            install::REDIS,
            install::NGINX,
            install::NSS_WRAPPER,
            install::WRK,
            install::PROMTOOL,
            install::SYSTEMD,
        ])?;
        build::components()?;
        build::native_with_tests()
    });
    if all {
        steps.run("packages", packages);
    }
    let mut failed = Vec::new();
    if !on_cluster_alone {
        steps.run("unit tests", || tests(&QUICK, args, &mut failed));
    }
    if all {
        steps.run("doc tests", || tests(&["--doc"], args, &mut failed));
        steps.run("simulation", || {
            let simulate = |seed: &str, seeds: &str| {
                sys::run(Command::new(sys::binary(build::SIMULATION)).args(["--seed", seed, "--seeds", seeds]))
            };
            simulate("1", "300")?;
            // Other seeds for each commit, and the same ones for the same commit, for about a
            // minute.
            simulate(&seed_of_commit(), "700")
        });
    }
    // If one of these is missing, one test fails and reports it.
    steps.run("python", python::ingest);
    let mut servers = Vec::new();
    steps.run("redis servers", || {
        servers = python::servers()?;
        Ok(())
    });
    let mut webhooks = PathBuf::new();
    steps.run("signed callbacks", || {
        webhooks = python::with_webhooks()?;
        Ok(())
    });
    steps.run("browser", || install::ensure(&[install::BROWSER]));
    let mut broker = Broker::None;
    steps.run("kafka", || {
        broker = Broker::get(&program)?;
        Ok(())
    });
    if built {
        let parts = Parts {
            brokers: broker.address(),
            servers: env::join_paths(&servers)?,
            webhooks,
        };
        if !on_cluster_alone {
            steps.run("end-to-end tests", || end_to_end(args, &parts, &mut failed));
        }
        // A filter selects single tests, which run on their usual servers.
        if args.filters.is_empty() {
            steps.run("on a cluster", || on_cluster(&parts, &mut failed));
        }
    } else {
        steps.skip("end-to-end tests", "NOT RUN: the build failed");
    }
    for failure in &failed {
        println!("\n{failure}");
    }
    steps.summary();
    if !args.filters.is_empty() {
        println!(
            "\nOnly tests with {} in their name, no checks.",
            args.filters.join(" or ")
        );
    }
    println!("\nThe end-to-end tests had");
    println!("  Kafka:  {}", broker.described());
    println!("  hosts:  {}", hosts().join(" and "));
    println!("  Redis:  {}", redis());
    drop(broker);
    steps.result()
}

/// Runs the checks and tests that need no server.
fn quick() -> Result<()> {
    let mut steps = Steps::default();
    checks(&mut steps);
    // Includes the tests. Otherwise dependencies for which they need features are compiled twice.
    steps.run("build", build::native_with_tests);
    let mut failed = Vec::new();
    steps.run("unit tests", || failures::keep(&mut cargo_test(&QUICK), &mut failed));
    for failure in &failed {
        println!("\n{failure}");
    }
    steps.summary();
    steps.result()
}

/// Unit tests, property tests, and tests of documents and of shipped files.
const QUICK: [&str; 4] = ["--lib", "--bins", "--test", "quick"];

fn checks(steps: &mut Steps) {
    let tools = steps.run("tools", || {
        install::ensure(&install::NATIVE)?;
        cargo::have_lints()
    });
    if !tools {
        return;
    }
    let strict = ["--", "-D", "warnings"];
    steps.run("format", || sys::run(cargo("fmt").args(["--all", "--check"])));
    steps.run("clippy", || {
        sys::run(
            cargo("clippy")
                .args(["--release", "--workspace", "--all-targets"])
                .args(strict),
        )
    });
    steps.run("clippy, component", || {
        for package in [build::COMPONENT, build::COUNTER] {
            for features in [&[][..], &build::WASIP2] {
                sys::run(cargo_wasm("clippy", package)?.args(features).args(strict))?;
            }
        }
        for example in build::EXAMPLES {
            sys::run(cargo_wasm("clippy", example)?.args(strict))?;
        }
        Ok(())
    });
    steps.run("scripts", || {
        install::ensure(&[install::LUACHECK])?;
        let mut check = Command::new("luacheck");
        sys::run(check.current_dir(sys::root()).args(["--quiet", "protocol/scripts"]))
    });
    steps.run("public interface", public::check);
    dependencies(steps);
    steps.run("documentation", || {
        let mut doc = cargo("doc");
        doc.env("RUSTDOCFLAGS", "-D warnings");
        sys::run(doc.args(["--release", "--workspace", "--no-deps", "--document-private-items"]))
    });
}

/// The crates that others depend on, in the order of publication.
const PUBLISHED: [&str; 3] = ["verve-protocol", "verve-counter-core", "verve-counter"];

/// Returns a seed that follows from the tested commit.
///
/// Without a history of the sources it is always the same.
fn seed_of_commit() -> String {
    let commit = sys::git(&["rev-parse", "--short=12", "HEAD"]);
    let seed = commit.and_then(|commit| u64::from_str_radix(&commit, 16).ok());
    seed.unwrap_or(1 << 20).to_string()
}

/// Packages and compiles the published crates, and compiles the example.
///
/// The published crates are those that others depend on.
/// The crates are compiled as packaged, and published without the upload. There must be no warning.
fn packages() -> Result<()> {
    forget_packages()?;
    let mut publish = cargo_for_wasm("publish")?;
    publish.env("CARGO_PROFILE_DEV_DEBUG", "none");
    publish.args(["--dry-run", "--allow-dirty"]);
    publish.args(PUBLISHED.iter().flat_map(|package| ["--package", package]));
    let stderr = sys::stderr(&mut publish)?;
    let mut warnings = stderr.lines().filter(|line| line.starts_with("warning"));
    if let Some(warning) = warnings.find(|line| !line.contains("aborting upload due to dry run")) {
        bail!("cargo publish: {warning}");
    }
    // The example needs items that exist only for WebAssembly.
    let mut example = cargo_for_wasm("test")?;
    example.env("CARGO_PROFILE_DEV_DEBUG", "none").arg("--doc");
    sys::run(example.args(["--package", PUBLISHED[2]]))
}

/// Makes cargo use the packages as they are now.
///
/// Cargo takes the packages from a registry that it creates itself. It assumes that a package from
/// a registry changes only with its version.
fn forget_packages() -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let folders = |path: &Path| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let sources = home.iter().flat_map(|home| folders(&home.join("registry/src")));
    let compiled = sys::target().join(WASM).join("debug/.fingerprint");
    for folder in sources
        .chain([compiled])
        .flat_map(|folder| folders(&folder).collect::<Vec<_>>())
    {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if PUBLISHED.iter().any(|package| name.starts_with(&format!("{package}-"))) {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
    }
    Ok(())
}

/// Checks licences, sources and known advisories of dependencies with cargo-deny.
///
/// Compiling cargo-deny takes minutes, so it is not installed automatically.
fn dependencies(steps: &mut Steps) {
    let deny = |args: &[&str]| sys::run(cargo("deny").args(args));
    if !sys::succeeds("cargo", &["deny", "--version"]) {
        steps.leave_out("dependencies", "skipped: cargo-deny is not installed");
        return;
    }
    steps.run("dependencies", || deny(&["check", "licenses", "bans", "sources"]));
    // The database is a repository on GitHub, which not every machine can reach.
    if deny(&["fetch", "db"]).is_err() {
        steps.leave_out("advisories", "skipped: the advisory database cannot be reached");
        return;
    }
    steps.run("advisories", || deny(&["check", "--disable-fetch", "advisories"]));
}

/// Returns the command that runs the tests of these targets.
///
/// It selects the whole workspace each time, so that everything is compiled once.
fn cargo_test(targets: &[&str]) -> Command {
    let mut command = cargo("test");
    command
        .args(["--release", "--workspace", "--no-fail-fast"])
        .args(targets);
    command
}

/// Runs the tests of these targets, and adds those that fail to `failed`, in short.
fn tests(targets: &[&str], args: &Args, failed: &mut Vec<String>) -> Result<()> {
    let mut command = cargo_test(targets);
    command.arg("--").args(&args.filters);
    failures::keep(&mut command, failed)
}

/// The programs and servers for the end-to-end tests.
struct Parts<'a> {
    /// The address of a Kafka.
    brokers: Option<&'a str>,
    /// Redis servers besides the system's, in the format of a PATH.
    servers: OsString,
    /// A Python with the library for signed callbacks.
    webhooks: PathBuf,
}

impl Parts<'_> {
    fn for_tests(&self, command: &mut Command) {
        // More than the number of cores: most end-to-end tests wait for windows to end.
        command.env("RUST_TEST_THREADS", "5");
        command.env("VERVE_TESTS_REDIS_SERVERS", &self.servers);
        command.env("VERVE_TESTS_WEBHOOKS", &self.webhooks);
        command.envs(self.brokers.map(|brokers| ("KAFKA_BROKERS", brokers)));
    }
}

/// The themes that mostly wait.
///
/// They run beside the others, which use the processors.
const WAITING: [&str; 3] = ["library::", "reporter::", "security::"];

fn end_to_end(args: &Args, parts: &Parts<'_>, failed: &mut Vec<String>) -> Result<()> {
    let tests = || {
        let mut command = cargo_test(&["--test", "e2e", "--test", "part"]);
        parts.for_tests(&mut command);
        command
    };
    if !args.filters.is_empty() {
        return run_and_report_flaky(tests, &args.filters, failed);
    }
    let others = WAITING.iter().flat_map(|theme| ["--skip", theme]);
    let mut failed_waiting = Vec::new();
    let (waiting, others) = thread::scope(|scope| {
        let waiting = scope.spawn(|| run_and_report_flaky(tests, WAITING, &mut failed_waiting));
        let others = run_and_report_flaky(tests, others, failed);
        (waiting.join(), others)
    });
    failed.append(&mut failed_waiting);
    let Ok(waiting) = waiting else {
        bail!("the tests of {WAITING:?} were not run to their end");
    };
    waiting.and(others)
}

/// Runs the selected tests, and once more those that fail, by their names.
///
/// `filters` are arguments of the test harness.
fn run_and_report_flaky<S: AsRef<OsStr>>(
    tests: impl Fn() -> Command,
    filters: impl IntoIterator<Item = S>,
    failed: &mut Vec<String>,
) -> Result<()> {
    let again = |names: &[String]| {
        let mut command = tests();
        command.args(["--", "--exact"]).args(names);
        command
    };
    failures::report_flaky(tests().arg("--").args(filters), again, failed)
}

/// The suites that run on a Redis Cluster, with a separate cluster for each site.
///
/// They show what Verve does, and one shows what it does while Redis is unreachable.
const ON_CLUSTER: [&str; 10] = [
    "::callbacks::",
    "::counters::",
    "::counting::",
    "::http_contract::",
    "::kept_reports::",
    "::late::",
    "::longer_windows::",
    "::many_ids::",
    "::named_counters::",
    "::redis_away::",
];

fn on_cluster(parts: &Parts<'_>, failed: &mut Vec<String>) -> Result<()> {
    let tests = || {
        let mut command = cargo_test(&["--test", "e2e"]);
        parts.for_tests(&mut command);
        command.env("VERVE_TESTS_ON_CLUSTER", "1");
        command
    };
    run_and_report_flaky(tests, ON_CLUSTER, failed)
}

/// Runs the test of the live page, which saves its pictures in `docs`.
pub fn screenshots() -> Result<()> {
    install::ensure(&[install::REDIS, install::BROWSER])?;
    build::native(&[build::REPORTER])?;
    let mut command = cargo_test(&["--test", "e2e"]);
    command.args(["--", "a_browser_shows_it_live"]);
    sys::run(command.env("VERVE_TESTS_PICTURES", sys::root().join("docs")))
}

/// The Kafka that the tests use.
enum Broker {
    /// An external one, from `KAFKA_BROKERS`.
    External(String),
    /// A real one that this program starts, killed when this is dropped.
    Ours {
        address: String,
        process: Child,
        folder: PathBuf,
    },
    /// None: the tests use the embedded one. The reason is in the log.
    None,
}

impl Broker {
    /// Returns the Kafka for the tests. `program` is this program, which can run Kafka.
    fn get(program: &Path) -> Result<Self> {
        if let Some(brokers) = env::var("KAFKA_BROKERS").ok().filter(|brokers| !brokers.is_empty()) {
            return Ok(Self::External(brokers));
        }
        if let Err(error) = kafka::prepare() {
            sys::log(&format!("NO REAL KAFKA CAN BE HAD HERE: {error:#}"));
            return Ok(Self::None);
        }
        Self::start(program)
    }

    fn start(program: &Path) -> Result<Self> {
        let port = sys::free_port()?;
        let folder = env::temp_dir().join(format!("verve-test-kafka-{}", process::id()));
        let mut command = Command::new(program);
        command
            .args(["kafka", "--die-with-parent", "--port", &port.to_string(), "--dir"])
            .arg(&folder);
        // The broker logs much about clients that the tests let misbehave.
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join(BROKER_LOG))?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("cannot run xtask kafka")?;
        let address = format!("127.0.0.1:{port}");
        let mut broker = Self::Ours {
            address,
            process,
            folder,
        };
        broker.wait_ready()?;
        Ok(broker)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let Self::Ours {
            address,
            process,
            folder,
        } = self
        else {
            return Ok(());
        };
        let start = Instant::now();
        while start.elapsed() < BROKER_PATIENCE {
            // The broker opens its port as its last step.
            if TcpStream::connect(&*address).is_ok() {
                return Ok(());
            }
            if let Some(status) = process.try_wait()? {
                let log = fs::read_to_string(folder.join(BROKER_LOG)).unwrap_or_default();
                bail!("Kafka ended: {status}\n{log}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("Kafka did not come up within {BROKER_PATIENCE:?}");
    }

    fn address(&self) -> Option<&str> {
        match self {
            Self::External(address) | Self::Ours { address, .. } => Some(address),
            Self::None => None,
        }
    }

    fn described(&self) -> String {
        match self {
            Self::External(address) => format!("a real Kafka, {address} (KAFKA_BROKERS)"),
            Self::Ours { .. } => "a real Apache Kafka, started for the tests".to_owned(),
            Self::None => "THE EMBEDDED BROKER, NOT A REAL KAFKA".to_owned(),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Self::Ours { process, folder, .. } = self {
            let _ = process.kill();
            let _ = process.wait();
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The steps that were run so far.
#[derive(Default)]
struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: &'static str,
    outcome: &'static str,
    failed: bool,
    seconds: f64,
}

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        if let Err(error) = &result {
            sys::log(&format!("{error:#}"));
        }
        println!("=== {name}: {outcome}, {seconds:.1} s");
        self.done.push(Step {
            name,
            outcome,
            failed: result.is_err(),
            seconds,
        });
        result.is_ok()
    }

    /// Adds a step that could not run because an earlier one failed.
    ///
    /// It counts as failed.
    fn skip(&mut self, name: &'static str, outcome: &'static str) {
        self.push_undone(name, outcome, true);
    }

    /// Adds a step that needs something that this machine lacks.
    ///
    /// Verve does not contain it. The summary names it.
    fn leave_out(&mut self, name: &'static str, outcome: &'static str) {
        sys::log(&format!("{name}: {outcome}"));
        self.push_undone(name, outcome, false);
    }

    fn push_undone(&mut self, name: &'static str, outcome: &'static str, failed: bool) {
        self.done.push(Step {
            name,
            outcome,
            failed,
            seconds: 0.0,
        });
    }

    fn failed(&self) -> usize {
        self.done.iter().filter(|step| step.failed).count()
    }

    fn result(&self) -> Result<()> {
        match self.failed() {
            0 => Ok(()),
            failed => bail!("{failed} of the steps failed"),
        }
    }

    fn summary(&self) {
        println!("\n{:<20} {:>8}  outcome", "step", "seconds");
        for step in &self.done {
            println!("{:<20} {:>8.1}  {}", step.name, step.seconds, step.outcome);
        }
        let total: f64 = self.done.iter().map(|step| step.seconds).sum();
        println!("{:<20} {total:>8.1}", "all");
    }
}

/// Returns the Redis of the tests that do not test a version or kind of it.
fn redis() -> String {
    let named = env::var_os("REDIS_SERVER").filter(|name| !name.is_empty());
    let server = named.unwrap_or_else(|| "redis-server".into());
    sys::output(&server, &["--version"]).unwrap_or_else(|| format!("{} does not run", server.display()))
}

/// Returns the hosts that run the component in the tests.
fn hosts() -> Vec<String> {
    let named = env::var_os("SPIN_BIN")
        .filter(|name| !name.is_empty())
        .map(PathBuf::from);
    let spin = named.or_else(|| sys::which("spin"));
    let spin = spin.map(|spin| {
        let version = sys::output(&spin, &["--version"]).unwrap_or_else(|| "a spin that does not run".to_owned());
        format!("{version} ({})", spin.display())
    });
    let host = "verve-host".to_owned();
    match spin {
        Some(spin) => vec![host, spin],
        None => vec![format!("{host} (no spin: neither SPIN_BIN nor the PATH has one)")],
    }
}

#[cfg(test)]
mod tests {
    use super::Steps;
    use anyhow::bail;

    #[test]
    fn failed_and_unreached_steps_count_as_failed() {
        let mut steps = Steps::default();
        assert!(steps.run("fine", || Ok(())));
        assert!(!steps.run("wrong", || bail!("no")));
        steps.skip("not reached", "NOT RUN");
        assert_eq!(steps.failed(), 2);
        steps.leave_out("left out", "skipped: no such tool");
        assert_eq!(steps.failed(), 2);
    }
}
