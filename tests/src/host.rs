//! The host that runs the component: `verve-host`, or a real Spin.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::clock::WrongClock;
use crate::process::{OnLine, Process, under};
use crate::{http, net, paths, wait};

/// The program that runs the component, and the build of the component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `verve-host` of this workspace.
    VerveHost,
    /// `spin up`.
    Spin,
    /// `verve-host`, with the build for WASI 0.2.
    VerveHostP2,
    /// `spin up`, with the build for WASI 0.2.
    SpinP2,
}

impl Kind {
    /// Returns the available kinds, with either build of the component.
    #[must_use]
    pub fn every() -> Vec<Self> {
        let of_wasi_0_2 = |kind| match kind {
            Self::VerveHost => Self::VerveHostP2,
            Self::Spin => Self::SpinP2,
            other => other,
        };
        let mut kinds = Self::available();
        kinds.extend(kinds.clone().into_iter().map(of_wasi_0_2));
        kinds
    }

    /// Returns whether it runs the build for WASI 0.2.
    #[must_use]
    pub const fn is_p2(self) -> bool {
        matches!(self, Self::VerveHostP2 | Self::SpinP2)
    }

    /// Returns the manifest that it serves by default.
    ///
    /// The paths in the text are relative to the top folder of the repository.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn manifest(self) -> Result<String> {
        if !self.is_p2() {
            return Ok(fs::read_to_string(paths::manifest())?);
        }
        let text = fs::read_to_string(paths::repository().join("deploy/spin-wasip2.toml"))?;
        Ok(text.replace("\"../", "\""))
    }

    /// Returns the available kinds with the usual build of the component.
    ///
    /// `verve-host` is always available. `spin` is available if it is in the PATH or named by
    /// `SPIN_BIN`.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut kinds = vec![Self::VerveHost];
        kinds.extend(spin().map(|_| Self::Spin));
        kinds
    }

    /// Returns the command that serves `manifest`, without address and variables.
    ///
    /// # Errors
    /// Fails if the program is not built or not installed.
    pub fn command(self, manifest: &Path) -> Result<Command> {
        let mut command = match self {
            Self::VerveHost | Self::VerveHostP2 => Command::new(paths::verve_host()?),
            Self::Spin | Self::SpinP2 => {
                let mut command = Command::new(spin().context("neither the PATH nor SPIN_BIN has a spin")?);
                command.arg("up");
                // Spin runs the trigger as a child, which would survive a killed `spin up`.
                command.process_group(0);
                command
            }
        };
        command.env_remove("RUST_LOG").arg("--from").arg(manifest);
        Ok(command)
    }
}

fn spin() -> Option<PathBuf> {
    if let Some(named) = env::var_os("SPIN_BIN").filter(|name| !name.is_empty()) {
        // Returned even if the file does not exist: then the start fails, and the user who set the
        // variable sees it.
        return Some(named.into());
    }
    let path: OsString = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join("spin"))
        .find(|file| file.is_file())
}

/// The options of an instance that is about to start.
pub struct Options {
    kind: Kind,
    variables: Vec<(String, String)>,
    manifest: Option<String>,
    address: Option<SocketAddr>,
    clock: Option<WrongClock>,
    survives_file_limit: bool,
    open_files: Option<u32>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    on_line: Option<OnLine>,
    stop_grace: &'static str,
}

impl Options {
    /// Sets how long `verve-host` continues to serve after SIGTERM; `0s` by default.
    #[must_use]
    pub const fn stop_grace(mut self, duration: &'static str) -> Self {
        self.stop_grace = duration;
        self
    }

    /// Sets a variable of the application.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Serves this manifest text instead of the repository's `spin.toml`.
    #[must_use]
    pub fn manifest(mut self, text: String) -> Self {
        self.manifest = Some(text);
        self
    }

