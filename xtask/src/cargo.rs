//! Cargo itself, for the machine and for WebAssembly.
//!
//! `rust-toolchain.toml` names what rustup installs; what is missing nevertheless is asked of it here.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sys;

/// The component's target.
pub const WASM: &str = "wasm32-wasip2";

/// What the programs tell for `--version`: set by whoever builds without a repository, such as for an image.
const VERSION: &str = "VERVE_VERSION";

/// `cargo <subcommand>` in the workspace, for this machine.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(sys::root()).arg(subcommand);
    match version() {
        Some(version) => command.env(VERSION, version),
        None => command.env_remove(VERSION),
    };
    command
}

/// The target of this machine.
pub fn host() -> Result<String> {
    let told = sys::output("rustc", &["-vV"]).context("no rustc")?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

/// `cargo <subcommand>` for a component: for WebAssembly, optimized as a whole, and as small as that comes.
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

/// `cargo <subcommand>` for WebAssembly, not optimized.
pub fn cargo_for_wasm(subcommand: &str) -> Result<Command> {
    have_target()?;
    let mut command = cargo(subcommand);
    // Meant for native programs, and they would take the place of what is set for this target.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    // Not where the user may want it: `spin.toml` names the component relative to itself.
    command.env("CARGO_TARGET_DIR", sys::root().join("target"));
    command.args(["--target", WASM]);
    Ok(command)
}

/// The version, and the commit; a `+` behind it for what is not committed.
fn version() -> Option<String> {
    if let Some(given) = env::var(VERSION).ok().filter(|given| !given.is_empty()) {
        return Some(given);
    }
    let commit = sys::git(&["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"])?;
    Some(format!("{} ({commit})", env!("CARGO_PKG_VERSION")))
}

/// Sees to it that there is a standard library for WebAssembly.
fn have_target() -> Result<()> {
    let sysroot = sys::output("rustc", &["--print", "sysroot"]).context("no rustc")?;
    let library = PathBuf::from(sysroot).join("lib/rustlib").join(WASM).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    by_rustup(&["target", "add", WASM])
}

/// Sees to it that there are rustfmt and clippy.
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
    sys::say(&sys::shown(&rustup));
    sys::run(&mut rustup).context("Rust lacks what rust-toolchain.toml names")
}
