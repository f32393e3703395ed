//! The WebAssembly engine, and everything of the host that a component can reach.
//!
//! This is WASI 0.2 and 0.3 without files, network, environment or outgoing HTTP, and of Spin's
//! interfaces those for Redis and variables, each in two versions, and for SQLite. A component that
//! imports more is refused at start.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::error::Context as _;
use wasmtime::{Cache, CacheConfig, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre as HandlerPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use crate::database::Database;
use crate::outbound::AllowedHosts;
use crate::output::{Output, Target};
use crate::pool::Connections;
use crate::redis::Redis;
use crate::spin::Variables;
use crate::spin::bindings::fermyon::spin::{redis as redis2, variables as variables2};
use crate::spin::bindings::spin::{redis::redis, sqlite::sqlite, variables::variables};
use crate::sqlite::Sqlite;

/// The maximum number of live instances. A further one waits until one has ended.
pub const MAX_INSTANCES: u32 = 1_000;

/// The maximum memory of an instance in bytes; a component that needs more traps.
const MAX_MEMORY: usize = 64 << 20;

/// What the manifest grants the component.
#[derive(Clone)]
pub struct Grants {
    /// Its variables, with their values.
    pub variables: Arc<BTreeMap<String, String>>,
    /// The servers it may connect to.
    pub allowed_hosts: Arc<AllowedHosts>,
    /// The SQLite database, if it is granted.
    pub database: Option<Database>,
}

/// The host's side of one instance.
pub struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoOutgoingHttp,
    redis: Redis,
    sqlite: Sqlite,
    variables: Variables,
}

impl Guest {
    /// Returns the host's side of a new instance.
    ///
    /// `redis` are the connections that it shares with other instances of its thread.
    pub fn new(grants: &Grants, redis: &Connections) -> Self {
        // The defaults of the builder give no folder, no environment, no arguments and an empty
        // stdin.
        let wasi = WasiCtxBuilder::new()
            .stdout(Output::new(Target::Stdout))
            .stderr(Output::new(Target::Stderr))
            .allow_tcp(false)
            .allow_udp(false)
            .build();
        Self {
            table: ResourceTable::new(),
            wasi,
            http: WasiHttpCtx::new(),
            hooks: NoOutgoingHttp,
            redis: Redis::new(grants.allowed_hosts.clone(), redis.clone()),
            sqlite: Sqlite::new(grants.database.clone()),
            variables: Variables::new(grants.variables.clone()),
        }
    }
}

/// A compiled component, ready to create instances.
pub struct Loaded {
    /// The engine that runs the instances.
    pub engine: Engine,
    /// The component, for WASI 0.2 or 0.3.
    pub proxy: ProxyPre<Guest>,
}

/// Compiles a component and links it to the host.
///
/// # Errors
/// If the file cannot be read, is not a component with an HTTP handler of WASI 0.2 or 0.3, or needs
/// something that this host does not offer.
pub fn load(path: &Path) -> wasmtime::Result<Loaded> {
    let shown = path.display();
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read the component {shown}; has it been built?"))?;
    let engine = engine().context("cannot start the WebAssembly engine")?;
    let component = Component::new(&engine, bytes).with_context(|| format!("cannot compile {shown}"))?;
    let linked = linker(&engine)?
        .instantiate_pre(&component)
        .with_context(|| format!("{shown} needs what this host does not offer"))?;
    let proxy = match ServicePre::new(linked.clone()) {
        Ok(service) => ProxyPre::P3(service),
        Err(_) => ProxyPre::P2(HandlerPre::new(linked).with_context(|| {
            format!("{shown} offers neither wasi:http/handler of WASI 0.3 nor wasi:http/incoming-handler of WASI 0.2")
        })?),
    };
    Ok(Loaded { engine, proxy })
}

/// Returns a store for a new instance.
pub fn new_store(engine: &Engine, grants: &Grants, redis: &Connections) -> Store<Guest> {
    Store::new(engine, Guest::new(grants, redis))
}

fn engine() -> wasmtime::Result<Engine> {
    // A component from one Rust module has a few core instances (the module, and shims for its
    // imports), one memory and two tables; a composed component has these for each of its parts. A
    // second stack serves calls that wait inside a call.
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MAX_INSTANCES)
        .total_core_instances(32 * MAX_INSTANCES)
        .total_memories(2 * MAX_INSTANCES)
        .total_tables(8 * MAX_INSTANCES)
        .total_stacks(2 * MAX_INSTANCES)
        .max_memory_size(MAX_MEMORY);
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .cache(compiled());
    Engine::new(&config)
}

/// Returns the cache for compiled components, so that a restart need not compile.
///
/// It is in wasmtime's usual folder, `~/.cache/wasmtime`. Without a writable folder the host
/// compiles at each start.
fn compiled() -> Option<Cache> {
    let mut config = CacheConfig::new();
    // Entries in frequent use would be compressed again. That takes seconds of processor time and
    // saves only a little space.
    config.with_optimized_compression_usage_counter_threshold(u64::MAX);
    Cache::new(config)
        .inspect_err(|error| tracing::debug!("cannot keep the compiled component: {error:#}"))
        .ok()
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    redis::add_to_linker::<_, HasSelf<Redis>>(&mut linker, |guest: &mut Guest| &mut guest.redis)?;
    sqlite::add_to_linker::<_, HasSelf<Sqlite>>(&mut linker, |guest: &mut Guest| &mut guest.sqlite)?;
    variables::add_to_linker::<_, HasSelf<Variables>>(&mut linker, |guest: &mut Guest| &mut guest.variables)?;
    redis2::add_to_linker::<_, HasSelf<Redis>>(&mut linker, |guest: &mut Guest| &mut guest.redis)?;
    variables2::add_to_linker::<_, HasSelf<Variables>>(&mut linker, |guest: &mut Guest| &mut guest.variables)?;
    Ok(linker)
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

/// The component sends no HTTP requests: callbacks are the reporter's work.
struct NoOutgoingHttp;

type Sent = Result<
    (
        hyper::Response<WasiBody>,
        Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
    ),
    Error,
>;

impl WasiHttpHooks for NoOutgoingHttp {
    fn send_request(
        &mut self,
        _request: hyper::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _result: Box<dyn Future<Output = wasmtime_wasi_http::Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}
