//! The environment: what is there and no setting, which somebody has meant to be one, and what is empty.

use std::ffi::OsString;

use clap::Command;
use clap::builder::Resettable;

use super::file::settable;

/// A variable of the environment: its name and its value.
pub type Variable = (OsString, OsString);

/// What the names of settings begin with.
const PREFIX: &str = "VERVE_";
/// What `verve-host` goes by, which may share an environment with the reporter.
const OF_THE_HOST: &str = "VERVE_LOG";
/// What is that alike may be meant, from 0 to 1: as clap judges it.
const ALIKE: f64 = 0.8;
/// Settings whose absence is not safe where somebody meant to give them: an empty one is refused where it is read.
const NEVER_EMPTY: [&str; 5] = [
    "redis-urls",
    "callback-secret",
    "callback-secret-file",
    "admin-token",
    "admin-token-file",
];

/// The command, for which what is empty in the environment is not there.
pub fn without_empty(command: Command, environment: &[Variable]) -> Command {
    let is_empty = |name: &std::ffi::OsStr| {
        environment
            .iter()
            .any(|(other, value)| other == name && value.is_empty())
    };
    command.mut_args(|arg| {
        let may_be_empty = !NEVER_EMPTY.contains(&arg.get_long().unwrap_or_default());
        match arg.get_env() {
            Some(name) if may_be_empty && is_empty(name) => arg.env(Resettable::Reset),
            _ => arg,
        }
    })
}

/// Says what looks like a setting and is none.
pub fn check(command: &Command, environment: &[Variable]) -> Result<(), String> {
    let names = environment.iter().filter_map(|(name, value)| {
        let (name, value) = (name.to_str()?, value.to_string_lossy());
        (name.starts_with(PREFIX) && name != OF_THE_HOST && !is_of_kubernetes(name, &value)).then_some(name)
    });
    let known: Vec<String> = settable(command)
        .filter_map(|arg| arg.get_long().map(name))
        .chain([format!("{PREFIX}CONFIG")])
        .collect();
    for name in names {
        if !known.iter().any(|other| other == name) {
            let meant = known.iter().map(|other| {
                (
                    strsim::jaro_winkler(&name[PREFIX.len()..], &other[PREFIX.len()..]),
                    other,
                )
            });
            let meant = meant
                .filter(|(alike, _)| *alike > ALIKE)
                .max_by(|(a, _), (b, _)| a.total_cmp(b));
            let meant = meant.map(|(_, other)| format!("; did you mean {other}?"));
            let meant = meant.unwrap_or_default();
            return Err(format!("{name} in the environment: no such setting{meant}"));
        }
    }
    Ok(())
}

/// The variable that stands for a flag, which is given without dashes.
pub fn name(flag: &str) -> String {
    format!("{PREFIX}{}", flag.replace('-', "_").to_uppercase())
}

/// Whether there is a variable that stands for a flag.
pub fn has(variables: &[Variable], flag: &str) -> bool {
    let wanted = name(flag);
    variables.iter().any(|(name, _)| *name == *wanted)
}

/// Whether it is what Kubernetes tells each container of a service in its namespace, such as one called `verve` or `verve-reporter`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_url = || {
        ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| value.starts_with(scheme))
    };
    let of_port = |rest: &str| {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        digits.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| digits.starts_with(protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url())
        || name.split("_PORT_").skip(1).any(of_port)
}
