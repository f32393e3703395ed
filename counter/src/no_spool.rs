//! In place of the spool, in a build for hosts that have no SQLite: nothing can be put into it, and nothing is ever there.

use verve_protocol::{Id, SpoolState};

use crate::batches::{Batch, Contents, SpooledIds};
use crate::config::Config;

/// Why nothing is there.
const NONE: &str = "no spool: the component was built without one";

/// No database.
pub struct Spool;

impl Spool {
    /// No spool, whatever its limit and whoever's.
    pub const fn new(_limit: u64, _config: &Config) -> Self {
        Self
    }

    /// Refuses.
    pub async fn add_ids(&self, _key: String, _ids: &[Id]) -> Result<(), String> {
        Err(NONE.to_owned())
    }

    /// Refuses.
    pub async fn add_command(&self, _words: Vec<String>) -> Result<(), String> {
        Err(NONE.to_owned())
    }

    /// Refuses.
    pub async fn add_batch(&self, _batch: &Batch) -> Result<(), String> {
        Err(NONE.to_owned())
    }

    /// None.
    pub async fn sets(&self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    /// None.
    pub async fn ids(&self, _key: &str) -> Result<SpooledIds, String> {
        Ok(SpooledIds::default())
    }

    /// Nothing to remove.
    pub async fn remove_ids(&self, _ids: &SpooledIds) -> Result<(), String> {
        Ok(())
    }

    /// None.
    pub async fn batch(&self) -> Result<Option<Batch>, String> {
        Ok(None)
    }

    /// Nothing to remove.
    pub async fn remove_batch(&self, _name: &str) -> Result<(), String> {
        Ok(())
    }

    /// None.
    pub async fn state(&self, _told_s: u64) -> Result<Option<(String, SpoolState)>, String> {
        Ok(None)
    }

    /// Nothing to rename.
    pub async fn rename(&self, _name: &str, _drained: u64) -> Result<(), String> {
        Ok(())
    }

    /// Nothing.
    pub async fn contents(&self) -> Result<Contents, String> {
        Ok(Contents::default())
    }

    /// Tells nobody.
    pub async fn tell(&self, _name: &str, _until: u64) -> Result<(), String> {
        Ok(())
    }

    /// Nobody drains what is not there.
    pub async fn claim(&self, _name: &str, _now: u64, _for_ms: u64) -> Result<bool, String> {
        Ok(false)
    }

    /// Tells nobody.
    pub async fn untell(&self, _name: &str) -> Result<(), String> {
        Ok(())
    }
}
