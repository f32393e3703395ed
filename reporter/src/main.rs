//! `verve-reporter`: see the library of the same name.
//!
//! It is compiled separately, so that a program with another version only has to be linked again.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The build sets this to name its commit.
    verve_reporter::main(option_env!("VERVE_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))
}
