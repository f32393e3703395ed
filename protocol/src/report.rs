//! The stored report of a window, and its published record.

use serde::{Deserialize, Serialize};

use crate::{CounterName, Window, WindowLengths};

/// The last report of a window: a value of the hash `{ns}:reports:L`, as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The number of unique ids in the window.
    pub count: u64,
    /// 0 for the first report, one more for each correction.
    pub revision: u64,
    /// The time of this report, in milliseconds since the Unix epoch.
    pub time: u64,
    /// The time of the first report, likewise. The allowed lateness starts here.
    #[serde(default)]
    pub first: u64,
    /// Requests in the window, according to the statistics that had arrived.
    #[serde(default)]
    pub requests: u64,
    /// Requests whose id was already in the window, likewise.
    #[serde(default)]
    pub duplicates: u64,
    /// The number of late ids, as far as they are reported.
    #[serde(default, skip_serializing_if = "is_none")]
    pub late: u64,
    /// Whether the allowed lateness is over, so that the window is no longer watched.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    pub is_final: bool,
}

const fn is_none(late: &u64) -> bool {
    *late == 0
}

impl Report {
    /// Returns the value in Redis.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A struct of numbers always serialises.
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("a report is plain data"))
    }

    /// Parses the value in Redis.
    ///
    /// # Errors
    /// If the text is not a report.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

/// The Kafka record of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowRecord {
    /// The window whose count this is.
    pub window: Window,
    /// The number of unique ids in the window.
    pub count: u64,
    /// 0 for the first record of the window, one more for each correction.
    pub revision: u64,
    /// Requests in the window, according to the statistics that have arrived.
    pub requests: u64,
    /// Requests whose id was already in the window, likewise.
    pub duplicates: u64,
    /// Ids that arrived after the window was final.
    ///
    /// They are not in the count, though some of them may be new.
    pub late: u64,
}

impl WindowRecord {
    /// Returns the key of the record, in a deployment with these lengths.
    ///
    /// For example `2026-11-22T21:30:00Z`, or `logins/2026-11-22T21:30:00Z` for a named counter.
    /// See [`WindowLengths::key`] for windows that are longer than the main ones.
    #[must_use]
    pub fn key(&self, counter: Option<&CounterName>, lengths: &WindowLengths) -> String {
        let key = lengths.key(self.window);
        match counter {
            None => key,
            Some(counter) => format!("{counter}/{key}"),
        }
    }

    /// Returns the value of the record: the count in decimal.
    #[must_use]
    pub fn value(&self) -> String {
        self.count.to_string()
    }

    /// Returns the headers of the record, with numbers in decimal.
    ///
    /// `late` is present only if there are late ids, and `counter` only for a named counter.
    #[must_use]
    pub fn headers(&self, counter: Option<&CounterName>) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("revision", self.revision.to_string()),
            ("window-seconds", self.window.length().to_string()),
            ("requests", self.requests.to_string()),
            ("duplicates", self.duplicates.to_string()),
        ];
        if self.late > 0 {
            headers.push(("late", self.late.to_string()));
        }
        if let Some(counter) = counter {
            headers.push(("counter", counter.to_string()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WindowLength;
    use proptest::prelude::*;

    #[test]
    fn the_record_is_pinned() {
        let window = WindowLength::try_new(60)
            .expect("valid")
            .window_starting(1_795_383_000)
            .expect("a start");
        let record = WindowRecord {
            window,
            count: 1234,
            revision: 1,
            requests: 2000,
            duplicates: 766,
            late: 0,
        };
        let lengths = WindowLengths::from(window.length());
        assert_eq!(record.key(None, &lengths), "2026-11-22T21:30:00Z");
        assert_eq!(record.value(), "1234");
        let headers = record.headers(None);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(
            headers,
            [
                ("revision", "1"),
                ("window-seconds", "60"),
                ("requests", "2000"),
                ("duplicates", "766")
            ]
        );
        let late = WindowRecord { late: 3, ..record };
        assert_eq!(late.headers(None)[4], ("late", "3".to_owned()));
        let counter: CounterName = "logins".parse().expect("valid");
        assert_eq!(record.key(Some(&counter), &lengths), "logins/2026-11-22T21:30:00Z");
        assert_eq!(record.headers(Some(&counter))[4], ("counter", "logins".to_owned()));
    }

    #[test]
    fn the_report_is_pinned() {
        let report = Report {
            count: 5,
            revision: 1,
            time: 1_795_383_062_000,
            first: 1_795_383_061_000,
            requests: 9,
            duplicates: 4,
            late: 0,
            is_final: false,
        };
        assert_eq!(
            report.to_json(),
            r#"{"count":5,"revision":1,"time":1795383062000,"first":1795383061000,"requests":9,"duplicates":4}"#
        );
        assert_eq!(
            Report {
                late: 2,
                is_final: true,
                ..report
            }
            .to_json(),
            r#"{"count":5,"revision":1,"time":1795383062000,"first":1795383061000,"requests":9,"duplicates":4,"late":2,"final":true}"#
        );
        assert!(Report::from_json("{}").is_err());
        assert!(Report::from_json("5").is_err());
    }

    proptest! {
        #[test]
        fn a_report_reads_back(numbers: [u64; 7], is_final: bool) {
            let [count, revision, time, first, requests, duplicates, late] = numbers;
            let report = Report { count, revision, time, first, requests, duplicates, late, is_final };
            prop_assert_eq!(Report::from_json(&report.to_json()).expect("a report"), report);
        }
    }
}
