//! Redis as a site has it: one server, or a cluster.

use anyhow::{Result, bail};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, Value};

use crate::cluster::Cluster;
use crate::redis::RedisServer;

/// What a site's ids are in. Dropping it kills it.
pub enum Store {
    /// One server.
    Server(RedisServer),
    /// A cluster.
    Cluster(Cluster),
}

/// A connection to it that finds each key.
#[derive(Clone)]
pub enum Connection {
    /// To the server.
    Server(MultiplexedConnection),
    /// To the cluster's nodes.
    Cluster(ClusterConnection),
}

impl Store {
    /// What `redis_urls` has to be.
    #[must_use]
    pub fn urls(&self) -> String {
        match self {
            Self::Server(server) => server.url(),
            Self::Cluster(cluster) => cluster.urls(),
        }
    }

    /// Its servers: one, or all nodes.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        match self {
            Self::Server(server) => std::slice::from_ref(server),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// The server, for what is about one.
    ///
    /// # Panics
    /// If it is a cluster.
    #[must_use]
    #[track_caller]
    pub fn server(&self) -> &RedisServer {
        match self {
            Self::Server(server) => server,
            Self::Cluster(_) => panic!("this is about one server, and there is a cluster"),
        }
    }

    /// The cluster, for what is about one.
    ///
    /// # Errors
    /// If it is one server.
    pub fn cluster(&mut self) -> Result<&mut Cluster> {
        match self {
            Self::Server(_) => bail!("this is about a cluster, and there is one server"),
            Self::Cluster(cluster) => Ok(cluster),
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// When no server answers within seconds.
    pub async fn connection(&self) -> Result<Connection> {
        Ok(match self {
            Self::Server(server) => Connection::Server(server.connection().await?),
            Self::Cluster(cluster) => Connection::Cluster(cluster.connection().await?),
        })
    }

    /// Sets a parameter of each server's configuration (`CONFIG SET`).
    ///
    /// # Errors
    /// When one does not answer, or refuses.
    pub async fn set(&self, parameter: &str, value: &str) -> Result<()> {
        for server in self.servers() {
            server.set(parameter, value).await?;
        }
        Ok(())
    }

    /// Ends it without warning.
    pub fn kill(&self) {
        self.servers().iter().for_each(RedisServer::kill);
    }

    /// Makes it accept connections and answer nothing, until [`Self::resume`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pause(&self) -> Result<()> {
        self.servers().iter().try_for_each(RedisServer::pause)
    }

    /// Undoes [`Self::pause`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resume(&self) -> Result<()> {
        self.servers().iter().try_for_each(RedisServer::resume)
    }

    /// Starts it again, all of it, where it was.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        match self {
            Self::Server(server) => server.restart().await,
            Self::Cluster(cluster) => cluster.restart_all().await,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(server) => server.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(server) => server.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}
