//! What is measured: programs that answer the same requests, each on its own port, all on the same Redis.

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
    /// Its name in tables.
    pub name: String,
    address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

/// Which component a host runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Verve's.
    Accept,
    /// The one that records nothing.
    Hello,
}

impl Target {
    /// The native service in Rust.
    pub async fn axum(redis: &str) -> Result<Self> {
        let program = paths::target().join("release/axum-peer");
        Self::peer("axum (Rust, native)", &program, redis).await
    }

    /// The native service in Go.
    pub async fn go(redis: &str) -> Result<Self> {
        Self::peer("Go, native", &paths::target().join("bench/go-peer"), redis).await
    }

    async fn peer(name: &str, program: &Path, redis: &str) -> Result<Self> {
        let address = net::free_address()?;
        let mut command = Command::new(program);
        command.args(["--listen", &address.to_string(), "--redis-url", redis]);
        Self::start(name, command, address, tempfile::tempdir()?).await
    }

    /// A host with a component, and further flags of the host.
    pub async fn host(name: &str, kind: Kind, component: Component, redis: &str, flags: &[&str]) -> Result<Self> {
        let (command, address, folder) = host(kind, component, redis, flags)?;
        Self::start(name, command, address, folder).await
    }

    /// `verve-host` with Verve's component, on one processor alone.
    pub async fn host_on(processor: usize, name: &str, redis: &str) -> Result<Self> {
        let (host, address, folder) = host(Kind::VerveHost, Component::Accept, redis, &[])?;
        let command = under("taskset", &["-c", &processor.to_string()], &host);
        Self::start(name, command, address, folder).await
    }

    async fn start(name: &str, mut command: Command, address: SocketAddr, folder: TempDir) -> Result<Self> {
        // No error is made on the way of a good request; if one were, its backtrace would be seen in the figures.
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

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The processor time that it and its children have used, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        family(self.process.pid()).iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// The memory that it and its children have resident, in MB.
    pub fn memory_mb(&self) -> f64 {
        family(self.process.pid()).iter().map(|pid| memory_mb(*pid)).sum()
    }
}

/// The file of a component.
pub fn wasm(file: &str) -> Result<PathBuf> {
    let path = paths::repository().join("target/wasm32-wasip2/release").join(file);
    path.canonicalize()
        .with_context(|| format!("{}: run `cargo xtask bench`", path.display()))
}

/// The command that starts a host on a free port, in a folder of its own.
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

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// The resident memory of a process, in MB; 0 if it is gone.
pub fn memory_mb(pid: u32) -> f64 {
    memory_kb(pid, "VmRSS").unwrap_or_default() as f64 / 1000.0
}
