//! The steps that a leader stores before it takes them.
//!
//! The next leader then finishes the same steps and no others. They are values of the hash
//! `{ns}:reports:L:pending`, by the window's start, as JSON. A value is removed once the step is
//! recorded.

use serde::{Deserialize, Serialize};
use verve_protocol::{Window, WindowRecord};

/// A step that was begun for a window.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pending {
    /// A record that Kafka may or may not have.
    /// It is published again unchanged, even if the count has changed since.
    Publish {
        count: u64,
        revision: u64,
        requests: u64,
        duplicates: u64,
        #[serde(default, skip_serializing_if = "is_none")]
        late: u64,
    },
    /// The window is final, and its closed sets are being removed.
    Remove,
}

const fn is_none(late: &u64) -> bool {
    *late == 0
}

impl Pending {
    /// Returns the step that publishes `record`.
    pub fn publish(record: &WindowRecord) -> Self {
        Self::Publish {
            count: record.count,
            revision: record.revision,
            requests: record.requests,
            duplicates: record.duplicates,
            late: record.late,
        }
    }

    /// Returns the record of `window`, if the step is to publish one.
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

    /// Returns the value for Redis.
    pub fn to_json(&self) -> String {
        // Plain numbers always serialise.
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("plain data"))
    }

    /// Parses the value from Redis.
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
