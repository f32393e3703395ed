//! `verve-host`: see the library of the same name.
//!
//! It is compiled separately, so that another version number only needs a new link.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The build sets `VERVE_VERSION` to the version and the commit.
    verve_host::main(option_env!("VERVE_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))
}
