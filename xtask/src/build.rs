//! `cargo xtask build`: builds the component and the native programs.
//!
//! The component is written to the path that `spin.toml` names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cargo::{self, WASM, cargo, cargo_wasm};
use crate::{install, page, public, python, sys};

#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// target/wasm32-wasip2/release/accept_component.wasm
    Component,
    /// The same, and accept_component_p2.wasm beside it, for hosts of WASI 0.2
    ComponentP2,
    /// Both, the counter, and the examples
    Components,
    /// target/release/verve-host
    Host,
    /// target/release/verve-reporter
    Reporter,
    /// target/roots/verve-host and verve-reporter: the complete content of the images
    ///
    /// The programs there are linked statically.
    Roots,
    /// target/wasm32-wasip2/release/verve_hello.wasm, for the benchmarks
    Hello,
    /// target/wasm32-wasip2/release/verve_counter.wasm and verve_counter_p2.wasm
    ///
    /// Other components use them to count.
    Counter,
    /// The component and the counter for WASI 0.3 and 0.2, the host and the reporter
    All,
}

pub fn run(args: &Args) -> Result<()> {
    match args.what {
        What::Component => component(),
        What::ComponentP2 => component_with_p2(),
        What::Components => {
            components()?;
            python::ingest()
        }
        What::Hello => hello(),
        What::Counter => counter(),
        What::Host => native(&[HOST]),
        What::Reporter => native(&[REPORTER]),
        What::Roots => roots(),
        What::All => {
            component_with_p2()?;
            counter()?;
            native(&[HOST, REPORTER])
        }
    }
}

/// The program that runs the component.
pub const HOST: &str = "verve-host";

/// The program that reports the windows.
pub const REPORTER: &str = "verve-reporter";

/// The program that runs everything, for `cargo xtask up`.
pub const UP: &str = "verve-up";

/// The program that injects faults into every part, for `cargo xtask chaos`.
pub const CHAOS: &str = "verve-chaos";

/// The program that runs the real code on simulated machines.
///
/// It is for `cargo xtask simulate`.
pub const SIMULATION: &str = "verve-simulation";

/// Builds the component.
pub fn component() -> Result<()> {
    wasm(COMPONENT, &[]).map(drop)
}

/// The features of the component for WASI 0.2.
pub const WASIP2: [&str; 2] = ["--features", "wasip2"];

/// Builds the component for WASI 0.2.
fn component_p2() -> Result<()> {
    variant(COMPONENT, &WASIP2, "accept_component_p2.wasm")
}

/// Builds the component for WASI 0.2 and the usual one.
pub fn component_with_p2() -> Result<()> {
    component_p2()?;
    component()
}

/// Builds the component in all its variants, and the examples.
pub fn components() -> Result<()> {
    component_with_p2()?;
    counter()?;
    // The application behind one of the examples.
    hello()?;
    page::project()?;
    EXAMPLES
        .into_iter()
        .try_for_each(|example| wasm(example, &[]).map(drop))
}

/// Builds the component that other components use to count, for WASI 0.2 and 0.3.
fn counter() -> Result<()> {
    variant(COUNTER, &WASIP2, "verve_counter_p2.wasm")?;
    variant(COUNTER, &[], "verve_counter.wasm")
}

/// The package of the component.
pub const COMPONENT: &str = "accept-component";

/// The package of the component that other components use to count.
pub const COUNTER: &str = "verve-counter-component";

/// Separate applications that count with the library, and that of the tests.
pub const EXAMPLES: [&str; 4] = [
    "verve-example-pixel",
    "verve-example-login",
    "verve-example-forward",
    "verve-tests-guest",
];

