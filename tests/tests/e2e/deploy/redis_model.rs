//! Tests that the simulation's model of Redis answers as each kind of Redis.
//!
//! Both get the same random commands and scripts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use fastrand::Rng;
use redis::Value;
use redis::aio::MultiplexedConnection;
use verve_protocol::scripts;
use verve_simulation::redis::{Answer, Server};

use super::redis_kinds::on_each;

/// The number of commands for each kind of Redis.
const COMMANDS: usize = 4000;

/// A Redis and its model.
struct Both {
    redis: MultiplexedConnection,
    model: std::rc::Rc<Server>,
    /// The commands that both have received, the last one at the end.
    given: Vec<String>,
    /// Stream entries that readers have received: the id in Redis, and in the model.
    entries: Vec<(String, String)>,
}

/// A placeholder for the id of an entry.
const ENTRY: &str = "ENTRY";

impl Both {
    /// Sends a command to both.
    ///
    /// Each command has its own millisecond, so that entries of two streams have different ids.
    async fn give(&mut self, words: &[String], random: &mut Rng) -> Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        // Redis and the model generate different ids for the same entry.
        let entry = random.choice(&self.entries).cloned();
        let (redis_entry, model_entry) = entry.unwrap_or_else(|| ("1-1".to_owned(), "1-1".to_owned()));
        let with = |entry: &str| -> Vec<String> {
            let words = words.iter().map(|word| if word == ENTRY { entry } else { word });
            words.map(str::to_owned).collect()
        };
        let (for_redis, for_model) = (with(&redis_entry), with(&model_entry));
        let mut command = redis::cmd(&for_redis[0]);
        command.arg(&for_redis[1..]);
        let redis = match command.query_async::<Value>(&mut self.redis).await {
            Ok(value) => answer(&value),
            Err(error) => Answer::Error(error.code().unwrap_or("ERR").to_owned()),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let model = self
            .model
            .execute(&for_model, u64::try_from(now.as_micros())?, false, 0);
        self.entries.extend(entries(&redis).into_iter().zip(entries(&model)));
        let (redis, model) = (plain(&words[0], redis), plain(&words[0], model));
        let shortened: Vec<&str> = words
            .iter()
            .map(|word| word.lines().next().unwrap_or_default())
            .collect();
        self.given.push(shortened.join(" "));
        let last = self.given.len().saturating_sub(12);
        ensure!(
            alike(&redis, &model),
            "Redis answers {redis:?}, and the model {model:?}, to the last of {:#?}",
            &self.given[last..]
        );
        Ok(())
    }
}

/// Returns the ids of entries in an answer.
fn entries(answer: &Answer) -> Vec<String> {
    match answer {
        Answer::Text(text) if is_entry(text) => vec![text.clone()],
        Answer::Many(answers) => answers.iter().flat_map(entries).collect(),
        _ => Vec::new(),
    }
}

/// Returns whether this is the id of an added entry.
fn is_entry(text: &str) -> bool {
    let parts = text.split_once('-');
    parts.is_some_and(|(at, number)| at.parse::<u64>().is_ok_and(|at| at > 0) && number.parse::<u64>().is_ok())
}

