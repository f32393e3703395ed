//! Cargo itself, for the machine and for WebAssembly.
//!
//! `rust-toolchain.toml` names the parts that rustup installs. If one is still missing, rustup is
//! asked for it here.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sys;

/// The component's target.
pub const WASM: &str = "wasm32-wasip2";

/// The variable with the version that the programs print for `--version`.
///
/// It is set by builds without a repository, such as that of an image.
const VERSION: &str = "VERVE_VERSION";

/// Returns `cargo <subcommand>` in the workspace, for this machine.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(sys::root()).arg(subcommand);
    match version() {
        Some(version) => command.env(VERSION, version),
        None => command.env_remove(VERSION),
    };
    command
}

/// Returns the target of this machine.
pub fn host() -> Result<String> {
    let info = sys::output("rustc", &["-vV"]).context("no rustc")?;
    let host = info.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not print its host")?.to_owned())
}

/// Returns `cargo <subcommand>` for a component.
///
/// It compiles for WebAssembly, optimizes the component as a whole, and makes it as small as that
/// allows.
pub fn cargo_wasm(subcommand: &str, package: &str) -> Result<Command> {
    let mut command = cargo_for_wasm(subcommand)?;
    let profile = [
        ("OPT_LEVEL", "3"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("PANIC", "abort"),
        ("STRIP", "symbols"),
        ("DEBUG", "none"),
    ];
    command.envs(profile.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    command.args(["--release", "--package", package]);
    Ok(command)
}

/// Returns `cargo <subcommand>` for WebAssembly, not optimized.
pub fn cargo_for_wasm(subcommand: &str) -> Result<Command> {
    have_target()?;
    let mut command = cargo(subcommand);
    // These are meant for native programs, and would replace the settings of this target.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    // The user's target folder does not apply: `spin.toml` names the component relative to itself.
    command.env("CARGO_TARGET_DIR", sys::root().join("target"));
    command.args(["--target", WASM]);
    Ok(command)
}

/// Returns the version and the commit, with a `+` if there are uncommitted changes.
fn version() -> Option<String> {
    if let Some(given) = env::var(VERSION).ok().filter(|given| !given.is_empty()) {
        return Some(given);
    }
    let commit = sys::git(&["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"])?;
    Some(format!("{} ({commit})", env!("CARGO_PKG_VERSION")))
}

/// Installs the standard library for WebAssembly if it is missing.
fn have_target() -> Result<()> {
    let sysroot = sys::output("rustc", &["--print", "sysroot"]).context("no rustc")?;
    let library = PathBuf::from(sysroot).join("lib/rustlib").join(WASM).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    by_rustup(&["target", "add", WASM])
}

/// Installs rustfmt and clippy if they are missing.
pub fn have_lints() -> Result<()> {
    let mut tools = ["fmt", "clippy"].into_iter();
    if tools.all(|tool| sys::succeeds("cargo", &[tool, "--version"])) {
        return Ok(());
    }
    by_rustup(&["component", "add", "rustfmt", "clippy"])
}

fn by_rustup(args: &[&str]) -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.args(args);
    sys::log(&sys::shown(&rustup));
    sys::run(&mut rustup).context("Rust lacks what rust-toolchain.toml names")
}
