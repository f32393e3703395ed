//! The keys and values of a server.

use std::collections::{BTreeMap, BTreeSet};

use super::Answer;
use super::stream::Stream;

/// The content of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// When it expires, in Unix milliseconds, if it does.
    pub expires_ms: Option<u64>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A set.
    Set(BTreeSet<String>),
    /// A hash.
    Hash(BTreeMap<String, String>),
    /// A sorted set.
    Sorted(BTreeMap<String, f64>),
    /// A stream.
    Stream(Stream),
}

/// A server's data.
#[derive(Default)]
pub struct Data {
    pub entries: BTreeMap<String, Entry>,
    now_us: u64,
    is_full: bool,
    /// Whether the current command has changed something.
    pub has_written: bool,
    /// The earliest time at which an entry expires, in Unix milliseconds.
    ///
    /// 0 means that it has to be determined again.
    pub next_ms: u64,
}

/// The commands that a full server refuses.
const GROWING: [&str; 8] = [
    "HINCRBY",
    "HSET",
    "HSETNX",
    "SADD",
    "SET",
    "SUNIONSTORE",
    "XADD",
    "ZADD",
];
/// Other commands that write.
///
/// A script that begins with one of them may continue with all commands.
const WRITING: [&str; 15] = [
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "HDEL",
    "PEXPIRE",
    "RENAME",
    "SREM",
    "UNLINK",
    "XACK",
    "XAUTOCLAIM",
    "XDEL",
    "XGROUP",
    "XREADGROUP",
    "XTRIM",
    "ZREM",
];

/// The commands that change something, or may do so, even if they answer 0.
const CHANGING: [&str; 4] = ["HINCRBY", "HSET", "SUNIONSTORE", "ZADD"];

type Done = Result<Answer, &'static str>;

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const SYNTAX: &str = "ERR syntax error";
const NO_GROUP: &str = "NOGROUP No such key or consumer group";
const NO_NUMBER: &str = "ERR value is not an integer or out of range";

/// Borrows the value of a key with the expected type; creates it if there is none.
macro_rules! value {
    ($data:expr, $key:expr, $kind:ident) => {{
        let entry = $data.entries.entry($key.clone()).or_insert_with(|| Entry {
            value: Value::$kind(Default::default()),
            expires_ms: None,
        });
        match &mut entry.value {
            Value::$kind(value) => Ok(value),
            _ => Err(WRONG_TYPE),
        }
    }};
}

/// Removes elements from the value of a key, and the key if nothing is left.
macro_rules! remove {
    ($data:expr, $key:expr, $kind:ident, $names:expr) => {{
        let Some(entry) = $data.entries.get_mut($key) else {
            return number(0);
        };
        let Value::$kind(value) = &mut entry.value else {
            return Err(WRONG_TYPE);
        };
        let before = value.len();
        for name in $names {
            value.remove(name);
        }
        let removed = before - value.len();
        if value.is_empty() {
            $data.entries.remove($key);
        }
        number(removed)
    }};
}

/// Borrows the value of a key with the expected type, for reading.
macro_rules! look {
    ($data:expr, $key:expr, $kind:ident) => {
        match $data.entries.get($key).map(|entry| &entry.value) {
            Some(Value::$kind(value)) => Ok(Some(value)),
            Some(_) => Err(WRONG_TYPE),
            None => Ok(None),
        }
    };
}

