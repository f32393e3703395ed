//! What is in `deploy/`, as tests read it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::paths;

/// A file of the repository.
///
/// # Errors
/// When it is not there.
pub fn text(path: &str) -> Result<String> {
    fs::read_to_string(paths::repository().join(path)).with_context(|| path.to_owned())
}

/// The documents of a YAML file.
///
/// # Errors
/// When it is not there, or no YAML.
pub fn yaml(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

/// The services of the compose file.
///
/// # Errors
/// When it is not as it ought to be.
pub fn compose() -> Result<BTreeMap<String, Value>> {
    let path = paths::repository().join("deploy/compose.yaml");
    let file = yaml(&path)?.into_iter().next().context("a document")?;
    Ok(serde_json::from_value(file["services"].clone())?)
}

/// The instruction's arguments, each time it is in a Containerfile; lines that go on are joined.
///
/// # Errors
/// When there is none.
pub fn instructions(program: &str, name: &str) -> Result<Vec<String>> {
    let file = text(&format!("deploy/Containerfile.{program}"))?.replace("\\\n", " ");
    let prefix = format!("{name} ");
    let arguments = file.lines().filter_map(|line| line.strip_prefix(&prefix));
    Ok(arguments.map(|rest| rest.trim().to_owned()).collect())
}

/// The arguments of an instruction that is there once.
///
/// # Errors
/// When it is not, or more than once.
pub fn the_instruction(program: &str, name: &str) -> Result<String> {
    let mut all = instructions(program, name)?;
    ensure!(all.len() == 1, "Containerfile.{program}: {name} {all:?}");
    all.pop().context("one")
}

/// The texts of an array.
#[must_use]
pub fn strings(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}
