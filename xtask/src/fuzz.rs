//! `cargo xtask fuzz`: looks, by libFuzzer, for texts that break what reads them. `fuzz/src/lib.rs` says what must hold.

use std::fs;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::sys;

#[derive(clap::Args)]
pub struct Args {
    /// How long each of the targets is tried.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

pub fn run(args: &Args) -> Result<()> {
    if !sys::succeeds("cargo", &["fuzz", "--version"]) {
        sys::say("cargo install cargo-fuzz");
        sys::run(cargo("install").args(["cargo-fuzz", "--locked"]))?;
    }
    let corpus = sys::root().join("fuzz/corpus");
    // A folder for each target.
    for kept in fs::read_dir(&corpus).with_context(|| corpus.display().to_string())? {
        let target = kept?.file_name().into_string().unwrap_or_default();
        let found = sys::root().join("target/fuzz/corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
        sys::say(&format!("{target}, for {} s", args.seconds));
        let mut command = cargo("fuzz");
        // No sanitizer: there is no unsafe code to watch, and without one the compiler need not be a nightly one.
        command.args(["run", "-O", "any", "--sanitizer", "none", "--fuzz-dir"]);
        command.arg(sys::root().join("fuzz/libfuzzer"));
        command.arg("--target-dir").arg(sys::root().join("target/fuzz"));
        command.arg(found).arg(corpus.join(&target));
        command.args(["--", "-max_len=4096", &format!("-max_total_time={}", args.seconds)]);
        sys::run(command.env("RUSTC_BOOTSTRAP", "1").env("VERVE_FUZZ_TARGET", &target))
            .with_context(|| format!("{target}: fuzz/libfuzzer/artifacts has what broke it; keep it in fuzz/corpus/{target} once it is mended"))?;
    }
    Ok(())
}
