//! The series of the run: each counter in windows of each length.

use verve_protocol::{CounterName, Keys, Window, WindowLength, WindowLengths};
use verve_tests::clock;
use verve_tests::kafka::Record;

use crate::tally::Tally;
use crate::traffic::counter_of;

/// A counter in windows of one length.
pub struct Series {
    counter: Option<CounterName>,
    /// The place of the counter among all, and their number.
    place: (usize, usize),
    length: WindowLength,
    /// `None` if its windows are the main ones, else how many of those each has.
    longer: Option<u64>,
    /// Its windows during the run.
    pub windows: Vec<Window>,
}

impl Series {
    /// Returns all series, with their windows since `begin_ms`.
    ///
    /// The first one is of the counter without a name and of main windows.
    pub fn all(counters: &[Option<CounterName>], lengths: &WindowLengths, begin_ms: u64) -> Vec<Self> {
        let mut all = Vec::new();
        for length in lengths.all() {
            let longer = (length != lengths.main()).then(|| length.seconds() / lengths.main().seconds());
            for (number, counter) in counters.iter().enumerate() {
                all.push(Self {
                    counter: counter.clone(),
                    place: (number, counters.len()),
                    length,
                    longer,
                    windows: windows_since(begin_ms, length),
                });
            }
        }
        all
    }

    /// Returns its name in messages.
    ///
    /// It is empty for the counter without a name and main windows.
    pub fn name(&self) -> String {
        let counter = self.counter.iter().map(|name| name.as_str().to_owned());
        let longer = self.longer.map(|_| self.length.iso_8601());
        let parts: Vec<String> = counter.chain(longer).collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!(" ({})", parts.join(", ")),
        }
    }

    /// Returns whether it is of a named counter.
    pub const fn is_named(&self) -> bool {
        self.counter.is_some()
    }

    /// Returns the keys of its counter.
    pub fn keys(&self, unnamed: &Keys) -> Keys {
        match &self.counter {
            Some(name) => unnamed.named(name.clone()),
            None => unnamed.clone(),
        }
    }

    /// Returns its records.
    ///
    /// Their keys are as if the counter had no name and the windows were main ones.
    pub fn records(&self, records: &[Record]) -> Vec<Record> {
        let name = self.counter.as_ref().map(CounterName::as_str);
        let seconds = self.length.seconds().to_string();
        let of_it = records.iter().filter(|record| {
            let header = |name| record.headers.get(name).map(String::as_str);
            header("counter") == name && header("window-seconds") == Some(&seconds)
        });
        let prefix = name.map(|name| format!("{name}/")).unwrap_or_default();
        let suffix = self.longer.map(|_| format!("/{}", self.length.iso_8601()));
        let plain = |record: &Record| {
            let key = record.key.strip_prefix(&prefix).unwrap_or(&record.key);
            Record {
                key: key
                    .strip_suffix(&suffix.clone().unwrap_or_default())
                    .unwrap_or(key)
                    .to_owned(),
                ..record.clone()
            }
        };
        of_it.map(plain).collect()
    }

    /// Returns the requests for its counter, by its windows.
    pub fn tally(&self, tally: &Tally) -> Tally {
        let (place, counters) = self.place;
        tally.of(|id| counter_of(id, counters) == place, self.longer.unwrap_or(1))
    }
}

/// Returns the windows from the one open at `begin_ms` to the one open now.
fn windows_since(begin_ms: u64, length: WindowLength) -> Vec<Window> {
    let last = clock::current_window(length);
    let mut windows = vec![length.window_at_ms(begin_ms)];
    while let Some(window) = windows.last().filter(|window| **window < last) {
        windows.push(window.next());
    }
    windows
}
