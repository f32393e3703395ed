//! The paths of programs and components.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Returns the top folder of the workspace.
#[must_use]
pub fn repository() -> PathBuf {
    // Cargo sets this variable when it runs this program, directly or through xtask. The value from
    // compile time may be wrong: several clones may share a target folder, and thus this binary.
    let at_run_time = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let mut package = at_run_time.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.pop();
    package
}

/// Returns the folder that cargo builds into.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // A relative path is relative to where cargo runs. Tests run in another folder than the
        // user.
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}

/// Returns the folder of this program, and of the programs built with it.
fn programs() -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("this program's own path")?;
    folder.pop();
    // Test programs are one folder deeper.
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

/// Returns the path of a program of the workspace.
///
/// # Errors
/// Fails if it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    built(programs()?.join(name))
}

/// Returns the path of the manifest.
#[must_use]
pub fn manifest() -> PathBuf {
    repository().join("spin.toml")
}

/// Returns the path of the program `verve-host`.
///
/// # Errors
/// Fails if it is not built.
pub fn verve_host() -> Result<PathBuf> {
    program("verve-host")
}

/// Returns the path of the program `verve-reporter`.
///
/// # Errors
/// Fails if it is not built.
pub fn verve_reporter() -> Result<PathBuf> {
    program("verve-reporter")
}

/// Returns the path of the component, where `spin.toml` expects it.
///
/// # Errors
/// Fails if it is not built.
pub fn component() -> Result<PathBuf> {
    built(components().join("accept_component.wasm"))
}

/// Returns the path of the component built for WASI 0.2.
///
/// # Errors
/// Fails if it has not been built.
pub fn component_p2() -> Result<PathBuf> {
    built(components().join("accept_component_p2.wasm"))
}

/// Returns the programs of the Redis servers to test with.
///
/// The first is the one that all tests run on: `REDIS_SERVER`, or `redis-server` of the PATH. The
/// others are those in `VERVE_TESTS_REDIS_SERVERS`, which has the format of a PATH. `cargo xtask
/// test` makes sure that a Redis 8 and a Valkey 8 are among them.
///
/// # Errors
/// Fails if there is only the first one: a test for several servers proves nothing on one.
pub fn redis_servers() -> Result<Vec<PathBuf>> {
    let named = std::env::var_os("VERVE_TESTS_REDIS_SERVERS").unwrap_or_default();
    let others = std::env::split_paths(&named).filter(|path| path.is_file());
    let all: Vec<PathBuf> = std::iter::once(redis_server()).chain(others).collect();
    if all.len() == 1 {
        bail!("VERVE_TESTS_REDIS_SERVERS names no Redis server of another version: run this by `cargo xtask test`");
    }
    Ok(all)
}

/// Returns the Redis server that all tests run on.
#[must_use]
pub fn redis_server() -> PathBuf {
    let named = std::env::var_os("REDIS_SERVER").filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "redis-server".into()).into()
}

/// Returns the path of another component that `cargo xtask build components` built.
///
/// `name` is the name of its file.
///
/// # Errors
/// Fails if it has not been built.
pub fn other_component(name: &str) -> Result<PathBuf> {
    built(components().join(name))
}

/// Returns the folder of all components.
#[must_use]
pub fn components() -> PathBuf {
    repository().join("target/wasm32-wasip2/release")
}

/// Returns the library that makes a program resolve names to other addresses.
///
/// # Errors
/// Fails if it is not installed.
pub fn libnss_wrapper() -> Result<PathBuf> {
    library("libnss_wrapper.so", "libnss-wrapper")
}

/// Finds a library of a Debian package in one of the system's folders.
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
