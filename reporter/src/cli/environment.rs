//! Finds unknown variables that look like settings, and ignores empty ones.

use std::ffi::OsString;

use clap::Command;
use clap::builder::Resettable;

use super::file::settable;

/// A variable of the environment: its name and its value.
pub type Variable = (OsString, OsString);

/// The prefix of the names of settings.
const PREFIX: &str = "VERVE_";
/// A variable of `verve-host`, which may share an environment with the reporter.
const OF_THE_HOST: &str = "VERVE_LOG";
/// The similarity above which a name is suggested, from 0 to 1; as in clap.
const ALIKE: f64 = 0.8;
/// Settings that are unsafe to ignore when they are empty.
///
/// The code that reads them refuses an empty one.
const NEVER_EMPTY: [&str; 5] = [
    "redis-urls",
    "callback-secret",
    "callback-secret-file",
    "admin-token",
    "admin-token-file",
];

/// Returns the command, in which empty variables count as absent.
///
/// The exceptions are those in [`NEVER_EMPTY`].
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

/// Refuses a variable that looks like a setting but is not one.
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

/// Returns the variable of a flag, which is given without dashes.
pub fn name(flag: &str) -> String {
    format!("{PREFIX}{}", flag.replace('-', "_").to_uppercase())
}

/// Returns whether the variables contain the one of this flag.
pub fn has(variables: &[Variable], flag: &str) -> bool {
    let wanted = name(flag);
    variables.iter().any(|(name, _)| *name == *wanted)
}

/// Returns whether Kubernetes sets this variable in the containers of a namespace.
///
/// It sets such variables for each service there, for example one with the name `verve` or
/// `verve-reporter`.
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
