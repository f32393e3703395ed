//! `cargo xtask kafka`: a real Apache Kafka for tests.
//!
//! One node is broker and controller. The jars that `tests/kafka/pom.xml` names are fetched once,
//! into a cache outside the clone. The broker replaces this process, so that the caller sees its
//! signals, its output and its end.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{java, sys};

/// The id of the cluster.
///
/// It is fixed, so that formatting a folder with a cluster's data again changes nothing.
const CLUSTER_ID: &str = "dmVydmUtdGVzdC1rYWZrYQ";

#[derive(clap::Args)]
pub struct Args {
    /// Port of 127.0.0.1 that clients connect to
    #[arg(long, required_unless_present = "prepare")]
    port: Option<u16>,
    /// Port that the broker advertises to clients
    ///
    /// It is for tests in which something is between the clients and the broker.
    #[arg(long)]
    advertised_port: Option<u16>,
    #[command(flatten)]
    secure: Option<Secure>,
    /// Folder for the data, which outlive the broker
    ///
    /// Without this option they are in a new temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only install what is missing, then exit
    #[arg(long)]
    prepare: bool,
    /// Kill the broker when the process that started this one ends in any way (Linux)
    #[arg(long)]
    die_with_parent: bool,
}

/// A second listener, which requires TLS and a password.
///
/// Its protocol is `SASL_SSL`, with SCRAM-SHA-512.
#[derive(clap::Args)]
#[group(requires_all = ["secure_port", "secure_pem", "secure_user"])]
struct Secure {
    /// Port of 127.0.0.1 for clients with TLS and a password
    ///
    /// The broker advertises `localhost` to them.
    #[arg(long, required = false)]
    secure_port: u16,
    /// Certificate and key of this listener, in one PEM file
    #[arg(long, required = false)]
    secure_pem: PathBuf,
    /// User who may connect there: `name:password`
    ///
    /// The broker gets both at its first start.
    #[arg(long, required = false, value_parser = user)]
    secure_user: (String, String),
}

fn user(text: &str) -> Result<(String, String), &'static str> {
    let (name, password) = text.split_once(':').ok_or("expected name:password")?;
    Ok((name.to_owned(), password.to_owned()))
}

