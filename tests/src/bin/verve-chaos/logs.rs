//! The logs of the parts and of the faults, kept in case the run fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use verve_tests::paths;

use crate::schedule::Part;

/// The logs by name.
pub struct Logs {
    begin: Instant,
    texts: Mutex<BTreeMap<String, String>>,
}

impl Logs {
    /// Creates empty logs. Times are relative to this call.
    pub fn new() -> Self {
        Self {
            begin: Instant::now(),
            texts: Mutex::default(),
        }
    }

    /// Prints a line about an event, and keeps it.
    pub fn event(&self, text: &str) {
        let line = format!("{:7.1} s  {text}\n", self.begin.elapsed().as_secs_f64());
        print!("{line}");
        self.keep("events", &line);
    }

    /// Adds the output of one process of a part.
    pub fn add(&self, part: &Part, text: &str) {
        let until = self.begin.elapsed().as_secs_f64();
        self.keep(&part.to_string(), &format!("{text}--- until {until:.1} s\n"));
    }

    /// Adds a text of another kind.
    pub fn keep(&self, name: &str, text: &str) {
        self.texts().entry(name.to_owned()).or_default().push_str(text);
    }

    /// Writes all logs into `target/chaos/<seed>/`, and returns this folder.
    pub fn save(&self, seed: u64) -> Result<PathBuf> {
        let folder = paths::target().join("chaos").join(seed.to_string());
        let context = || format!("cannot write to {}", folder.display());
        fs::create_dir_all(&folder).with_context(context)?;
        for (name, text) in &*self.texts() {
            fs::write(folder.join(format!("{name}.log")), text).with_context(context)?;
        }
        Ok(folder)
    }

    fn texts(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
