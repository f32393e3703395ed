//! `cargo xtask fuzz`: searches with libFuzzer for texts that break their readers.
//!
//! `fuzz/src/lib.rs` states the conditions that must hold.

use std::fs;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::sys;

#[derive(clap::Args)]
pub struct Args {
    /// Duration for each of the targets, in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

pub fn run(args: &Args) -> Result<()> {
    if !sys::succeeds("cargo", &["fuzz", "--version"]) {
        sys::log("cargo install cargo-fuzz");
        sys::run(cargo("install").args(["cargo-fuzz", "--locked"]))?;
    }
    let corpus = sys::root().join("fuzz/corpus");
    // A folder for each target.
    for kept in fs::read_dir(&corpus).with_context(|| corpus.display().to_string())? {
        let target = kept?.file_name().into_string().unwrap_or_default();
        let found = sys::root().join("target/fuzz/corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
        sys::log(&format!("{target}, for {} s", args.seconds));
        let mut command = cargo("fuzz");
        // No sanitizer: there is no unsafe code to check, and without a sanitizer a stable compiler
        // is sufficient.
        command.args(["run", "-O", "any", "--sanitizer", "none", "--fuzz-dir"]);
        command.arg(sys::root().join("fuzz/libfuzzer"));
        command.arg("--target-dir").arg(sys::root().join("target/fuzz"));
        command.arg(found).arg(corpus.join(&target));
        command.args(["--", "-max_len=4096", &format!("-max_total_time={}", args.seconds)]);
        sys::run(command.env("RUSTC_BOOTSTRAP", "1").env("VERVE_FUZZ_TARGET", &target))
            .with_context(|| format!("{target}: fuzz/libfuzzer/artifacts has the input that fails; keep it in fuzz/corpus/{target} once the fault is fixed"))?;
    }
    Ok(())
}
