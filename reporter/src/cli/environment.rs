//! The environment: what is there and no setting, which somebody has meant to be one, and what is empty.

use std::ffi::OsString;

use clap::Command;
use clap::builder::Resettable;

use super::file::{is_word, settable};

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
pub fn without_empty(command: Command, environment: &[(OsString, OsString)]) -> Command {
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
pub fn check(command: &Command, environment: &[(OsString, OsString)]) -> Result<(), String> {
    let names = environment.iter().filter_map(|(name, value)| {
        let (name, value) = (name.to_str()?, value.to_string_lossy());
        (name.starts_with(PREFIX) && name != OF_THE_HOST && !is_of_kubernetes(name, &value)).then_some(name)
    });
    let known: Vec<String> = settable(command)
        .filter_map(|arg| Some(format!("{PREFIX}{}", arg.get_long()?.replace('-', "_").to_uppercase())))
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

/// What was wrong, with the variable that it is about named, if the value came from there.
pub fn with_source(
    refused: &str,
    args: impl IntoIterator<Item = OsString>,
    environment: &[(OsString, OsString)],
) -> String {
    let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let is_of = |(name, _): &&(OsString, OsString)| {
        let name = name.to_string_lossy();
        let Some(setting) = name.strip_prefix(PREFIX) else {
            return false;
        };
        let flag = format!("--{}", setting.to_lowercase().replace('_', "-"));
        let names = |text: &str| is_word(text, &flag);
        refused.match_indices(&flag).any(|(at, _)| names(&refused[at..])) && !args.iter().any(|arg| names(arg))
    };
    match environment.iter().find(is_of) {
        Some((name, _)) => format!("{refused} (it is from {} in the environment)", name.to_string_lossy()),
        None => refused.to_owned(),
    }
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
