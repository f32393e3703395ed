//! `verve-host`: runs Verve's component without Spin, as Spin would run it.
//!
//! It is not a second Spin: it has only what this component uses, in few lines. Read on in this
//! order:
//!
//! - `cli`: the command line, whose flags are those of `spin up`
//! - `manifest`, `routes`, `variables`, `outbound`: the content of `spin.toml`, parsed completely
//!   before a port is bound
//! - `wasm`: the engine, and the parts of the host that a component can reach; `instances`: the
//!   lifetime of an instance
//! - `pool`, `database`: connections to Redis, and the SQLite file
//! - `spin`, `redis`, `sqlite`, `output`: the host's side of Spin's interfaces and of the
//!   component's stdout and stderr
//! - `server`, `lenient`, `workers`, `listen`, `shutdown`: HTTP in front of the component, on all
//!   processors, and the shutdown
//!
//! Exit codes: 0 after a graceful stop, 1 if the host could not start or stopped before all
//! requests in flight had finished, 64 (`EX_USAGE`) for an invalid command line or manifest.

mod cli;
mod database;
mod instances;
mod lenient;
mod listen;
mod manifest;
mod outbound;
mod output;
mod pool;
mod redis;
mod routes;
mod server;
mod shutdown;
mod spin;
mod sqlite;
mod variables;
mod wasm;
mod workers;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::cli::{Arguments, LogFormat};
use crate::database::Database;
use crate::instances::Factory;
use crate::manifest::Manifest;
use crate::outbound::AllowedHosts;
use crate::server::Site;
use crate::shutdown::{Ended, Signals};
use crate::variables::{Template, Values};
use crate::wasm::Grants;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits(3): the command line or the manifest is invalid.
pub const EX_USAGE: u8 = 64;

/// Runs the program; `--version` prints `version`.
#[must_use]
pub fn main(version: &'static str) -> ExitCode {
    let arguments = match Arguments::read(version) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    log_to_stderr(arguments.log_format);
    let (manifest, grants, given) = match configure(&arguments) {
        Ok(configuration) => configuration,
        Err(error) => return fail(EX_USAGE, &error),
    };
    match run(&arguments, manifest, grants, given) {
        Ok(Ended::Gracefully) => ExitCode::SUCCESS,
        Ok(Ended::Cut) => ExitCode::FAILURE,
        Err(error) => fail(1, &error),
    }
}

/// Reads and checks all settings of the user. Accesses nothing but files.
fn configure(arguments: &Arguments) -> anyhow::Result<(Manifest, Grants, Vec<String>)> {
    let manifest = Manifest::read(&arguments.from)?;
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let values = Values::try_new(&manifest.variables, &arguments.variables, &environment.collect())?;
    let component = &manifest.component;
    let variables = component
        .variables
        .iter()
        .map(|(name, template)| Ok((name.clone(), Template::try_new(template)?.resolve(&values)?)))
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("in [component.{}.variables]", component.id))?;
    let allowed_hosts = AllowedHosts::try_new(&component.allowed_outbound_hosts, &values)
        .with_context(|| format!("in [component.{}]", component.id))?;
    Ok((
        manifest,
        Grants {
            variables: Arc::new(variables),
            allowed_hosts: Arc::new(allowed_hosts),
            database: None,
        },
        values.given().to_vec(),
    ))
}

fn run(arguments: &Arguments, manifest: Manifest, mut grants: Grants, given: Vec<String>) -> anyhow::Result<Ended> {
    if manifest.component.sqlite {
        let default = || manifest.folder.join(".spin");
        let folder = arguments.state_dir.clone().unwrap_or_else(default);
        let database = Database::try_new(&folder).context("--state-dir names another folder")?;
        grants.database = Some(database);
    }
    // Many machines set a low soft limit, for programs that are older than such servers. If the
    // system refuses a higher limit, the old one stays.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let factory = Factory::new(wasm::load(&manifest.component.source)?, grants, arguments.reuse);
    let site = Site {
        component: manifest.component.id,
        routes: manifest.routes,
        tcp_nodelay: !arguments.no_tcp_nodelay,
        keep_alive: arguments.keep_alive_timeout,
        max_head: arguments.max_head_bytes,
        max_connections: arguments.max_connections,
        is_stopping: Arc::default(),
        is_misconfigured: Arc::default(),
        looks_after: manifest.component.looks_after,
        given,
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().context("cannot start the async runtime")?;
    let ended = runtime.block_on(async {
        let listener = TcpListener::bind(arguments.listen)
            .await
            .with_context(|| format!("cannot listen on {}", arguments.listen))?;
        let signals = Signals::try_new().context("cannot listen for signals")?;
        listen::serve(listener, site, factory, signals, arguments.stop_grace)
            .await
            .context("cannot serve")
    });
    // `drop` would wait for a name lookup that hangs.
    runtime.shutdown_background();
    ended
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("verve-host: {error:#}");
    ExitCode::from(code)
}

/// Logs to stderr, filtered by `VERVE_LOG`, else `RUST_LOG`, else from `info` up.
fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("VERVE_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // Requests must not stop when the reader of the log is gone.
        .log_internal_errors(false)
        .with_ansi(color);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
