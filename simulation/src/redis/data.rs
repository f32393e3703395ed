//! Keys and what is there.

use std::collections::{BTreeMap, BTreeSet};

use super::Answer;

/// What is under a key.
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
    /// A stream: of each entry its id, and its fields and values.
    Stream(Vec<(String, Vec<String>)>),
}

/// A server's data.
#[derive(Default)]
pub struct Data {
    pub entries: BTreeMap<String, Entry>,
    now_us: u64,
    is_full: bool,
}

/// The commands that a full server refuses.
const GROWING: [&str; 6] = ["HINCRBY", "HSET", "SADD", "SET", "XADD", "ZADD"];

type Done = Result<Answer, &'static str>;

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const SYNTAX: &str = "ERR syntax error";
const NO_NUMBER: &str = "ERR value is not an integer or out of range";

/// Of what is under a key, what it has to be; made there if nothing is.
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

/// The same, to look at.
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
    /// Before a command: what has expired by now is gone, and a full server refuses for as long as the command takes.
    pub fn begin(&mut self, now_us: u64, is_full: bool) {
        (self.now_us, self.is_full) = (now_us, is_full);
        let now_ms = now_us / 1000;
        self.entries
            .retain(|_, entry| entry.expires_ms.is_none_or(|at| at > now_ms));
    }

    /// Runs a command.
    pub fn execute(&mut self, name: &str, arguments: &[String]) -> Answer {
        if self.is_full && GROWING.contains(&name) {
            return Answer::Error("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
        }
        match self.run(name, arguments) {
            Ok(answer) => answer,
            Err(error) => Answer::Error(error.to_owned()),
        }
    }

    fn run(&mut self, name: &str, arguments: &[String]) -> Done {
        match (name, arguments) {
            ("TIME", []) => {
                let parts = [self.now_us / 1_000_000, self.now_us % 1_000_000];
                Ok(Answer::Many(parts.map(|part| Answer::Text(part.to_string())).into()))
            }
            ("DEL", [key]) => flag(self.entries.remove(key).is_some()),
            ("SET", [key, value, options @ ..]) => self.set(key, value, options),
            ("EXPIRE", [key, seconds, options @ ..]) => {
                let seconds: u64 = seconds.parse().map_err(|_| NO_NUMBER)?;
                self.expire(key, self.now_us / 1000 + seconds * 1000, options)
            }
            ("EXPIREAT", [key, at, options @ ..]) => {
                let at: f64 = at.parse().map_err(|_| NO_NUMBER)?;
                self.expire(key, at as u64 * 1000, options)
            }
            ("EXPIRETIME", [key]) => Ok(Answer::Number(match self.entries.get(key) {
                None => -2,
                Some(entry) => entry.expires_ms.map_or(-1, |at| (at / 1000).cast_signed()),
            })),
            ("SADD", [key, members @ ..]) if !members.is_empty() => {
                let set = value!(self, key, Set)?;
                number(members.iter().filter(|member| set.insert((*member).clone())).count())
            }
            ("SCARD", [key]) => number(look!(self, key, Set)?.map_or(0, BTreeSet::len)),
            ("SISMEMBER", [key, member]) => flag(look!(self, key, Set)?.is_some_and(|set| set.contains(member))),
            ("SMISMEMBER", [key, members @ ..]) if !members.is_empty() => {
                let set = look!(self, key, Set)?;
                let is_there = |member: &String| set.is_some_and(|set| set.contains(member));
                let answers = members.iter().map(|member| Answer::Number(i64::from(is_there(member))));
                Ok(Answer::Many(answers.collect()))
            }
            ("HSET", [key, field, value]) => {
                let hash = value!(self, key, Hash)?;
                flag(hash.insert(field.clone(), value.clone()).is_none())
            }
            ("HINCRBY", [key, field, by]) => {
                let by: i64 = by.parse().map_err(|_| NO_NUMBER)?;
                let hash = value!(self, key, Hash)?;
                let before: i64 = hash
                    .get(field)
                    .map_or(Ok(0), |value| value.parse())
                    .map_err(|_| NO_NUMBER)?;
                hash.insert(field.clone(), (before + by).to_string());
                Ok(Answer::Number(before + by))
            }
            ("ZADD", [key, score, member]) => {
                let score: f64 = score.parse().map_err(|_| "ERR value is not a valid float")?;
                flag(value!(self, key, Sorted)?.insert(member.clone(), score).is_none())
            }
            ("ZCARD", [key]) => number(look!(self, key, Sorted)?.map_or(0, BTreeMap::len)),
            ("ZSCORE", [key, member]) => {
                let score = look!(self, key, Sorted)?.and_then(|set| set.get(member));
                Ok(score.map_or(Answer::Nil, |score| Answer::Text(score.to_string())))
            }
            ("XADD", [key, id, fields @ ..]) if id == "*" && !fields.is_empty() => {
                let now_ms = self.now_us / 1000;
                let stream = value!(self, key, Stream)?;
                let id = format!("{now_ms}-{}", stream.len());
                stream.push((id.clone(), fields.to_vec()));
                Ok(Answer::Text(id))
            }
            ("XLEN", [key]) => number(look!(self, key, Stream)?.map_or(0, Vec::len)),
            _ => Err("ERR unknown command, or not with these arguments"),
        }
    }

    fn set(&mut self, key: &str, value: &str, options: &[String]) -> Done {
        let mut expires_ms = None;
        let mut options = options.iter();
        let mut only_new = false;
        while let Some(option) = options.next() {
            match option.as_str() {
                "NX" => only_new = true,
                "EX" => {
                    let seconds: u64 = options
                        .next()
                        .and_then(|seconds| seconds.parse().ok())
                        .ok_or(NO_NUMBER)?;
                    expires_ms = Some(self.now_us / 1000 + seconds * 1000);
                }
                _ => return Err(SYNTAX),
            }
        }
        if only_new && self.entries.contains_key(key) {
            return Ok(Answer::Nil);
        }
        let value = Value::Text(value.to_owned());
        self.entries.insert(key.to_owned(), Entry { value, expires_ms });
        Ok(Answer::ok())
    }

    fn expire(&mut self, key: &str, at_ms: u64, options: &[String]) -> Done {
        let only_new = match options {
            [] => false,
            [option] if option == "NX" => true,
            _ => return Err(SYNTAX),
        };
        match self.entries.get_mut(key) {
            Some(entry) if !only_new || entry.expires_ms.is_none() => {
                entry.expires_ms = Some(at_ms);
                flag(true)
            }
            _ => flag(false),
        }
    }
}
