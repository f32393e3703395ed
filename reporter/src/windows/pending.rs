//! What a leader writes down before it does it, so that whoever leads after it finishes the same and nothing else.
//!
//! Values of the hash `ns:reports:L:pending`, by the window's start, as JSON. Removed once what they announce is recorded.

use serde::{Deserialize, Serialize};
use verve_protocol::{Window, WindowRecord};

/// What was begun with a window.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pending {
    /// A record, which Kafka may have or not have. It is published again exactly as it is, whatever was counted since.
    Publish {
        count: u64,
        revision: u64,
        requests: u64,
        duplicates: u64,
        #[serde(default, skip_serializing_if = "is_none")]
        late: u64,
    },
    /// A window that is final: what it was counted by is being removed.
    Remove,
}

const fn is_none(late: &u64) -> bool {
    *late == 0
}

impl Pending {
    /// That `record` is being published.
    pub fn publish(record: &WindowRecord) -> Self {
        Self::Publish {
            count: record.count,
            revision: record.revision,
            requests: record.requests,
            duplicates: record.duplicates,
            late: record.late,
        }
    }

    /// The record of `window` that is being published, if that is what was begun.
    pub fn record(&self, window: Window) -> Option<WindowRecord> {
        match *self {
            Self::Publish {
                count,
                revision,
                requests,
                duplicates,
                late,
            } => Some(WindowRecord {
                window,
                count,
                revision,
                requests,
                duplicates,
                late,
            }),
            Self::Remove => None,
        }
    }

    /// The value in Redis.
    pub fn to_json(&self) -> String {
        // Numbers and lists of them always serialise.
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("plain data"))
    }

    /// Reads the value in Redis.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_pinned() {
        let publish = Pending::Publish {
            count: 5,
            revision: 1,
            requests: 9,
            duplicates: 4,
            late: 0,
        };
        let late = Pending::Publish {
            count: 5,
            revision: 2,
            requests: 9,
            duplicates: 4,
            late: 3,
        };
        for (pending, json) in [
            (
                publish,
                r#"{"publish":{"count":5,"revision":1,"requests":9,"duplicates":4}}"#,
            ),
            (
                late,
                r#"{"publish":{"count":5,"revision":2,"requests":9,"duplicates":4,"late":3}}"#,
            ),
            (Pending::Remove, r#""remove""#),
        ] {
            assert_eq!(pending.to_json(), json);
            assert_eq!(Pending::from_json(json).expect("readable"), pending);
        }
        assert!(Pending::from_json("{}").is_err());
    }
}