pub fn run(args: &Args) -> Result<()> {
    let jars = prepare()?;
    let Some(port) = args.port.filter(|_| !args.prepare) else {
        return Ok(());
    };
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("verve-kafka-{}", process::id())),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let config = dir.join("server.properties");
    let advertised = args.advertised_port.unwrap_or(port);
    let mut text = properties(port, advertised, sys::free_port()?, &dir);
    if let Some(secure) = &args.secure {
        text = with_secure_listener(&text, secure);
    }
    fs::write(&config, text)?;
    format(&jars, &config, args.secure.as_ref())?;
    sys::log(&format!("Kafka on 127.0.0.1:{port}, its data in {}", dir.display()));
    let mut command = launcher(args.die_with_parent);
    command
        .arg(java::java()?)
        // The broker lives for minutes, so a fast start is worth more than later speed.
        .args(["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command
        .args(java_args(&jars))
        .arg("kafka.Kafka")
        .arg(&config)
        .stdin(Stdio::null());
    Err(command.exec()).context("cannot run java")
}

/// Installs Java and Kafka if they are missing; returns the folder of Kafka's jars.
pub fn prepare() -> Result<PathBuf> {
    let pom = sys::root().join("tests/kafka/pom.xml");
    let text = fs::read_to_string(&pom)?;
    let version = version(&text).context("tests/kafka/pom.xml names no <kafka.version>")?;
    let folder = sys::cache()?.join(format!("kafka-{version}"));
    // The folder gets its name only when it is complete.
    if folder.is_dir() {
        java::java()?;
        return Ok(folder);
    }
    let mut maven = java::maven()?;
    sys::log(&format!("fetching Apache Kafka {version} (40 MB) by Maven"));
    let partial = folder.with_file_name(format!("kafka-{version}.partial-{}", process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    maven
        .args(["--batch-mode", "--quiet", "-Dstyle.color=never", "--file"])
        .arg(&pom)
        .arg("dependency:copy-dependencies");
    let fetched = sys::run(maven.arg(define("outputDirectory", &partial)).stdin(Stdio::null()));
    if fetched.is_ok() && fs::rename(&partial, &folder).is_err() && !folder.is_dir() {
        bail!("cannot move {} to {}", partial.display(), folder.display());
    }
    // Something is left after a failure, or if another process was faster.
    let _ = fs::remove_dir_all(&partial);
    fetched.context("Kafka cannot be fetched; KAFKA_BROKERS can name a running broker instead")?;
    Ok(folder)
}

/// Returns the command that runs the program in its first argument.
fn launcher(die_with_parent: bool) -> Command {
    let setpriv = sys::which("setpriv").filter(|_| die_with_parent);
    let mut command = Command::new(setpriv.as_deref().unwrap_or(Path::new("env")));
    command.args(setpriv.map(|_| ["--pdeathsig", "KILL"]).iter().flatten());
    command
}

fn format(jars: &Path, config: &Path, secure: Option<&Secure>) -> Result<()> {
    let mut command = Command::new(java::java()?);
    command
        .arg("-Xmx128m")
        .args(java_args(jars))
        .arg("kafka.tools.StorageTool");
    command
        .args(["format", "--ignore-formatted", "--cluster-id", CLUSTER_ID, "--config"])
        .arg(config);
    if let Some(Secure {
        secure_user: (name, password),
        ..
    }) = secure
    {
        let user = format!("SCRAM-SHA-512=[name={name},password={password}]");
        command.args(["--add-scram", &user]);
    }
    let output = command.stdin(Stdio::null()).output().context("cannot run java")?;
    if !output.status.success() {
        bail!(
            "Kafka cannot format its folder: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn java_args(jars: &Path) -> [OsString; 4] {
    [
        "-cp".into(),
        jars.join("*").into(),
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".into(),
        // Starts faster; a test's broker does not live long enough to profit from better code.
        "-XX:TieredStopAtLevel=1".into(),
    ]
}

fn define(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("-D{name}="));
    argument.push(path);
    argument
}

/// Returns the settings of one node, with one copy of everything and no waiting.
fn properties(port: u16, advertised: u16, controller: u16, dir: &Path) -> String {
    let data = dir.join("data");
    format!(
        "\
# Written by `cargo xtask kafka` at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=1
auto.create.topics.enable=true
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker started again after a crash must wait until its former life is forgotten.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
",
        data = data.display()
    )
}

fn with_secure_listener(properties: &str, secure: &Secure) -> String {
    let port = secure.secure_port;
    let lines = properties.lines().map(|line| match line.split_once('=') {
        Some(("listeners", _)) => format!("{line},SASL_SSL://127.0.0.1:{port}\n"),
        Some(("advertised.listeners", _)) => format!("{line},SASL_SSL://localhost:{port}\n"),
        _ => format!("{line}\n"),
    });
    let lines: String = lines.collect();
    format!(
        "\
{lines}listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={}
",
        secure.secure_pem.display()
    )
}

fn version(pom: &str) -> Option<&str> {
    let (_, rest) = pom.split_once("<kafka.version>")?;
    Some(rest.split_once("</kafka.version>")?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::{properties, version};
    use std::path::Path;

    #[test]
    fn the_version_is_read_from_the_pom() {
        let pom = include_str!("../../tests/kafka/pom.xml");
        assert!(version(pom).is_some_and(|version| version.starts_with("4.")));
        assert_eq!(version("<project/>"), None);
    }

    #[test]
    fn only_loopback_is_listened_on() {
        let text = properties(9092, 9094, 9093, Path::new("/tmp/kafka"));
        let listeners = text
            .lines()
            .find(|line| line.starts_with("listeners="))
            .unwrap_or_default();
        assert_eq!(
            listeners,
            "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
        );
        assert!(text.contains("\nadvertised.listeners=PLAINTEXT://127.0.0.1:9094\n"));
        assert!(text.contains("log.dirs=/tmp/kafka/data\n"));
    }
}
