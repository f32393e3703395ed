//! Cargo itself, for the machine and for WebAssembly, from rustup or from Debian.
//!
//! rustup is asked for the `wasm32-wasip2` target, rustfmt and clippy. Where it cannot bring them, Debian's own newer Rust
//! (packages beside rustup's, in `/usr/bin`) can; it has no compiled standard library for the target, but its sources.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{install, sys};

/// The component's target.
pub const WASM: &str = "wasm32-wasip2";

/// Says which of the two to use, where both could do: `rustup` or `debian`.
const CHOICE: &str = "VERVE_TOOLCHAIN";

/// What the programs tell for `--version`: set by whoever builds without a repository, such as for an image.
const VERSION: &str = "VERVE_VERSION";

const DEBIAN_RUST: [&str; 2] = ["rustc-web", "cargo-web"];
const DEBIAN_WASM: [&str; 3] = ["rust-web-src", "lld-19", "wasi-libc"];
const DEBIAN_LINTS: [&str; 2] = ["rustfmt-web", "rust-web-clippy"];

/// Where a cargo comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The cargo that runs us; usually rustup's.
    Ours,
    /// Debian's, in `/usr/bin`.
    Debian,
}

impl Toolchain {
    /// One that compiles for WebAssembly; installs what it takes.
    pub fn for_wasm() -> Result<Self> {
        Self::choose("the target wasm32-wasip2", wasm_by_rustup, wasm_by_debian)
    }

    /// One with rustfmt and clippy; installs them.
    pub fn for_lints() -> Result<Self> {
        Self::choose("rustfmt and clippy", lints_by_rustup, lints_by_debian)
    }

    /// Debian's, with everything: what lints the component where rustup has only one of the two.
    pub fn all_of_debian() -> Result<Self> {
        wasm_by_debian()?;
        lints_by_debian()?;
        Ok(Self::Debian)
    }

    fn choose(what: &str, rustup: fn() -> Result<()>, debian: fn() -> Result<()>) -> Result<Self> {
        let choice = env::var(CHOICE).unwrap_or_default();
        match choice.as_str() {
            "rustup" => rustup().map(|()| Self::Ours),
            "debian" => debian().map(|()| Self::Debian),
            "" => {
                let Err(error) = rustup() else {
                    return Ok(Self::Ours);
                };
                sys::say(&format!("no {what} by rustup ({error:#}), so by Debian's packages"));
                debian().with_context(|| format!("please install {what} by rustup"))?;
                Ok(Self::Debian)
            }
            _ => bail!("{CHOICE} is rustup or debian, not {choice:?}"),
        }
    }

    /// `cargo <subcommand>` in the workspace, for this machine.
    pub fn cargo(self, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Ours => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
            Self::Debian => {
                // By cargo itself, these two would be rustup's, which come first for it whatever the PATH is.
                let mut command = Command::new(match subcommand {
                    "fmt" => "/usr/bin/cargo-fmt",
                    "clippy" => "/usr/bin/cargo-clippy",
                    _ => "/usr/bin/cargo",
                });
                // What cargo and rustup set for their children is about the other toolchain.
                for name in [
                    "RUSTUP_TOOLCHAIN",
                    "LD_LIBRARY_PATH",
                    "RUSTC_WRAPPER",
                    "RUSTC_WORKSPACE_WRAPPER",
                ] {
                    command.env_remove(name);
                }
                for name in ["cargo", "rustc", "rustdoc", "rustfmt"] {
                    command.env(name.to_uppercase(), format!("/usr/bin/{name}"));
                }
                command
            }
        };
        command.current_dir(sys::root()).arg(subcommand);
        match version() {
            Some(version) => command.env(VERSION, version),
            None => command.env_remove(VERSION),
        };
        command
    }

    /// `cargo <subcommand>` for a component: for WebAssembly, optimized as a whole, as small as that comes, and into the
    /// folder that `spin.toml` names.
    pub fn cargo_wasm(self, subcommand: &str, package: &str) -> Result<Command> {
        let mut command = self.cargo_for_wasm(subcommand)?;
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

    /// `cargo <subcommand>` for WebAssembly, not optimized, into the same folder.
    pub fn cargo_for_wasm(self, subcommand: &str) -> Result<Command> {
        let mut command = self.cargo(subcommand);
        // Meant for native programs, and they would take the place of what is set for this target.
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(name);
        }
        command.args(["--target", WASM, "--target-dir"]);
        command.arg(sys::root().join("target"));
        if self == Self::Debian {
            let mut path = linker_folder()?.into_os_string();
            path.push(":");
            path.push(env::var_os("PATH").unwrap_or_default());
            command
                .env("PATH", path)
                .env("RUSTC_BOOTSTRAP", "1")
                .arg("-Zbuild-std=std,panic_abort");
            let flags = "-Clink-self-contained=no -L/usr/lib/wasm32-wasi";
            command.env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", flags);
        }
        Ok(command)
    }
}

