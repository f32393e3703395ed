//! `cargo xtask bench`: builds everything in release, then runs `verve-bench`.
//!
//! The peers are built too. `verve-bench` makes the measurements.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, install, kafka, sys};

/// The load generator for fixed rates, and its version.
const OHA: [&str; 2] = ["oha", "1.16.0"];

#[derive(clap::Args)]
pub struct Args {
    /// Options of `verve-bench`, as in `verve-bench --help`
    ///
    /// They are --quick, --rounds, --seconds and --only.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    install::ensure(&[install::REDIS, install::WRK])?;
    build::component_with_p2()?;
    build::hello()?;
    build::native(&[build::HOST, build::REPORTER, "axum-peer", "verve-bench"])?;
    go_peer()?;
    let mut bench = Command::new(sys::binary("verve-bench"));
    if !args.arguments.iter().any(|argument| argument == "--quick") {
        bench.arg("--oha").arg(oha()?);
        kafka::prepare()?;
    }
    bench.args(&args.arguments);
    // Replaces this process, so that Ctrl-C and the exit code are those of the program.
    Err(bench.exec()).context("cannot run verve-bench")
}

/// Builds the peer in Go, which has the usual design, where the bench expects it.
fn go_peer() -> Result<()> {
    if sys::which("go").is_none() {
        bail!("please install Go (https://go.dev): one of the peers is written in it");
    }
    sys::log("building the peer in Go");
    let mut go = Command::new("go");
    go.current_dir(sys::root().join("bench/go-peer")).args(["build", "-o"]);
    sys::run(go.arg(sys::target().join("bench/go-peer")).arg("."))
}

/// Returns the load generator, which is compiled once, into the cache.
fn oha() -> Result<PathBuf> {
    let [name, version] = OHA;
    let root = sys::cache()?.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        let mut cargo = Command::new("cargo");
        cargo.args([
            "install",
            "--locked",
            "--no-default-features",
            "--features",
            "native-tls",
            "--version",
            version,
        ]);
        sys::run(cargo.arg("--root").arg(&root).arg(name))?;
    }
    Ok(program)
}
