//! The Redis of a site: one server, or a cluster.

use anyhow::{Result, bail};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, Value};

use crate::cluster::Cluster;
use crate::redis::RedisServer;

/// The Redis that has a site's ids. Dropping it kills it.
pub enum Store {
    /// One server.
    Server(RedisServer),
    /// A cluster.
    Cluster(Cluster),
}

/// A connection that finds the node of each key.
#[derive(Clone)]
pub enum Connection {
    /// To the server.
    Server(MultiplexedConnection),
    /// To the cluster's nodes.
    Cluster(ClusterConnection),
}

impl Store {
    /// Returns the value for `redis_urls`.
    #[must_use]
    pub fn urls(&self) -> String {
        match self {
            Self::Server(server) => server.url(),
            Self::Cluster(cluster) => cluster.urls(),
        }
    }

    /// Returns its servers: the one server, or all nodes.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        match self {
            Self::Server(server) => std::slice::from_ref(server),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Returns the server, for tests that need a single server.
    ///
    /// # Panics
    /// Panics if it is a cluster.
    #[must_use]
    #[track_caller]
    pub fn server(&self) -> &RedisServer {
        match self {
            Self::Server(server) => server,
            Self::Cluster(_) => panic!("this is about one server, and there is a cluster"),
        }
    }

    /// Returns the cluster, for tests that need a cluster.
    ///
    /// # Errors
    /// Fails if it is one server.
    pub fn cluster(&mut self) -> Result<&mut Cluster> {
        match self {
            Self::Server(_) => bail!("this is about a cluster, and there is one server"),
            Self::Cluster(cluster) => Ok(cluster),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Fails if no server answers in time.
    pub async fn connection(&self) -> Result<Connection> {
        Ok(match self {
            Self::Server(server) => Connection::Server(server.connection().await?),
            Self::Cluster(cluster) => Connection::Cluster(cluster.connection().await?),
        })
    }

    /// Sets a parameter of each server's configuration (`CONFIG SET`).
    ///
    /// # Errors
    /// Fails if a server does not answer or refuses.
    pub async fn set(&self, parameter: &str, value: &str) -> Result<()> {
        for server in self.servers() {
            server.set(parameter, value).await?;
        }
        Ok(())
    }

    /// Kills all servers.
    pub fn kill(&self) {
        self.servers().iter().for_each(RedisServer::kill);
    }

    /// Makes all servers accept connections but answer nothing, until [`Self::resume`].
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn pause(&self) -> Result<()> {
        self.servers().iter().try_for_each(RedisServer::pause)
    }

    /// Reverts [`Self::pause`].
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn resume(&self) -> Result<()> {
        self.servers().iter().try_for_each(RedisServer::resume)
    }

    /// Restarts all servers, on the same ports with the same folders.
    ///
    /// # Errors
    /// Fails if a server does not start.
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