/// The version, and the commit; a `+` behind it for what is not committed.
fn version() -> Option<String> {
    if let Some(given) = env::var(VERSION).ok().filter(|given| !given.is_empty()) {
        return Some(given);
    }
    let root = sys::root().to_str()?;
    let describe = [
        "-C",
        root,
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty=+",
    ];
    let commit = sys::output("git", &describe)?;
    Some(format!("{} ({commit})", env!("CARGO_PKG_VERSION")))
}

fn wasm_by_rustup() -> Result<()> {
    let sysroot = sys::output("rustc", &["--print", "sysroot"]).context("no rustc")?;
    if PathBuf::from(sysroot)
        .join("lib/rustlib")
        .join(WASM)
        .join("lib")
        .is_dir()
    {
        return Ok(());
    }
    sys::say("rustup target add wasm32-wasip2");
    sys::run(Command::new("rustup").args(["target", "add", WASM]))
}

fn wasm_by_debian() -> Result<()> {
    install_missing(&[DEBIAN_RUST.as_slice(), &DEBIAN_WASM].concat())
}

fn lints_by_rustup() -> Result<()> {
    let there = || {
        ["fmt", "clippy"]
            .iter()
            .all(|tool| sys::succeeds("cargo", &[tool, "--version"]))
    };
    if there() {
        return Ok(());
    }
    sys::say("rustup component add rustfmt clippy");
    sys::run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

fn lints_by_debian() -> Result<()> {
    install_missing(&[DEBIAN_RUST.as_slice(), &DEBIAN_LINTS].concat())
}

fn install_missing(packages: &[&str]) -> Result<()> {
    let installed = |package: &str| {
        let status = sys::output("dpkg-query", &["-W", "-f", "${Status}", package]);
        status.is_some_and(|status| status == "install ok installed")
    };
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install::apt_install(&missing).with_context(|| format!("the Debian packages {}", missing.join(" ")))
}

/// A folder with the linkers under the names that Debian's Rust calls them by.
fn linker_folder() -> Result<PathBuf> {
    let folder = sys::root().join("target/toolchain");
    fs::create_dir_all(&folder)?;
    link("/usr/bin/wasm-ld-19".as_ref(), &folder.join("wasm-ld"))?;
    link(&component_linker(&folder)?, &folder.join("wasm-component-ld"))?;
    Ok(folder)
}

/// What makes a component of a linked module. Every Rust of rustup's brings one, Debian's does not.
fn component_linker(folder: &Path) -> Result<PathBuf> {
    let name = "wasm-component-ld";
    let rustlib = sys::output("rustc", &["--print", "sysroot"]).map(|dir| PathBuf::from(dir).join("lib/rustlib"));
    let hosts = rustlib.into_iter().flat_map(fs::read_dir).flatten().flatten();
    let in_rustlib = hosts
        .map(|host| host.path().join("bin").join(name))
        .find(|file| file.is_file());
    if let Some(linker) = in_rustlib {
        return Ok(linker);
    }
    let installed = folder.join("bin").join(name);
    if !installed.is_file() {
        sys::say(&format!("installing {name} by cargo"));
        sys::run(
            Toolchain::Debian
                .cargo("install")
                .args([name, "--locked", "--root"])
                .arg(folder),
        )?;
    }
    Ok(installed)
}

fn link(file: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|target| target == file) {
        return Ok(());
    }
    let _ = fs::remove_file(link);
    symlink(file, link).with_context(|| format!("cannot make {}", link.display()))
}
