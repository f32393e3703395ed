//! Where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The top folder of the workspace.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The folder that cargo builds into.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Relative to where cargo runs, which for tests is another folder than for the user.
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}

/// The manifest.
#[must_use]
pub fn manifest() -> PathBuf {
    repository().join("spin.toml")
}

/// The program `verve-host`.
///
/// # Errors
/// When it is not built.
pub fn verve_host() -> Result<PathBuf> {
    built(target().join("release/verve-host"))
}

/// The program `verve-reporter`.
///
/// # Errors
/// When it is not built.
pub fn verve_reporter() -> Result<PathBuf> {
    built(target().join("release/verve-reporter"))
}

/// The component, where `spin.toml` looks for it.
///
/// # Errors
/// When it is not built.
pub fn component() -> Result<PathBuf> {
    built(repository().join("target/wasm32-wasip2/release/accept_component.wasm"))
}

fn built(path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask build` first", path.display());
    }
    Ok(path)
}
