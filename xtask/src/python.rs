//! The example in Python, made a component by `componentize-py`, which is kept between builds in an environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::cargo::WASM;
use crate::{install, sys};

/// From PyPI.
const COMPONENTIZE: &str = "componentize-py==0.25.1";

/// Builds the example, unless it is there and nothing of it has changed since.
pub fn ingest() -> Result<()> {
    let example = sys::root().join("examples/ingest");
    let built = sys::root().join("target").join(WASM).join("release/ingest_app.wasm");
    let sources = ["app.py", "wit/ingest.wit", "wit/deps/unique/unique.wit"];
    let changed: Vec<SystemTime> = sources
        .iter()
        .filter_map(|source| modified(&example.join(source)))
        .collect();
    if modified(&built).is_some_and(|built| changed.iter().all(|changed| *changed < built)) {
        return Ok(());
    }
    let program = componentize()?;
    sys::say("building examples/ingest (by componentize-py)");
    if let Some(folder) = built.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(program);
    command.args(["-d", "wit", "-w", "ingest", "componentize", "app", "-o"]);
    sys::run(command.arg(&built).current_dir(example))?;
    sys::say(&built.display().to_string());
    Ok(())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// The program, installed the first time.
fn componentize() -> Result<PathBuf> {
    let environment = sys::cache()?.join(COMPONENTIZE.replace("==", "-"));
    let program = environment.join("bin/componentize-py");
    if !program.is_file() {
        install::ensure(&[install::PYTHON])?;
        sys::say(&format!("installing {COMPONENTIZE}"));
        sys::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        sys::run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", COMPONENTIZE]))?;
    }
    Ok(program)
}
