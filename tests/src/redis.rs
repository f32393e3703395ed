//! A real `redis-server`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tempfile::TempDir;

use crate::clock::WrongClock;
use crate::process::{Process, Signal};
use crate::{net, paths, wait};

const PATIENCE: Duration = Duration::from_secs(10);

/// A `redis-server` with an empty folder for its data. Dropping it kills it.
pub struct RedisServer {
    options: Options,
    address: SocketAddr,
    folder: TempDir,
    process: Process,
}

/// The options of a server.
///
/// By default, it keeps nothing on disk and needs no password.
#[derive(Clone, Debug, Default)]
pub struct Options {
    append_only: bool,
    password: Option<String>,
    port: Option<u16>,
    arguments: Vec<String>,
    program: Option<PathBuf>,
    clock: Option<WrongClock>,
}

impl Options {
    /// Keeps its data on disk, so that they survive [`RedisServer::kill`].
    ///
    /// Each write is on disk before its answer.
    #[must_use]
    pub fn append_only(mut self) -> Self {
        self.append_only = true;
        self
    }

    /// Sets the password that clients need.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Listens on this port instead of a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Runs this program, which is another version or kind of Redis.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Sets the clock of the server.
    #[must_use]
    pub fn clock(mut self, clock: &WrongClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// Adds a command line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// Fails if there is no `redis-server`, or if it does not start.
    pub async fn start(self) -> Result<RedisServer> {
        let mut address = net::free_address()?;
        if let Some(port) = self.port {
            address.set_port(port);
        }
        let folder = tempfile::tempdir()?;
        let process = spawn(&self, address, &folder)?;
        let server = RedisServer {
            options: self,
            address,
            folder,
            process,
        };
        server.wait_ready().await?;
        Ok(server)
    }
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk, on a free port.
    ///
    /// # Errors
    /// See [`Options::start`].
    pub async fn start() -> Result<Self> {
        Options::default().start().await
    }

    /// Returns the default options.
    #[must_use]
    pub fn options() -> Options {
        Options::default()
    }

    /// Returns the address it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL, with the password.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.options.password {
            None => format!("redis://{}", self.address),
            Some(password) => format!("redis://:{password}@{}", self.address),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Fails if the server does not answer within 10 s.
    pub async fn connection(&self) -> Result<MultiplexedConnection> {
        // The default of half a second is too short on machines that run all tests at the same
        // time.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let client = Client::open(self.url())?;
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// Sets a parameter of its configuration (`CONFIG SET`).
    ///
    /// # Errors
    /// Fails if the server does not answer or refuses.
    pub async fn set(&self, parameter: &str, value: &str) -> Result<()> {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(parameter).arg(value);
        Ok(set.exec_async(&mut self.connection().await?).await?)
    }

    /// Returns the process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Stops the server with SIGTERM.
    ///
    /// # Errors
    /// Fails if it does not end within 10 s.
    pub async fn stop(&self) -> Result<()> {
        self.process.terminate(PATIENCE).await.map(drop)
    }

    /// Kills the server.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Makes it accept connections but answer nothing, until [`Self::resume`].
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Reverts [`Self::pause`].
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Restarts the server on the same port, with the same folder.
    ///
    /// # Errors
    /// See [`Options::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = spawn(&self.options, self.address, &self.folder)?;
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> Result<()> {
        wait::until("Redis to answer", PATIENCE, || async {
            let mut connection = self.connection().await.ok()?;
            redis::cmd("PING").exec_async(&mut connection).await.ok()
        })
        .await
        .with_context(|| format!("redis-server on {}:\n{}", self.address, self.process.log()))
    }
}

fn spawn(options: &Options, address: SocketAddr, folder: &TempDir) -> Result<Process> {
    let mut command = Command::new(options.program.clone().unwrap_or_else(paths::redis_server));
    if let Some(clock) = &options.clock {
        clock.give(&mut command);
    }
    command
        .current_dir(folder)
        .args([
            "--bind",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ])
        .args(["--save", "", "--dir", "."])
        .args(["--appendonly", if options.append_only { "yes" } else { "no" }])
        .args(["--appendfsync", "always"])
        .args(options.password.iter().flat_map(|password| ["--requirepass", password]))
        .args(&options.arguments);
    Process::spawn("redis-server", command)
}
