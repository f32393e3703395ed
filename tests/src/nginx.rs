//! A real nginx with the shipped configuration.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::Process;
use crate::{http, net, paths, wait};

const PATIENCE: Duration = Duration::from_secs(10);

/// An nginx in front of some hosts. Dropping it kills it.
pub struct Nginx {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    /// Starts nginx with `deploy/nginx.conf`, and waits until it answers.
    ///
    /// Only the addresses, the folder that nginx writes to and the log level are replaced.
    ///
    /// # Errors
    /// Fails if there is no nginx, if the file has a different number of hosts, or if nginx does
    /// not start.
    pub async fn start(hosts: &[SocketAddr]) -> Result<Self> {
        let address = net::free_address()?;
        let folder = tempfile::tempdir()?;
        let shipped = fs::read_to_string(paths::repository().join("deploy/nginx.conf"))?;
        let config = folder.path().join("nginx.conf");
        fs::write(&config, adapted(&shipped, address, hosts, folder.path())?)?;
        let mut command = Command::new(program());
        // If only the master is killed, its workers survive it.
        command.process_group(0);
        command.args(["-e", "stderr", "-g", "daemon off;", "-p"]);
        command.arg(folder.path()).arg("-c").arg(&config);
        let process = Process::spawn("nginx", command)?;
        let nginx = Self {
            process,
            address,
            _folder: folder,
        };
        let ready = wait::until("nginx", PATIENCE, || async {
            let answer = http::get(nginx.address, "/healthz").await.ok()?;
            (answer.status == 200).then_some(())
        });
        ready
            .await
            .with_context(|| format!("its log:\n{}", nginx.process.log()))?;
        Ok(nginx)
    }

    /// Returns the address nginx listens on.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the process, which also has the log.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

/// Returns the program's path.
///
/// Debian installs it in a folder that only root's PATH contains.
fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders
        .find_map(|folder| Some(folder.join("nginx")).filter(|file| file.is_file()))
        .unwrap_or_else(|| "nginx".into())
}

fn adapted(shipped: &str, address: SocketAddr, hosts: &[SocketAddr], folder: &Path) -> Result<String> {
    let mut text = shipped.to_owned();
    let mut replace = |from: &str, to: &str| -> Result<()> {
        ensure!(text.contains(from), "deploy/nginx.conf has no {from:?}");
        text = text.replace(from, to);
        Ok(())
    };
    replace("listen 8080;", &format!("listen {address};"))?;
    // The tests read from this log which host was asked.
    replace("error_log stderr crit;", "error_log stderr error;")?;
    replace(" /tmp/", &format!(" {}/", folder.display()))?;
    for (n, host) in hosts.iter().enumerate() {
        replace(&format!("server accept-{}:3000", n + 1), &format!("server {host}"))?;
    }
    ensure!(
        !text.contains("server accept-"),
        "deploy/nginx.conf has more hosts than {hosts:?}"
    );
    Ok(text)
}
