//! `verve-reporter config check`: shows the settings in force and their sources.
//!
//! Secrets are hidden. The output is a configuration file again, which can be kept.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use verve_protocol::{Endpoint, RedisUrls};

use super::file::{Settings, settable};

/// The replacement for a secret.
const HIDDEN: &str = "***";

/// The endings of librdkafka settings whose values are not secret.
const HARMLESS: [&str; 5] = [".protocol", ".mechanism", ".mechanisms", ".location", ".ms"];

/// Returns every setting in a line: its value and its source.
///
/// `given` has the values that do not come from the file.
pub fn text(command: &Command, matches: &ArgMatches, given: &ArgMatches, file: &Settings) -> String {
    let lines = settable(command).map(|arg| line(arg, matches, given, file));
    lines.collect()
}

fn line(arg: &Arg, matches: &ArgMatches, given: &ArgMatches, file: &Settings) -> String {
    let (id, name) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
    let source = match given.value_source(id) {
        Some(ValueSource::EnvVariable) => format!("environment, {}", arg.get_env().unwrap_or_default().display()),
        Some(ValueSource::CommandLine) => "command line".to_owned(),
        _ if file.has(name) => "file".to_owned(),
        _ => "default".to_owned(),
    };
    let values: Vec<String> = matches
        .get_raw(id)
        .into_iter()
        .flatten()
        .map(|value| shown(arg, &value.to_string_lossy()))
        .collect();
    let value = match (arg.get_action(), values.as_slice()) {
        (ArgAction::Append, []) => "[]".to_owned(),
        (ArgAction::Append, values) => format!("[{}]", values.join(", ")),
        (_, [value]) => value.clone(),
        _ => return format!("# {name} is not set\n"),
    };
    format!("{name} = {value} # {source}\n")
}

/// Returns a value in TOML, or the part of a secret that may be shown.
fn shown(arg: &Arg, value: &str) -> String {
    let value = match arg.get_long() {
        Some("redis-urls") => match value.parse::<RedisUrls>() {
            Ok(urls) => urls.shown(),
            Err(_) => HIDDEN.to_owned(),
        },
        Some("callback-url") => match value.parse::<Endpoint>() {
            Ok(endpoint) => format!("{}/{HIDDEN}", &endpoint.to_url()[..url::Position::BeforePath]),
            Err(_) => HIDDEN.to_owned(),
        },
        Some("kafka-option") => match value.split_once('=') {
            Some((key, value)) if HARMLESS.iter().any(|end| key.trim().ends_with(end)) => format!("{key}={value}"),
            Some((key, _)) => format!("{key}={HIDDEN}"),
            None => HIDDEN.to_owned(),
        },
        _ if arg.is_hide_env_values_set() => HIDDEN.to_owned(),
        _ => value.to_owned(),
    };
    if value == "true" || value == "false" || value.parse::<i64>().is_ok() {
        value
    } else {
        toml::Value::String(value).to_string()
    }
}
