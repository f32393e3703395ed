//! `--config`: settings from a TOML file.
//!
//! The settings become the flags that they are named after, so that each value is parsed in only
//! one way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::is_given;

/// The settings of a file, by the names of the flags without dashes.
#[derive(Debug, Default)]
pub struct Settings(BTreeMap<String, Vec<String>>);

impl Settings {
    /// Reads a file, and refuses settings that are not flags of `command`.
    ///
    /// The values are checked later, like those of flags.
    ///
    /// # Errors
    /// The problem and its position. It never contains a value, which may be a secret.
    pub fn read(path: &Path, command: &Command) -> Result<Self, String> {
        let at = |problem: String| format!("{}: {problem}", path.display());
        let text = fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(&text));
            let line = before.matches('\n').count() + 1;
            at(format!("line {line}: {}", error.message()))
        })?;
        let mut settings = BTreeMap::new();
        for (name, value) in table {
            let arg = (settable(command).find(|arg| arg.get_long() == Some(&name))).ok_or_else(|| {
                at(format!(
                    "{name}: no such setting; they are named as the flags in --help are"
                ))
            })?;
            let values = values(arg, value).ok_or_else(|| at(format!("{name}: expected {}", expected(arg))))?;
            settings.insert(name, values);
        }
        Ok(Self(settings))
    }

    /// Returns the flags that neither the command line nor the environment gives.
    pub fn flags(&self, given: &ArgMatches, command: &Command) -> Vec<OsString> {
        let mut flags = Vec::new();
        for arg in settable(command).filter(|arg| !is_given(given, arg.get_long().unwrap_or_default())) {
            let name = arg.get_long().unwrap_or_default();
            let values = self.0.get(name).into_iter().flatten();
            if is_switch(arg) {
                let on = values.filter(|value| *value == "true");
                flags.extend(on.map(|_| format!("--{name}").into()));
            } else {
                flags.extend(values.map(|value| format!("--{name}={value}").into()));
            }
        }
        flags
    }

    /// Returns whether the file has this setting.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Returns the settings: flags under a heading of the help, except `--config`.
pub fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    let all = command.get_arguments();
    all.filter(|arg| arg.get_help_heading().is_some() && arg.get_long() != Some("config"))
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_repeatable(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn expected(arg: &Arg) -> &'static str {
    if is_switch(arg) {
        "true or false"
    } else if is_repeatable(arg) {
        "a list of texts in quotes"
    } else {
        "a text in quotes, a whole number, true or false"
    }
}

/// Returns the value as flags have it, or `None` if its type is wrong.
fn values(arg: &Arg, value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Boolean(value) if !is_repeatable(arg) => Some(vec![value.to_string()]),
        _ if is_switch(arg) => None,
        toml::Value::Array(values) if is_repeatable(arg) => {
            let values = values.into_iter().map(|value| value.as_str().map(str::to_owned));
            values.collect()
        }
        _ if is_repeatable(arg) => None,
        toml::Value::String(value) => Some(vec![value]),
        toml::Value::Integer(value) => Some(vec![value.to_string()]),
        _ => None,
    }
}
