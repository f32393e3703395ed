//! Streams and their consumer groups.

use std::collections::BTreeMap;

use super::Answer;

/// The id of an entry: a time in milliseconds, and a number within it.
type EntryId = (u64, u64);

/// A stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The fields and values of each entry.
    pub entries: BTreeMap<EntryId, Vec<String>>,
    /// The id of the newest entry that ever existed.
    last: EntryId,
    groups: BTreeMap<String, Group>,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    /// The newest entry that was delivered to a consumer.
    last: EntryId,
    /// When each consumer was last active, in Unix milliseconds.
    consumers: BTreeMap<String, u64>,
    /// The entries that are not acknowledged, each with its consumer and delivery time.
    pending: BTreeMap<EntryId, (String, u64)>,
}

/// Formats an id.
fn written((at, number): EntryId) -> String {
    format!("{at}-{number}")
}

/// Parses an id.
fn read(id: &str) -> EntryId {
    let (at, number) = id.split_once('-').unwrap_or((id, "0"));
    (at.parse().unwrap_or_default(), number.parse().unwrap_or_default())
}

fn entry(id: EntryId, fields: &[String]) -> Answer {
    let fields = fields.iter().cloned().map(Answer::Text).collect();
    Answer::Many(vec![Answer::Text(written(id)), Answer::Many(fields)])
}

fn count(count: usize) -> Answer {
    Answer::Number(i64::try_from(count).unwrap_or(i64::MAX))
}

impl Stream {
    /// `XADD`.
    pub fn add(&mut self, now_ms: u64, fields: &[String]) -> Answer {
        // The id must increase, even if the clock was set back.
        self.last = self.last.max((now_ms, 0));
        if self.last.0 > now_ms || self.entries.contains_key(&self.last) {
            self.last.1 += 1;
        }
        self.entries.insert(self.last, fields.to_vec());
        Answer::Text(written(self.last))
    }

    /// `XRANGE` of one entry.
    pub fn entry(&self, id: &str) -> Answer {
        let id = read(id);
        let found = self.entries.get(&id).map(|fields| entry(id, fields));
        Answer::Many(found.into_iter().collect())
    }

    /// `XDEL`.
    pub fn delete(&mut self, ids: &[String]) -> Answer {
        count(ids.iter().filter(|id| self.entries.remove(&read(id)).is_some()).count())
    }

    /// `XTRIM … MAXLEN`.
    pub fn trim(&mut self, most: usize) -> Answer {
        let over = self.entries.len().saturating_sub(most);
        (0..over).for_each(|_| drop(self.entries.pop_first()));
        count(over)
    }

    /// `XGROUP CREATE`, from the first entry on. Returns whether the group is new.
    pub fn create_group(&mut self, group: &str) -> bool {
        let is_new = !self.groups.contains_key(group);
        self.groups.entry(group.to_owned()).or_default();
        is_new
    }

    /// `XACK`.
    pub fn acknowledge(&mut self, group: &str, ids: &[String]) -> Answer {
        let group = self.groups.get_mut(group);
        count(group.map_or(0, |group| {
            ids.iter()
                .filter(|id| group.pending.remove(&read(id)).is_some())
                .count()
        }))
    }

    /// `XREADGROUP` of new entries; `None` if the group does not exist.
    pub fn read_group(&mut self, group: &str, consumer: &str, most: usize, now_ms: u64) -> Option<Vec<Answer>> {
        let group = self.groups.get_mut(group)?;
        group.consumers.insert(consumer.to_owned(), now_ms);
        let (at, number) = group.last;
        let new = self.entries.range((at, number + 1)..).take(most);
        let new: Vec<(EntryId, Answer)> = new.map(|(id, fields)| (*id, entry(*id, fields))).collect();
        for (id, _) in &new {
            group.last = *id;
            group.pending.insert(*id, (consumer.to_owned(), now_ms));
        }
        Some(new.into_iter().map(|(_, entry)| entry).collect())
    }

    /// `XAUTOCLAIM` from the first entry on; `None` if the group does not exist.
    pub fn claim(&mut self, group: &str, consumer: &str, idle_ms: u64, most: usize, now_ms: u64) -> Option<Answer> {
        let group = self.groups.get_mut(group)?;
        group.consumers.insert(consumer.to_owned(), now_ms);
        let (mut claimed, mut gone, mut next) = (Vec::new(), Vec::new(), (0, 0));
        let pending: Vec<EntryId> = group.pending.keys().copied().collect();
        for (looked, id) in pending.into_iter().enumerate() {
            if claimed.len() + gone.len() == most || looked == 10 * most {
                next = id;
                break;
            }
            let Some(fields) = self.entries.get(&id) else {
                group.pending.remove(&id);
                gone.push(Answer::Text(written(id)));
                continue;
            };
            let is_idle = |(_, at): &(String, u64)| now_ms.saturating_sub(*at) >= idle_ms;
            if group.pending.get(&id).is_some_and(is_idle) {
                group.pending.insert(id, (consumer.to_owned(), now_ms));
                claimed.push(entry(id, fields));
            }
        }
        Some(Answer::Many(vec![
            Answer::Text(written(next)),
            Answer::Many(claimed),
            Answer::Many(gone),
        ]))
    }

    /// `XINFO CONSUMERS`; `None` if the group does not exist.
    pub fn consumers(&self, group: &str, now_ms: u64) -> Option<Answer> {
        let group = self.groups.get(group)?;
        let consumer = |(name, seen): (&String, &u64)| {
            let pending = group.pending.values().filter(|(consumer, _)| consumer == name);
            Answer::Many(vec![
                Answer::Text("name".to_owned()),
                Answer::Text(name.clone()),
                Answer::Text("pending".to_owned()),
                count(pending.count()),
                Answer::Text("idle".to_owned()),
                Answer::Number(now_ms.saturating_sub(*seen).cast_signed()),
            ])
        };
        Some(Answer::Many(group.consumers.iter().map(consumer).collect()))
    }

    /// `XGROUP DELCONSUMER`; `None` if the group does not exist.
    pub fn delete_consumer(&mut self, group: &str, consumer: &str) -> Option<Answer> {
        let group = self.groups.get_mut(group)?;
        let before = group.pending.len();
        group.pending.retain(|_, (owner, _)| owner != consumer);
        group.consumers.remove(consumer);
        Some(count(before - group.pending.len()))
    }
}
