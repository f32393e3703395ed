//! A problem with a setting, and its flag.
//!
//! With the flag, a message can name the source of the value.

use std::ffi::OsString;
use std::fmt;

use clap::error::{ContextKind, ContextValue};

use super::environment::{self, Variable};

/// Why a command line is refused.
#[derive(Debug)]
pub enum Refused {
    /// An error of clap, or a request for help.
    Clap(clap::Error),
    /// A problem with a setting, or with several that do not fit together.
    Setting(Problem),
    /// Another problem.
    Other(String),
}

/// A problem with one or more settings.
#[derive(Debug)]
pub struct Problem {
    /// The flags of the settings, without dashes.
    flags: Vec<String>,
    text: String,
}

/// Returns a problem with one setting.
pub fn wrong(flag: &str, text: impl fmt::Display) -> Problem {
    wrong_together(&[flag], text)
}

/// Returns a problem with several settings.
pub fn wrong_together(flags: &[&str], text: impl fmt::Display) -> Problem {
    Problem {
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        text: text.to_string(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<String> = self.flags.iter().map(|flag| format!("--{flag}")).collect();
        write!(f, "{}: {}", flags.join(", "), self.text)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Setting(problem)
    }
}

impl From<String> for Refused {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // clap's message has several lines; those before the first empty one name the problem.
            Self::Clap(error) => {
                let text = error.to_string();
                let mut lines = text.lines().map(str::trim);
                let line = lines.by_ref().take_while(|line| !line.is_empty());
                let line = line.collect::<Vec<_>>().join(" ");
                f.write_str(line.strip_prefix("error: ").unwrap_or(&line))?;
                // A suggestion, if clap has one.
                match lines.find_map(|line| line.strip_prefix("tip: ")) {
                    Some(tip) => write!(f, " ({tip})"),
                    None => Ok(()),
                }
            }
            Self::Setting(problem) => problem.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl Refused {
    /// Returns the flags that the problem is about, without dashes.
    pub fn flags(&self) -> Vec<&str> {
        match self {
            Self::Clap(error) => {
                let shown: Vec<&str> = match error.get(ContextKind::InvalidArg) {
                    Some(ContextValue::String(shown)) => vec![shown],
                    Some(ContextValue::Strings(shown)) => shown.iter().map(String::as_str).collect(),
                    _ => Vec::new(),
                };
                // The form is `--listen <ADDRESS>`.
                let words = shown.into_iter().filter_map(|shown| shown.split_whitespace().next());
                words.filter_map(|word| word.strip_prefix("--")).collect()
            }
            Self::Setting(problem) => problem.flags.iter().map(String::as_str).collect(),
            Self::Other(_) => Vec::new(),
        }
    }

    /// Returns the message, and the variable if the value is from the environment.
    pub fn with_source(&self, args: impl IntoIterator<Item = OsString>, variables: &[Variable]) -> String {
        let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let is_given = |flag: &str| {
            let given = args.iter().filter_map(|arg| arg.strip_prefix("--"));
            given
                .map(|arg| arg.split_once('=').map_or(arg, |(name, _)| name))
                .any(|name| name == flag)
        };
        let flags = self.flags();
        let flag = flags
            .iter()
            .find(|flag| !is_given(flag) && environment::has(variables, flag));
        match flag {
            Some(flag) => format!("{self} (it is from {} in the environment)", environment::name(flag)),
            None => self.to_string(),
        }
    }
}