    /// Listens on this address instead of on a free port.
    #[must_use]
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets the clock of the process. The clock can be changed while the process runs.
    #[must_use]
    pub fn clock(mut self, clock: &WrongClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// Makes a write beyond [`Instance::limit_files`] fail, as on a full disk.
    ///
    /// Without this option, such a write ends the process.
    #[must_use]
    pub const fn survives_file_limit(mut self) -> Self {
        self.survives_file_limit = true;
        self
    }

    /// Limits the number of open files and connections.
    #[must_use]
    pub const fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Adds flags for `verve-host`.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Calls `on_line` with each line of the log.
    #[must_use]
    pub fn on_line(mut self, on_line: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_line = Some(Box::new(on_line));
        self
    }

    /// Starts the instance and waits until it answers HTTP.
    ///
    /// # Errors
    /// Fails if the program or the component is not built, or if the instance does not start.
    pub async fn start(self) -> Result<Instance> {
        let manifest = match self.manifest {
            Some(text) => text,
            None => self.kind.manifest()?,
        };
        let folder = application_folder(&manifest)?;
        let address = match self.address {
            Some(address) => address,
            None => net::free_address()?,
        };
        let mut command = command(self.kind, &folder, address, &self.variables, self.stop_grace)?;
        command.args(&self.flags).envs(self.environment);
        if let Some(limit) = self.open_files {
            command = under("prlimit", &[&format!("--nofile={limit}:{limit}")], &command);
        }
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        if self.survives_file_limit {
            // Ignores the signal that would end the process.
            command = under("sh", &["-c", "trap '' XFSZ && exec \"$@\"", "sh"], &command);
        }
        let process = Process::spawn_with(&format!("{:?}", self.kind), command, self.on_line)?;
        let instance = Instance {
            kind: self.kind,
            variables: self.variables,
            clock: self.clock,
            stop_grace: self.stop_grace,
            process,
            address,
            folder,
        };
        instance.wait_ready().await?;
        Ok(instance)
    }
}

fn command(
    kind: Kind,
    folder: &TempDir,
    address: SocketAddr,
    variables: &[(String, String)],
    stop_grace: &str,
) -> Result<Command> {
    // Otherwise another process on this port would be taken for the instance.
    net::probe(address).with_context(|| format!("{address} is taken"))?;
    let mut command = kind.command(&folder.path().join("spin.toml"))?;
    command.args(["--listen", &address.to_string()]);
    if matches!(kind, Kind::VerveHost | Kind::VerveHostP2) {
        command.args(["--stop-grace", stop_grace]);
    }
    for (name, value) in variables {
        command.args(["--variable", &format!("{name}={value}")]);
    }
    Ok(command)
}

/// Creates a folder for an application: the manifest, and the components.
///
/// The components are where the manifest looks for them. Each application has a folder of its own,
/// because the host keeps its state beside the manifest.
///
/// # Errors
/// Fails if the component is not built, or if the folder cannot be created.
pub fn application_folder(manifest: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("spin.toml"), manifest)?;
    let source = folder.path().join("target/wasm32-wasip2/release");
    fs::create_dir_all(&source)?;
    paths::component()?;
    for file in fs::read_dir(paths::components())? {
        let file = file?;
        if file.path().extension().is_some_and(|extension| extension == "wasm") {
            symlink(file.path(), source.join(file.file_name()))?;
        }
    }
    Ok(folder)
}

/// A running host. Dropping it kills it.
pub struct Instance {
    kind: Kind,
    variables: Vec<(String, String)>,
    clock: Option<WrongClock>,
    stop_grace: &'static str,
    process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Instance {
    /// Starts the repository's application with these variables, on a free port.
    ///
    /// Waits until it answers.
    ///
    /// # Errors
    /// See [`Options::start`].
    pub async fn start(kind: Kind, variables: &[(&str, &str)]) -> Result<Self> {
        let options = Self::options(kind);
        let options = variables
            .iter()
            .fold(options, |o, (name, value)| o.variable(name, value));
        options.start().await
    }

    /// Returns the default options, for an instance with some options changed.
    #[must_use]
    pub const fn options(kind: Kind) -> Options {
        Options {
            kind,
            variables: Vec::new(),
            manifest: None,
            address: None,
            clock: None,
            survives_file_limit: false,
            open_files: None,
            flags: Vec::new(),
            environment: Vec::new(),
            on_line: None,
            stop_grace: "0s",
        }
    }

    /// Returns the address it listens on.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the application's folder.
    ///
    /// The host's state with the spool is in `.spin` there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Opens the spool's database.
    ///
    /// # Errors
    /// Fails if there is no database.
    pub fn spool(&self) -> Result<rusqlite::Connection> {
        let file = self.folder().join(".spin/sqlite_db.db");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        rusqlite::Connection::open_with_flags(&file, flags).with_context(|| file.display().to_string())
    }

    /// Returns the number that a query finds in the spool's database.
    ///
    /// # Errors
    /// Fails if there is no database, or the query fails.
    pub fn in_spool(&self, query: &str) -> Result<i64> {
        Ok(self.spool()?.query_one(query, [], |row| row.get(0))?)
    }

    /// Limits the size of the files that the process writes, in bytes.
    ///
    /// `None` removes the limit. See [`Options::survives_file_limit`].
    ///
    /// # Errors
    /// Fails if `prlimit` fails.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &self.process.pid().to_string(), &format!("--fsize={limit}:")]);
        let status = prlimit.status().context("prlimit")?;
        anyhow::ensure!(status.success(), "prlimit: {status}");
        Ok(())
    }

    /// Returns the process, which also has the log.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Sets a variable of the application, for the next [`Self::restart`].
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Kills the process if it still runs, and starts it again.
    ///
    /// It has the same address and folder, and thus the same spool.
    ///
    /// # Errors
    /// See [`Options::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        let mut command = command(self.kind, &self.folder, self.address, &self.variables, self.stop_grace)?;
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        self.process = Process::spawn(&format!("{:?}", self.kind), command)?;
        self.wait_ready().await
    }

    /// Sends SIGTERM and waits until the process ends.
    ///
    /// # Errors
    /// Fails if it does not end within 15 seconds.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate(Duration::from_secs(15)).await
    }

    async fn wait_ready(&self) -> Result<()> {
        let answer = wait::until("an HTTP answer", Duration::from_secs(60), || async {
            if let Some(status) = self.process.exit_status() {
                return Some(Err(status));
            }
            // A path outside the application: the component does not receive this request.
            http::get(self.address, "/verve-rig/ready").await.ok().map(|_| Ok(()))
        });
        match answer
            .await
            .with_context(|| format!("its log:\n{}", self.process.log()))?
        {
            Ok(()) => Ok(()),
            Err(status) => bail!("the host ended: {status}; its log:\n{}", self.process.log()),
        }
    }
}
