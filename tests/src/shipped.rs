//! Reads the files in `deploy/` for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::paths;

/// Reads a file of the repository.
///
/// # Errors
/// Fails if the file does not exist.
pub fn text(path: &str) -> Result<String> {
    fs::read_to_string(paths::repository().join(path)).with_context(|| path.to_owned())
}

/// Returns the documents of a YAML file.
///
/// # Errors
/// Fails if the file does not exist or is not YAML.
pub fn yaml(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

/// Returns the services of the compose file.
///
/// # Errors
/// Fails if the file does not have the expected structure.
pub fn compose() -> Result<BTreeMap<String, Value>> {
    let path = paths::repository().join("deploy/compose.yaml");
    let file = yaml(&path)?.into_iter().next().context("a document")?;
    Ok(serde_json::from_value(file["services"].clone())?)
}

/// Returns the arguments of each instruction `name` in a Containerfile.
///
/// Continued lines are joined.
///
/// # Errors
/// Fails if there is no such Containerfile.
pub fn instructions(program: &str, name: &str) -> Result<Vec<String>> {
    let file = text(&format!("deploy/Containerfile.{program}"))?.replace("\\\n", " ");
    let prefix = format!("{name} ");
    let arguments = file.lines().filter_map(|line| line.strip_prefix(&prefix));
    Ok(arguments.map(|rest| rest.trim().to_owned()).collect())
}

/// Returns the arguments of an instruction that occurs once.
///
/// # Errors
/// Fails if it does not occur, or occurs more than once.
pub fn the_instruction(program: &str, name: &str) -> Result<String> {
    let mut all = instructions(program, name)?;
    ensure!(all.len() == 1, "Containerfile.{program}: {name} {all:?}");
    all.pop().context("one")
}

/// Returns the strings of an array.
#[must_use]
pub fn strings(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}