fn number(count: usize) -> Done {
    Ok(Answer::Number(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn flag(is_set: bool) -> Done {
    Ok(Answer::Number(i64::from(is_set)))
}

impl Data {
    /// Begins a command: removes the entries that have expired.
    ///
    /// `is_full` means that the server refuses to grow, until the command ends.
    pub fn begin(&mut self, now_us: u64, is_full: bool) {
        (self.now_us, self.is_full, self.has_written) = (now_us, is_full, false);
        let now_ms = now_us / 1000;
        if now_ms >= self.next_ms {
            let expires = |entry: &Entry| entry.expires_ms.unwrap_or(u64::MAX);
            self.entries.retain(|_, entry| expires(entry) > now_ms);
            self.next_ms = self.entries.values().map(expires).min().unwrap_or(u64::MAX);
        }
    }

    /// Runs a command.
    pub fn execute(&mut self, name: &str, arguments: &[String]) -> Answer {
        let creates_group = name == "XGROUP" && arguments.first().is_some_and(|what| what == "CREATE");
        if GROWING.contains(&name) || creates_group {
            if self.is_full {
                return Answer::Error("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
            }
        } else if WRITING.contains(&name) {
            self.is_full = false;
        }
        match self.run(name, arguments) {
            Ok(answer) => {
                let changes = GROWING.contains(&name) || WRITING.contains(&name);
                let has_changed = !matches!(answer, Answer::Number(0) | Answer::Nil) || CHANGING.contains(&name);
                self.has_written |= changes && has_changed;
                answer
            }
            Err(error) => Answer::Error(error.to_owned()),
        }
    }

    fn run(&mut self, name: &str, arguments: &[String]) -> Done {
        match (name, arguments) {
            ("PING", []) => Ok(Answer::Status("PONG".to_owned())),
            ("TIME", []) => {
                let parts = [self.now_us / 1_000_000, self.now_us % 1_000_000];
                Ok(Answer::Many(parts.map(|part| Answer::Text(part.to_string())).into()))
            }
            ("DEL" | "UNLINK", keys) if !keys.is_empty() => {
                number(keys.iter().filter(|key| self.entries.remove(*key).is_some()).count())
            }
            ("EXISTS", [key]) => flag(self.entries.contains_key(key)),
            ("RENAME", [from, to]) => {
                let entry = self.entries.remove(from).ok_or("ERR no such key")?;
                self.entries.insert(to.clone(), entry);
                Ok(Answer::ok())
            }
            ("GET", [key]) => Ok(text(look!(self, key, Text)?)),
            ("SET", [key, value, options @ ..]) => self.set(key, value, options),
            ("EXPIRE", [key, seconds, options @ ..]) => {
                let seconds: u64 = seconds.parse().map_err(|_| NO_NUMBER)?;
                self.expire(key, self.now_us / 1000 + seconds * 1000, options)
            }
            ("PEXPIRE", [key, millis]) => {
                let millis: u64 = millis.parse().map_err(|_| NO_NUMBER)?;
                self.expire(key, self.now_us / 1000 + millis, &[])
            }
            ("EXPIREAT", [key, at, options @ ..]) => {
                let at: f64 = at.parse().map_err(|_| NO_NUMBER)?;
                self.expire(key, at as u64 * 1000, options)
            }
            ("EXPIRETIME", [key]) => Ok(Answer::Number(match self.entries.get(key) {
                None => -2,
                Some(entry) => entry.expires_ms.map_or(-1, |at| ((at + 500) / 1000).cast_signed()),
            })),
            ("SADD", [key, members @ ..]) if !members.is_empty() => {
                let set = value!(self, key, Set)?;
                number(members.iter().filter(|member| set.insert((*member).clone())).count())
            }
            ("SREM", [key, members @ ..]) if !members.is_empty() => remove!(self, key, Set, members),
            ("SCARD", [key]) => number(look!(self, key, Set)?.map_or(0, BTreeSet::len)),
            ("SISMEMBER", [key, member]) => flag(look!(self, key, Set)?.is_some_and(|set| set.contains(member))),
            ("SMISMEMBER", [key, members @ ..]) if !members.is_empty() => {
                let set = look!(self, key, Set)?;
                let is_there = |member: &String| set.is_some_and(|set| set.contains(member));
                let answers = members.iter().map(|member| Answer::Number(i64::from(is_there(member))));
                Ok(Answer::Many(answers.collect()))
            }
            ("SUNIONSTORE", [to, keys @ ..]) if !keys.is_empty() => {
                let mut all = BTreeSet::new();
                for key in keys {
                    all.extend(look!(self, key, Set)?.into_iter().flatten().cloned());
                }
                let count = all.len();
                self.entries.remove(to);
                if count > 0 {
                    value!(self, to, Set)?.extend(all);
                }
                number(count)
            }
            ("HGET", [key, field]) => Ok(text(look!(self, key, Hash)?.and_then(|hash| hash.get(field)))),
            ("HMGET", [key, fields @ ..]) if !fields.is_empty() => {
                let hash = look!(self, key, Hash)?;
                let values = fields.iter().map(|field| text(hash.and_then(|hash| hash.get(field))));
                Ok(Answer::Many(values.collect()))
            }
            ("HGETALL", [key]) => Ok(Answer::Many(pairs(look!(self, key, Hash)?.into_iter().flatten()))),
            ("HLEN", [key]) => number(look!(self, key, Hash)?.map_or(0, BTreeMap::len)),
            // Returns all fields in one answer, as Redis does for a small hash.
            ("HSCAN", [key, cursor, ..]) if cursor == "0" => {
                Ok(scanned(pairs(look!(self, key, Hash)?.into_iter().flatten())))
            }
            ("HSET", [key, pairs @ ..]) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                let hash = value!(self, key, Hash)?;
                let new = pairs
                    .chunks(2)
                    .filter(|pair| hash.insert(pair[0].clone(), pair[1].clone()).is_none());
                number(new.count())
            }
            ("HSETNX", [key, field, value]) => {
                let hash = value!(self, key, Hash)?;
                let is_new = !hash.contains_key(field);
                if is_new {
                    hash.insert(field.clone(), value.clone());
                }
                flag(is_new)
            }
            ("HDEL", [key, fields @ ..]) if !fields.is_empty() => remove!(self, key, Hash, fields),
            ("HINCRBY", [key, field, by]) => {
                let by: i64 = by.parse().map_err(|_| NO_NUMBER)?;
                let hash = value!(self, key, Hash)?;
                let before = hash.get(field).map_or(Ok(0), |value| value.parse());
                let before: i64 = before.map_err(|_| "ERR hash value is not an integer")?;
                hash.insert(field.clone(), (before + by).to_string());
                Ok(Answer::Number(before + by))
            }
            ("ZADD", [key, options @ .., score, member]) => {
                let score: f64 = score.parse().map_err(|_| "ERR value is not a valid float")?;
                let before = look!(self, key, Sorted)?.and_then(|set| set.get(member).copied());
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let is_set = match options.as_slice() {
                    [] => true,
                    ["XX"] => before.is_some(),
                    ["NX"] => before.is_none(),
                    ["XX", "GT"] => before.is_some_and(|before| before < score),
                    _ => return Err(SYNTAX),
                };
                if is_set {
                    value!(self, key, Sorted)?.insert(member.clone(), score);
                }
                flag(is_set && before.is_none())
            }
            ("ZRANGEBYSCORE", [key, least, most, limit @ ..]) if least == "-inf" => {
                let (most, is_open) = most
                    .strip_prefix('(')
                    .map_or((most.as_str(), false), |most| (most, true));
                let most: f64 = most.parse().map_err(|_| "ERR min or max is not a float")?;
                let limit = match limit {
                    [] => usize::MAX,
                    [_, first, limit] if first == "0" => limit.parse().map_err(|_| NO_NUMBER)?,
                    _ => return Err(SYNTAX),
                };
                let sorted = sorted(look!(self, key, Sorted)?).into_iter();
                let found = sorted.filter(|(_, score)| *score < most || !is_open && *score <= most);
                let found = found.take(limit).map(|(member, _)| Answer::Text(member.clone()));
                Ok(Answer::Many(found.collect()))
            }
            ("ZREM", [key, members @ ..]) if !members.is_empty() => remove!(self, key, Sorted, members),
            ("ZCARD", [key]) => number(look!(self, key, Sorted)?.map_or(0, BTreeMap::len)),
            ("ZSCORE", [key, member]) => {
                let score = look!(self, key, Sorted)?.and_then(|set| set.get(member));
                Ok(score.map_or(Answer::Nil, |score| Answer::Text(score.to_string())))
            }
            ("ZRANGE", [key, first, last]) if first == "0" && (last == "-1" || last == "0") => {
                let most = if last == "0" { 1 } else { usize::MAX };
                let sorted = sorted(look!(self, key, Sorted)?);
                Ok(Answer::Many(
                    sorted
                        .into_iter()
                        .take(most)
                        .map(|(member, _)| Answer::Text(member.clone()))
                        .collect(),
                ))
            }
            ("ZRANGE", [key, first, last, with]) if first == "0" && last == "-1" && with == "WITHSCORES" => {
                Ok(Answer::Many(with_scores(look!(self, key, Sorted)?)))
            }
            ("ZSCAN", [key, cursor, ..]) if cursor == "0" => Ok(scanned(with_scores(look!(self, key, Sorted)?))),
            ("XADD", [key, id, fields @ ..]) if id == "*" && !fields.is_empty() => {
                let now_ms = self.now_us / 1000;
                Ok(value!(self, key, Stream)?.add(now_ms, fields))
            }
            ("XLEN", [key]) => number(look!(self, key, Stream)?.map_or(0, |stream| stream.entries.len())),
            ("XRANGE", [key, first, last]) if first == last => {
                let stream = look!(self, key, Stream)?;
                Ok(stream.map_or_else(|| Answer::Many(Vec::new()), |stream| stream.entry(first)))
            }
            ("XDEL", [key, ids @ ..]) => match self.stream(key)? {
                Some(stream) => Ok(stream.delete(ids)),
                None => number(0),
            },
            ("XTRIM", [key, what, most]) if what == "MAXLEN" => match self.stream(key)? {
                Some(stream) => Ok(stream.trim(most.parse().map_err(|_| NO_NUMBER)?)),
                None => number(0),
            },
            ("XACK", [key, group, ids @ ..]) => match self.stream(key)? {
                Some(stream) => Ok(stream.acknowledge(group, ids)),
                None => number(0),
            },
            ("XGROUP", [what, key, group, from, make]) if what == "CREATE" && from == "0" && make == "MKSTREAM" => {
                if value!(self, key, Stream)?.create_group(group) {
                    Ok(Answer::ok())
                } else {
                    Err("BUSYGROUP Consumer Group name already exists")
                }
            }
            ("XGROUP", [what, key, group, consumer]) if what == "DELCONSUMER" => {
                let stream = self.stream(key)?;
                let stream = stream.ok_or("ERR The XGROUP subcommand requires the key to exist.")?;
                stream.delete_consumer(group, consumer).ok_or(NO_GROUP)
            }
            ("XINFO", [what, key, group]) if what == "CONSUMERS" => {
                let stream = look!(self, key, Stream)?.ok_or("ERR no such key")?;
                stream.consumers(group, self.now_us / 1000).ok_or(NO_GROUP)
            }
            // Does not block: the client asks once more after a while.
            ("XREADGROUP", [_, group, consumer, _, most, _, _, _, key, from]) if from == ">" => {
                let most = most.parse().map_err(|_| NO_NUMBER)?;
                let now_ms = self.now_us / 1000;
                let stream = self.stream(key)?.ok_or(NO_GROUP)?;
                let new = stream.read_group(group, consumer, most, now_ms);
                Ok(match new.ok_or(NO_GROUP)? {
                    new if new.is_empty() => Answer::Nil,
                    new => Answer::Many(vec![Answer::Many(vec![Answer::Text(key.clone()), Answer::Many(new)])]),
                })
            }
            ("XAUTOCLAIM", [key, group, consumer, idle_ms, first, _, most]) if first == "0-0" => {
                let (idle_ms, most) = (idle_ms.parse(), most.parse());
                let (idle_ms, most) = (idle_ms.map_err(|_| NO_NUMBER)?, most.map_err(|_| NO_NUMBER)?);
                let now_ms = self.now_us / 1000;
                let stream = self.stream(key)?.ok_or(NO_GROUP)?;
                stream.claim(group, consumer, idle_ms, most, now_ms).ok_or(NO_GROUP)
            }
            _ => Err("ERR unknown command, or not with these arguments"),
        }
    }

    /// Returns the stream of a key, if the key exists.
    fn stream(&mut self, key: &str) -> Result<Option<&mut Stream>, &'static str> {
        match self.entries.get_mut(key).map(|entry| &mut entry.value) {
            Some(Value::Stream(stream)) => Ok(Some(stream)),
            Some(_) => Err(WRONG_TYPE),
            None => Ok(None),
        }
    }

    fn set(&mut self, key: &str, value: &str, options: &[String]) -> Done {
        let mut expires_ms = None;
        let mut options = options.iter();
        let mut only_new = false;
        while let Some(option) = options.next() {
            match option.as_str() {
                "NX" => only_new = true,
                "EX" | "PX" => {
                    let time: Option<u64> = options.next().and_then(|time| time.parse().ok());
                    let each = if option == "EX" { 1000 } else { 1 };
                    expires_ms = Some(self.now_us / 1000 + time.ok_or(NO_NUMBER)? * each);
                }
                _ => return Err(SYNTAX),
            }
        }
        if only_new && self.entries.contains_key(key) {
            return Ok(Answer::Nil);
        }
        self.next_ms = self.next_ms.min(expires_ms.unwrap_or(u64::MAX));
        let value = Value::Text(value.to_owned());
        self.entries.insert(key.to_owned(), Entry { value, expires_ms });
        Ok(Answer::ok())
    }

    fn expire(&mut self, key: &str, at_ms: u64, options: &[String]) -> Done {
        let Some(entry) = self.entries.get_mut(key) else {
            return flag(false);
        };
        let does = match options {
            [] => true,
            [option] if option == "NX" => entry.expires_ms.is_none(),
            // A key without expiry counts as later than any time.
            [option] if option == "GT" => entry.expires_ms.is_some_and(|before| at_ms > before),
            _ => return Err(SYNTAX),
        };
        if does {
            entry.expires_ms = Some(at_ms);
            self.next_ms = self.next_ms.min(at_ms);
        }
        flag(does)
    }
}

fn text(value: Option<&String>) -> Answer {
    value.map_or(Answer::Nil, |value| Answer::Text(value.clone()))
}

fn pairs<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Answer> {
    let texts = pairs.flat_map(|(name, value)| [Answer::Text(name.clone()), Answer::Text(value.clone())]);
    texts.collect()
}

/// Returns the members of a sorted set in order, each followed by its score.
fn with_scores(set: Option<&BTreeMap<String, f64>>) -> Vec<Answer> {
    let texts = |(member, score): (&String, f64)| [member.clone(), score.to_string()].map(Answer::Text);
    sorted(set).into_iter().flat_map(texts).collect()
}

/// Returns the answer of a scan that is complete.
fn scanned(found: Vec<Answer>) -> Answer {
    Answer::Many(vec![Answer::Text("0".to_owned()), Answer::Many(found)])
}

/// Sorts by score, then by name.
fn sorted(set: Option<&BTreeMap<String, f64>>) -> Vec<(&String, f64)> {
    let mut sorted: Vec<(&String, f64)> = set
        .into_iter()
        .flatten()
        .map(|(member, score)| (member, *score))
        .collect();
    sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0)));
    sorted
}
