//! A real Kafka for one test, which can kill, pause, restart or cut it off.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use tempfile::TempDir;

use crate::kafka::Kafka;
use crate::link::Link;
use crate::net;
use crate::process::Process;

/// A broker behind a [`Link`], with a folder of its own for its data.
///
/// Dropping it kills it.
pub struct Broker {
    kafka: Kafka,
    link: Arc<Link>,
    port: u16,
    folder: TempDir,
}

impl Broker {
    /// Starts a broker and waits until it answers.
    ///
    /// # Errors
    /// See [`Kafka::real`].
    pub async fn start() -> Result<Self> {
        let port = net::free_address()?.port();
        let link = Arc::new(Link::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?);
        let folder = tempfile::tempdir()?;
        let kafka = Kafka::real_behind(link.address().port(), port, folder.path()).await?;
        Ok(Self {
            kafka,
            link,
            port,
            folder,
        })
    }

    /// Returns the broker as clients see it: through the link.
    #[must_use]
    pub const fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Returns the link that all clients use.
    #[must_use]
    pub const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Returns the broker's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        let process = self.kafka.process();
        process.unwrap_or_else(|| unreachable!("a broker that we started"))
    }

    /// Kills the broker if it still runs, and restarts it without its data.
    ///
    /// # Errors
    /// See [`Kafka::real`].
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.process().kill();
        self.folder = tempfile::tempdir()?;
        self.restart().await
    }

    /// Kills the broker if it still runs, and restarts it with all its data.
    ///
    /// # Errors
    /// See [`Kafka::real`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process().kill();
        self.kafka = Kafka::real_behind(self.link.address().port(), self.port, self.folder.path()).await?;
        Ok(())
    }
}
