//! In place of the spool, in a build for hosts that have no SQLite: nothing can be put into it, and nothing is ever there.

use verve_protocol::{Id, SpoolState};

use verve_counter_core::config::Config;
use verve_counter_core::spooled::{Batch, Contents, SpoolError, SpooledIds};

/// No database.
pub struct Spool;

impl Spool {
    /// No spool, whatever its limit and whoever's.
    pub const fn new(_limit: u64, _config: &Config) -> Self {
        Self
    }

    /// Refuses.
    pub async fn add_ids(&self, _key: String, _ids: &[Id]) -> Result<(), SpoolError> {
        Err(SpoolError::None)
    }

    /// Refuses.
    pub async fn add_command(&self, _words: Vec<String>) -> Result<(), SpoolError> {
        Err(SpoolError::None)
    }

    /// Refuses.
    pub async fn add_batch(&self, _batch: &Batch) -> Result<(), SpoolError> {
        Err(SpoolError::None)
    }

    /// None.
    pub async fn sets(&self) -> Result<Vec<String>, SpoolError> {
        Ok(Vec::new())
    }

    /// None.
    pub async fn ids(&self, _key: &str) -> Result<SpooledIds, SpoolError> {
        Ok(SpooledIds::default())
    }

    /// Nothing to remove.
    pub async fn remove_ids(&self, _ids: &SpooledIds) -> Result<(), SpoolError> {
        Ok(())
    }

    /// None.
    pub async fn batch(&self) -> Result<Option<Batch>, SpoolError> {
        Ok(None)
    }

    /// Nothing to remove.
    pub async fn remove_batch(&self, _name: &str) -> Result<(), SpoolError> {
        Ok(())
    }

    /// None.
    pub async fn state(&self, _told_s: u64) -> Result<Option<(String, SpoolState)>, SpoolError> {
        Ok(None)
    }

    /// Nothing to rename.
    pub async fn rename(&self, _name: &str, _drained: u64) -> Result<(), SpoolError> {
        Ok(())
    }

    /// Nothing.
    pub async fn contents(&self) -> Result<Contents, SpoolError> {
        Ok(Contents::default())
    }

    /// Tells nobody.
    pub async fn tell(&self, _name: &str, _until: u64) -> Result<(), SpoolError> {
        Ok(())
    }

    /// Nobody drains what is not there.
    pub async fn claim(&self, _name: &str, _now: u64, _for_ms: u64) -> Result<bool, SpoolError> {
        Ok(false)
    }

    /// Tells nobody.
    pub async fn untell(&self, _name: &str) -> Result<(), SpoolError> {
        Ok(())
    }
}
