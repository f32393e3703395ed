//! The measured programs.
//!
//! They answer the same requests, each on its own port, and all use the same Redis.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use verve_tests::host::{Kind, application_folder};
use verve_tests::process::{Process, cpu_seconds, memory_kb, under};
use verve_tests::{http, net, paths, wait};

/// A program under load.
pub struct Target {
    /// The name in tables.
    pub name: String,
    address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

/// The component that a host runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Verve's component.
    Accept,
    /// The component that records nothing.
    Hello,
}

impl Target {
    /// Starts the native service in Rust.
    pub async fn axum(redis: &str) -> Result<Self> {
        let program = paths::target().join("release/axum-peer");
        Self::peer("axum (Rust, native)", &program, redis).await
    }

    /// Starts the native service in Go.
    pub async fn go(redis: &str) -> Result<Self> {
        Self::peer("Go, native", &paths::target().join("bench/go-peer"), redis).await
    }

    async fn peer(name: &str, program: &Path, redis: &str) -> Result<Self> {
        let address = net::free_address()?;
        let mut command = Command::new(program);
        command.args(["--listen", &address.to_string(), "--redis-url", redis]);
        Self::start(name, command, address, tempfile::tempdir()?).await
    }

    /// Starts a host with a component and further flags.
    pub async fn host(name: &str, kind: Kind, component: Component, redis: &str, flags: &[&str]) -> Result<Self> {
        let (command, address, folder) = host(kind, component, redis, flags)?;
        Self::start(name, command, address, folder).await
    }

    /// Starts `verve-host` with Verve's component, pinned to one processor.
    pub async fn host_on(processor: usize, name: &str, redis: &str) -> Result<Self> {
        let (host, address, folder) = host(Kind::VerveHost, Component::Accept, redis, &[])?;
        let command = under("taskset", &["-c", &processor.to_string()], &host);
        Self::start(name, command, address, folder).await
    }

    async fn start(name: &str, mut command: Command, address: SocketAddr, folder: TempDir) -> Result<Self> {
        // A successful request creates no error. If it did, the backtrace would show in the
        // figures.
        command.env("RUST_BACKTRACE", "1");
        let process = Process::spawn(name, command)?;
        let target = Self {
            name: name.to_owned(),
            address,
            process,
            _folder: folder,
        };
        wait::until("an answer", Duration::from_secs(60), || async {
            http::get(address, "/api/verve/accept?id=1").await.ok()
        })
        .await
        .with_context(|| format!("{name}: {}", target.process.log()))?;
        Ok(target)
    }

    /// Returns the address that it listens on.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the processor time of the process and its children, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        family(self.process.pid()).iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Returns the resident memory of the process and its children, in MB.
    pub fn memory_mb(&self) -> f64 {
        family(self.process.pid()).iter().map(|pid| memory_mb(*pid)).sum()
    }
}

/// Returns the path of a component's file.
pub fn wasm(file: &str) -> Result<PathBuf> {
    let path = paths::repository().join("target/wasm32-wasip2/release").join(file);
    path.canonicalize()
        .with_context(|| format!("{}: run `cargo xtask bench`", path.display()))
}

/// Returns the command that starts a host on a free port, in its own folder.
fn host(kind: Kind, component: Component, redis: &str, flags: &[&str]) -> Result<(Command, SocketAddr, TempDir)> {
    let address = net::free_address()?;
    let text = match component {
        Component::Accept => kind.manifest()?,
        Component::Hello => {
            let text = fs::read_to_string(paths::repository().join("bench/hello/spin.toml"))?;
            text.replace("../../target", "target")
        }
    };
    let folder = application_folder(&text)?;
    let mut command = kind.command(&folder.path().join("spin.toml"))?;
    command.args(["--listen", &address.to_string()]).args(flags);
    if component == Component::Accept {
        command.args(["--variable", &format!("redis_urls={redis}")]);
    }
    Ok((command, address, folder))
}

/// Returns a process and all its descendants.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// Returns the resident memory of a process in MB; 0 if the process has ended.
pub fn memory_mb(pid: u32) -> f64 {
    memory_kb(pid, "VmRSS").unwrap_or_default() as f64 / 1000.0
}
