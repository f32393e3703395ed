//! What is known of a reported window, and what is published of it.

use serde::{Deserialize, Serialize};

use crate::Window;

/// What was last reported of a window: a value of the hash `ns:reports:L`, as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// Unique ids in the window.
    pub count: u64,
    /// 0 for the first report, one more for each correction.
    pub revision: u64,
    /// When it was reported, in milliseconds since the Unix epoch.
    pub time: u64,
    /// Whether the window's late period is over, so that it is watched no longer.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    pub is_final: bool,
}

impl Report {
    /// The value in Redis.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A struct of numbers always serialises.
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("a report is plain data"))
    }

    /// Reads the value in Redis.
    ///
    /// # Errors
    /// When the text is no report.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

/// The Kafka record of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowRecord {
    /// The window it tells of.
    pub window: Window,
    /// Unique ids in the window.
    pub count: u64,
    /// 0 for the first record of the window, one more for each correction.
    pub revision: u64,
    /// Requests in the window, as far as the component's statistics have arrived.
    pub requests: u64,
    /// Requests whose id was in the window already, likewise.
    pub duplicates: u64,
}

impl WindowRecord {
    /// The record's key: the window's start, `2026-11-22T21:30:00Z`.
    #[must_use]
    pub fn key(&self) -> String {
        self.window.to_string()
    }

    /// The record's value: the count in decimal.
    #[must_use]
    pub fn value(&self) -> String {
        self.count.to_string()
    }

    /// The record's headers, numbers in decimal.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, String); 4] {
        [
            ("revision", self.revision.to_string()),
            ("window-seconds", self.window.length().to_string()),
            ("requests", self.requests.to_string()),
            ("duplicates", self.duplicates.to_string()),
        ]
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
        };
        assert_eq!(record.key(), "2026-11-22T21:30:00Z");
        assert_eq!(record.value(), "1234");
        let headers = record.headers();
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
    }

    #[test]
    fn the_report_is_pinned() {
        let report = Report {
            count: 5,
            revision: 1,
            time: 1_795_383_062_000,
            is_final: false,
        };
        assert_eq!(report.to_json(), r#"{"count":5,"revision":1,"time":1795383062000}"#);
        assert_eq!(
            Report {
                is_final: true,
                ..report
            }
            .to_json(),
            r#"{"count":5,"revision":1,"time":1795383062000,"final":true}"#
        );
        assert!(Report::from_json("{}").is_err());
        assert!(Report::from_json("5").is_err());
    }

    proptest! {
        #[test]
        fn a_report_reads_back(count: u64, revision: u64, time: u64, is_final: bool) {
            let report = Report { count, revision, time, is_final };
            prop_assert_eq!(Report::from_json(&report.to_json()).expect("a report"), report);
        }
    }
}