/// Builds a component with other features, and keeps it under another name.
///
/// Cargo gives both the same name.
fn variant(package: &str, flags: &[&str], name: &str) -> Result<()> {
    let built = wasm(package, flags)?;
    let kept = built_wasm(&sys::root().join("target"), name);
    // In a fresh clone the folder does not exist yet.
    let folder = kept.parent().context("a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    // The file may be a link to a file of Cargo's own.
    let _ = fs::remove_file(&kept);
    fs::copy(&built, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    sys::log(&kept.display().to_string());
    Ok(())
}

/// Builds the component that records nothing, for `cargo xtask bench`.
pub fn hello() -> Result<()> {
    wasm("verve-hello", &[]).map(drop)
}

/// Builds a component, and returns its path.
fn wasm(package: &str, flags: &[&str]) -> Result<PathBuf> {
    // Cargo's own helpers are native programs.
    install::ensure(&install::NATIVE[..1])?;
    sys::log(&format!("building {package} for {WASM}"));
    let mut command = cargo_wasm("build", package)?;
    let mut folder = sys::root().join("target");
    if flags == WASIP2 {
        // In the same folder the usual build and this one would replace each other, and each would
        // be compiled again.
        folder.push("wasip2");
        command.env("CARGO_TARGET_DIR", &folder);
    }
    sys::run(command.args(flags))?;
    let built = built_wasm(&folder, &format!("{}.wasm", package.replace('-', "_")));
    let size = fs::metadata(&built)
        .with_context(|| format!("{} was not built", built.display()))?
        .len();
    sys::log(&format!("{} ({} KB)", built.display(), size.div_ceil(1000)));
    Ok(built)
}

/// Returns the path of a component in this target folder.
fn built_wasm(target: &Path, file: &str) -> PathBuf {
    target.join(WASM).join("release").join(file)
}

/// Builds native programs.
pub fn native(programs: &[&str]) -> Result<()> {
    install::ensure(&install::NATIVE)?;
    sys::log(&format!("building {}", programs.join(", ")));
    sys::run(release().args(programs.iter().flat_map(|program| ["--bin", program])))?;
    for program in programs {
        sys::log(&sys::binary(program).display().to_string());
    }
    Ok(())
}

/// Builds the static programs, each in a folder with its image's content.
///
/// Static programs need no library of the machine that they run on.
pub fn roots() -> Result<()> {
    install::ensure(&install::NATIVE)?;
    install::ensure(&[install::AUTHORITIES])?;
    sys::log(&format!("building {HOST} and {REPORTER}, linked statically"));
    let (target, folder) = (cargo::host()?, sys::target().join("static"));
    let mut command = cargo("build");
    command.args(["--release", "--package", HOST, "--package", REPORTER]);
    // With an explicit target, the flags are for the programs only, and not for code that runs
    // during the build.
    command.args(["--target", &target]).env("CARGO_TARGET_DIR", &folder);
    command.env("OPENSSL_STATIC", "1");
    sys::run(command.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    component()?;
    for program in [HOST, REPORTER] {
        let root = root(program);
        let _ = fs::remove_dir_all(&root);
        let put = |from: &Path, to: &str| -> Result<()> {
            let to = root.join(to);
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok(())
        };
        let built = folder.join(&target).join("release").join(program);
        put(&built, &format!("usr/local/bin/{program}"))?;
        put(Path::new(install::CERTIFICATES), &install::CERTIFICATES[1..])?;
        if program == HOST {
            let component = format!("target/{WASM}/release/accept_component.wasm");
            for file in ["spin.toml", &component] {
                put(&sys::root().join(file), &format!("opt/verve/{file}"))?;
            }
            fs::create_dir_all(root.join("var/lib/verve"))?;
        }
        sys::log(&root.display().to_string());
    }
    Ok(())
}

/// Returns the folder with the content of a program's image.
pub fn root(program: &str) -> PathBuf {
    sys::target().join("roots").join(program)
}

/// Builds the programs of `cargo xtask up`, and returns their folder.
///
/// The build is fast; the programs are not.
pub fn quick() -> Result<PathBuf> {
    install::ensure(&install::NATIVE)?;
    sys::log(&format!("building {HOST}, {REPORTER}, {UP}, quickly"));
    let mut command = cargo("build");
    command.args(["--profile", "quick", "--no-default-features"]);
    if env::var_os("CFLAGS").is_none() {
        // librdkafka's build does not know the profile.
        command.env("CFLAGS", "-O0");
    }
    command.args(
        [HOST, REPORTER, "verve-tests"]
            .iter()
            .flat_map(|package| ["--package", package]),
    );
    sys::run(command.args([HOST, REPORTER, UP].iter().flat_map(|program| ["--bin", program])))?;
    Ok(sys::target().join("quick"))
}

/// Writes the help texts of the programs, and the listings of the public API.
///
/// The listings are those of the published crates.
pub fn reference() -> Result<()> {
    public::write()?;
    native(&[HOST, REPORTER])?;
    for program in [HOST, REPORTER] {
        let text = sys::output(sys::binary(program), &["markdown"]);
        let text = text.with_context(|| format!("{program} markdown"))?;
        let path = sys::root().join(format!("docs/{program}.md"));
        fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
        sys::log(&path.display().to_string());
    }
    Ok(())
}

/// Builds all native programs and tests in one command.
///
/// The dependencies of the tests add features to those of the programs. In two commands, half of
/// them would be compiled twice.
pub fn native_with_tests() -> Result<()> {
    install::ensure(&install::NATIVE)?;
    sys::log("building all programs and tests");
    sys::run(release().args(["--bins", "--tests"]))
}

/// Returns a release build of the whole workspace.
///
/// With the whole workspace selected, dependencies have the same features in every build.
fn release() -> Command {
    let mut command = cargo("build");
    command.args(["--release", "--workspace"]);
    command
}
