//! A Java that is new enough for Kafka, and Maven.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{install, sys};

/// The oldest Java that Kafka 4's broker runs on.
const OLDEST: u32 = 17;

/// The packages with Java, of which the first available one is installed.
///
/// Releases of Debian and Ubuntu have different ones.
const PACKAGES: [&str; 3] = [
    "openjdk-17-jre-headless",
    "openjdk-21-jre-headless",
    "default-jre-headless",
];

/// Returns a `java` of version 17 or newer, and installs one if there is none.
pub fn java() -> Result<PathBuf> {
    if let Some(java) = find_java() {
        return Ok(java);
    }
    install_java().with_context(|| format!("please install a Java of version {OLDEST} or newer"))?;
    find_java().with_context(|| format!("please install a Java of version {OLDEST} or newer and put it on the PATH"))
}

/// Returns Maven with a Java that it can run on, and installs it if it is missing.
pub fn maven() -> Result<Command> {
    let java = java()?;
    install::ensure(&[install::Need {
        what: "Maven (mvn)",
        packages: &["maven"],
        present: || sys::which("mvn").is_some(),
    }])?;
    let mut command = Command::new("mvn");
    // Maven looks for `$JAVA_HOME/bin/java`; the program on the PATH may be a link to another
    // folder.
    let home = java
        .canonicalize()
        .ok()
        .and_then(|java| Some(java.parent()?.parent()?.to_owned()));
    command.envs(home.map(|home| ("JAVA_HOME", home)));
    Ok(command)
}

fn install_java() -> Result<()> {
    let known = || PACKAGES.into_iter().find(|package| install::apt_knows(package));
    // A machine that was never updated knows no package yet. Then the oldest one is requested by
    // name, and the list is fetched.
    install::apt_install(&[known().unwrap_or(PACKAGES[0])]).or_else(|error| match known() {
        Some(package) => install::apt_install(&[package]),
        None => Err(error),
    })
}

fn find_java() -> Option<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let installed = std::fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let installed = installed.map(|entry| entry.path().join("bin/java"));
    let mut candidates = home.into_iter().chain(sys::which("java")).chain(installed);
    candidates.find(|java| version(java).is_ok_and(|version| version >= OLDEST))
}

fn version(java: &PathBuf) -> Result<u32> {
    let text = sys::output(java, &["-version"]).context("no answer")?;
    match parse_version(&text) {
        Some(version) => Ok(version),
        None => bail!("no version in {text:?}"),
    }
}

/// Parses the major version in the output of `java -version`.
///
/// The output is like `openjdk version "17.0.15" 2025-04-15`.
fn parse_version(text: &str) -> Option<u32> {
    let quoted = text.split('"').nth(1)?;
    let digits = quoted.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime"),
            Some(17)
        );
        assert_eq!(parse_version("openjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(parse_version("openjdk version \"25-ea\" 2025-09-16"), Some(25));
        // Java 8 reports version 1.8; it is too old in any case.
        assert_eq!(parse_version("java version \"1.8.0_392\""), Some(1));
        assert_eq!(parse_version("command not found"), None);
    }
}