fn answer(value: &Value) -> Answer {
    match value {
        Value::Int(number) => Answer::Number(*number),
        Value::BulkString(bytes) => Answer::Text(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Answer::Status(text.clone()),
        Value::Okay => Answer::Status("OK".to_owned()),
        Value::Array(values) => Answer::Many(values.iter().map(answer).collect()),
        Value::ServerError(error) => Answer::Error(error.code().to_owned()),
        _ => Answer::Nil,
    }
}

/// Removes what may differ: field order of hashes, stream ids, error texts.
fn plain(command: &str, answer: Answer) -> Answer {
    match answer {
        Answer::Error(text) => Answer::Error(text.split(' ').next().unwrap_or_default().to_owned()),
        Answer::Text(text) if is_entry(&text) => Answer::Text(ENTRY.to_owned()),
        Answer::Many(answers) if command.starts_with('X') => {
            Answer::Many(answers.into_iter().map(|answer| plain(command, answer)).collect())
        }
        Answer::Many(answers) if command == "HGETALL" => {
            let mut pairs: Vec<Answer> = answers.chunks(2).map(|pair| Answer::Many(pair.to_vec())).collect();
            pairs.sort_by_key(|pair| format!("{pair:?}"));
            Answer::Many(pairs)
        }
        Answer::Many(answers) if command.ends_with("SCAN") && answers.len() == 2 => {
            let found = answers.into_iter().nth(1).unwrap_or(Answer::Nil);
            plain("HGETALL", found)
        }
        answer => answer,
    }
}

/// Compares two answers.
///
/// Times may differ by one second, because they are requested one after the other.
fn alike(redis: &Answer, model: &Answer) -> bool {
    match (redis, model) {
        (Answer::Number(a), Answer::Number(b)) => a == b || *a > 1_000_000_000 && a.abs_diff(*b) <= 1,
        (Answer::Text(a), Answer::Text(b)) => a == b || is_same_time(a, b),
        (Answer::Many(a), Answer::Many(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (a, b) => a == b,
    }
}

/// Returns whether both are scores made from the same time.
///
/// They are in seconds or milliseconds; the number of digits depends on the version.
fn is_same_time(a: &str, b: &str) -> bool {
    let (Ok(a), Ok(b)) = (a.parse::<f64>(), b.parse::<f64>()) else {
        return false;
    };
    let second = if a > 1e12 { 1000.0 } else { 1.0 };
    a > 1e9 && (a - b).abs() <= second
}

/// Fills in the random placeholders of one of these lines.
///
/// `K` is a key of any type, `S` of a set, `H` of a hash, `Z` of a sorted set, `T` of a text, `X`
/// of a stream, each with or without a number; `M` is a member, `N` a number, `E` seconds, `G` a
/// larger number of seconds, `I` an entry of a stream.
fn words(random: &mut Rng, line: &str) -> Vec<String> {
    let fill = |word: &str| match word {
        "K" => format!(
            "{}{}",
            random.choice(["s", "h", "z", "t", "x"]).unwrap_or("s"),
            random.u8(..3)
        ),
        "S" | "H" | "Z" | "T" | "X" => format!("{}{}", word.to_lowercase(), random.u8(..3)),
        "M" => format!("m{}", random.u8(..6)),
        "N" => random.u8(..5).to_string(),
        "(N" => format!("({}", random.u8(..5)),
        "E" => (u32::from(random.u8(1..5)) * 1000).to_string(),
        // Random, so that no other time is equal or nearly equal.
        "G" => random.u32(10_000..1_000_000).to_string(),
        "I" => ENTRY.to_owned(),
        "-" => String::new(),
        word => word.to_owned(),
    };
    line.split(' ').map(fill).collect()
}

const LINES: [&str; 65] = [
    "SADD S M",
    "SADD K M M M",
    "SREM S M M",
    "SCARD K",
    "SMISMEMBER S M M M",
    "SUNIONSTORE S S S",
    "SUNIONSTORE K S K",
    "HSET H M N",
    "HSET K M N M N",
    "HSETNX H M N",
    "HGET H M",
    "HMGET H M M",
    "HGETALL K",
    "HLEN K",
    "HSCAN H 0 COUNT 1000",
    "HDEL H M",
    "HDEL K M M M",
    "HINCRBY H M N",
    "HINCRBY K M N",
    "ZADD Z N M",
    "ZADD K N M",
    "ZREM Z M M",
    "ZCARD K",
    "ZSCORE Z M",
    "ZRANGE Z 0 -1",
    "ZRANGE K 0 -1",
    "ZRANGE Z 0 0",
    "ZSCAN Z 0 COUNT 1000",
    "GET K",
    "SET T M",
    "SET T M NX EX E",
    "SET T M PX 900000",
    "SET K M NX",
    "EXISTS K",
    "DEL K",
    "UNLINK K K",
    "RENAME K K",
    "EXPIRE K E",
    "EXPIRE K E NX",
    "EXPIRE K G GT",
    "PEXPIRE K 7000000",
    "EXPIRETIME K",
    "XADD X * M N",
    "XLEN K",
    "ZADD Z XX N M",
    "ZADD Z NX N M",
    "ZADD Z XX GT N M",
    "ZRANGE Z 0 -1 WITHSCORES",
    "ZRANGEBYSCORE Z -inf N",
    "ZRANGEBYSCORE K -inf (N LIMIT 0 2",
    "XGROUP CREATE X M 0 MKSTREAM",
    "XGROUP CREATE K m1 0 MKSTREAM",
    "XGROUP CREATE X m1 0 MKSTREAM",
    "XGROUP DELCONSUMER X M M",
    "XREADGROUP GROUP m1 M COUNT 2 BLOCK 1 STREAMS X >",
    "XREADGROUP GROUP M M COUNT 5 BLOCK 1 STREAMS X >",
    "XREADGROUP GROUP M M COUNT 5 BLOCK 1 STREAMS K >",
    "XAUTOCLAIM X M M 0 0-0 COUNT 2",
    "XAUTOCLAIM K m1 M 0 0-0 COUNT 1",
    "XAUTOCLAIM X m1 M 900000 0-0 COUNT 5",
    "XACK X m1 I I",
    "XACK K M I",
    "XDEL X I",
    "XRANGE X I I",
    "XTRIM X MAXLEN 3",
];

/// The scripts, each with its keys and arguments; `NOW` is the current second.
const SCRIPTS: [(&str, &str); 36] = [
    (scripts::KEEP, "1 K NOW -"),
    (scripts::KEEP, "1 S NOW 1"),
    (scripts::ADD_WITHIN, "1 S N NOW - m1 m2 m3"),
    (scripts::ADD_WITHIN, "1 K - - - m1 m4"),
    (scripts::ADD_JOB_WITHIN, "2 X H N E M field M"),
    (scripts::REGISTER_COUNTER, "2 Z Z M N"),
    (scripts::REGISTER_COUNTER, "3 Z Z Z M N"),
    (scripts::REGISTER_COUNTER, "2 K Z M -"),
    (scripts::RETIRE_COUNTER, "4 K Z H Z M M N N"),
    (scripts::ADD_TOGETHER, "1 S S 1 M S 3 m1 m2 m3"),
    (scripts::ADD_TOGETHER, "1 K K 2 m1 m2"),
    (
        scripts::RUN_ONCE,
        r#"3 T s1 h1 E 0 ["SADD","s1","m1"] ["HINCRBY","h1","m1","2"]"#,
    ),
    (scripts::RUN_ONCE, r#"2 T X E N ["XADD","x1","*","a","b"]"#),
    (scripts::RUN_ONCE, r#"1 T E 0 ["SADD","t1","m1"]"#),
    (scripts::RECORD, "5 S H Z X H NOW M E id M limit N"),
    (scripts::RECORD, "8 s0 H z0 s1 H z1 X H NOW M E NOW M E id M limit N"),
    (
        scripts::RECORD,
        "5 S H Z X H NOW M E id M again 1 waits 1 endpoint M most N endpoint_limit N brief E job a M",
    ),
    (scripts::SETTLE, "3 X Z X stream I m1 done"),
    (scripts::SETTLE, "3 X Z X stream I m1 again M 900000 3"),
    (scripts::SETTLE, "3 X Z X stream I M dead 3 a b"),
    (scripts::SETTLE, "3 X Z X retry M m1 again M 0 3"),
    (scripts::TAKE_WAITING, "1 Z 900000 2"),
    (scripts::CLOSE, "3 S S T E"),
    (scripts::REMOVE_CLOSED, "2 S T E"),
    (scripts::PUT_ASIDE, "2 S S E"),
    (scripts::FORGET_WINDOWS, "1 Z M N M N"),
    (scripts::NOTE_LATE, "1 Z E N N"),
    (scripts::ACQUIRE_LEASE, "1 T M 900000"),
    (scripts::RENEW_LEASE, "1 T M 900000"),
    (scripts::RELEASE_LEASE, "1 T M"),
    (scripts::PREPARE, "2 T H M E N M"),
    (scripts::RECORD_REPORTS, "6 T H H X Z H M N M 1 2 a b N M 0 0"),
    (scripts::FINISH, "5 T H H Z H M E M N M"),
    (scripts::REOPEN, "4 T H Z H M M N M"),
    (scripts::TRIM_REPORTS, "2 H H N E N N N"),
    (scripts::NOTE_REPORTS, "2 Z H N N N"),
];

#[tokio::test]
async fn answers_as_redis_does() -> Result<()> {
    on_each(async |options, _| {
        let server = options.start().await?;
        let mut both = Both {
            redis: server.connection().await?,
            model: Server::alone("model"),
            given: Vec::new(),
            entries: Vec::new(),
        };
        let mut random = Rng::with_seed(1);
        for _ in 0..COMMANDS {
            let words = match random.u8(..100) {
                0 => {
                    let is_full = !both.model.is_full.get();
                    let most = if is_full { "1" } else { "0" };
                    let set = redis::cmd("CONFIG").arg(&["SET", "maxmemory", most]).to_owned();
                    set.query_async::<()>(&mut both.redis).await?;
                    both.model.is_full.set(is_full);
                    continue;
                }
                1..40 => {
                    let (script, rest) = SCRIPTS[random.usize(..SCRIPTS.len())];
                    let now = SystemTime::now() + Duration::from_secs(60 * random.u64(..100_000));
                    let now = now.duration_since(UNIX_EPOCH)?.as_secs().to_string();
                    let rest = words(&mut random, rest).into_iter();
                    let rest = rest.map(|word| if word == "NOW" { now.clone() } else { word });
                    ["EVAL", script].map(str::to_owned).into_iter().chain(rest).collect()
                }
                _ => {
                    let line = LINES[random.usize(..LINES.len())];
                    words(&mut random, line)
                }
            };
            both.give(&words, &mut random).await?;
        }
        Ok(())
    })
    .await
}
