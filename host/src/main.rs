//! `verve-host`: see the library of the same name. Compiled by itself, so that what has another version is linked anew and no more.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Whoever builds says of which commit.
    verve_host::main(option_env!("VERVE_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))
}
