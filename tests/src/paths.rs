//! Where the programs are.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The top folder of the workspace.
#[must_use]
pub fn repository() -> PathBuf {
    // As cargo says when it runs this, or xtask by cargo: several clones may share a target folder, and so this very file.
    let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let mut package = said.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.pop();
    package
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

/// The folder of this program, where those are that were built along with it.
fn programs() -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("this program's own path")?;
    folder.pop();
    // Tests are in a folder below.
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

/// A program of the workspace.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    built(programs()?.join(name))
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
    program("verve-host")
}

/// The program `verve-reporter`.
///
/// # Errors
/// When it is not built.
pub fn verve_reporter() -> Result<PathBuf> {
    program("verve-reporter")
}

/// The component, where `spin.toml` looks for it.
///
/// # Errors
/// When it is not built.
pub fn component() -> Result<PathBuf> {
    built(components().join("accept_component.wasm"))
}

/// The component built for WASI 0.2.
///
/// # Errors
/// When it has not been built.
pub fn component_p2() -> Result<PathBuf> {
    built(components().join("accept_component_p2.wasm"))
}

/// Redis servers by their programs: the one that all tests run on, `REDIS_SERVER` or the PATH's `redis-server`, and those that
/// `VERVE_TESTS_REDIS_SERVERS` names, as in a PATH. `cargo xtask test` sees to it that there are a Redis 8 and a Valkey 8 among them.
///
/// # Errors
/// When there is none besides the first: what is tested on several is worth nothing on one.
pub fn redis_servers() -> Result<Vec<PathBuf>> {
    let named = std::env::var_os("VERVE_TESTS_REDIS_SERVERS").unwrap_or_default();
    let others = std::env::split_paths(&named).filter(|path| path.is_file());
    let all: Vec<PathBuf> = std::iter::once(redis_server()).chain(others).collect();
    if all.len() == 1 {
        bail!("VERVE_TESTS_REDIS_SERVERS names no Redis server of another version: run this by `cargo xtask test`");
    }
    Ok(all)
}

/// The Redis server that all tests run on.
#[must_use]
pub fn redis_server() -> PathBuf {
    let named = std::env::var_os("REDIS_SERVER").filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "redis-server".into()).into()
}

/// Another component that `cargo xtask build components` has built, by the name of its file.
///
/// # Errors
/// When it has not been built.
pub fn other_component(name: &str) -> Result<PathBuf> {
    built(components().join(name))
}

/// The folder of all components.
#[must_use]
pub fn components() -> PathBuf {
    repository().join("target/wasm32-wasip2/release")
}

/// What makes a program believe in other addresses of names.
///
/// # Errors
/// When it is not installed.
pub fn libnss_wrapper() -> Result<PathBuf> {
    library("libnss_wrapper.so", "libnss-wrapper")
}

/// A library in one of the system's folders, of a package of Debian.
fn library(file: &str, package: &str) -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = folders
        .map(|folder| folder.path().join(file))
        .find(|file| file.is_file());
    found.with_context(|| format!("no {file}: run `cargo xtask test` first, or install Debian's package {package}"))
}

fn built(path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask build` first", path.display());
    }
    Ok(path)
}
