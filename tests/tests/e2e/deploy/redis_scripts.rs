//! Each script of `protocol/scripts` does what its file describes.
//!
//! Runs on each available kind of Redis.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use verve_protocol::scripts;
use verve_tests::clock;

use super::redis_kinds::on_each;

/// A connection that runs scripts and commands written as plain text.
struct Redis(MultiplexedConnection);

impl Redis {
    /// Runs a script with the keys and arguments in these lines.
    async fn script<T: FromRedisValue>(&mut self, script: &str, keys: &str, arguments: &str) -> Result<T> {
        let keys: Vec<&str> = keys.split_whitespace().collect();
        let mut eval = redis::cmd("EVAL");
        eval.arg(script).arg(keys.len()).arg(keys);
        // `-` is an empty argument.
        for argument in arguments.split_whitespace() {
            eval.arg(if argument == "-" { "" } else { argument });
        }
        let answer = eval.query_async(&mut self.0).await;
        answer.with_context(|| format!("{script}\n{arguments}"))
    }

    async fn run<T: FromRedisValue>(&mut self, line: &str) -> Result<T> {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().context("a command")?);
        command.arg(words.collect::<Vec<_>>());
        command.query_async(&mut self.0).await.context(line.to_owned())
    }

    async fn ttl(&mut self, key: &str) -> Result<i64> {
        self.run(&format!("TTL {key}")).await
    }
}

/// Runs a test on an empty Redis of each kind.
async fn each(test: impl AsyncFn(Redis) -> Result<()>) -> Result<()> {
    on_each(async |options, _| {
        let server = options.start().await?;
        test(Redis(server.connection().await?)).await
    })
    .await
}

fn map(fields: &[(&str, &str)]) -> BTreeMap<String, String> {
    let fields = fields.iter();
    fields
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn of_the_component() -> Result<()> {
    each(async |mut redis| {
        let now = clock::now_ms() / 1000;
        let [seconds, _] = redis.script::<[u64; 2]>(scripts::TIME, "k", "").await?;
        assert!(seconds.abs_diff(now) <= 5);

        // A set expires a day after its window. The expiry is set once, and may only be extended.
        assert_eq!(redis.script::<u8>(scripts::KEEP, "set", &format!("{now} -")).await?, 0);
        let _: u8 = redis.run("SADD set 1").await?;
        assert_eq!(redis.script::<u8>(scripts::KEEP, "set", &format!("{now} -")).await?, 1);
        assert!((86_390..=86_400).contains(&redis.ttl("set").await?));
        let ahead = now + 999_999;
        assert_eq!(
            redis.script::<u8>(scripts::KEEP, "set", &format!("{ahead} -")).await?,
            0
        );
        assert_eq!(
            redis.script::<u8>(scripts::KEEP, "set", &format!("{ahead} 1")).await?,
            1
        );
        assert!((691_190..=691_200).contains(&redis.ttl("set").await?));

        let within = scripts::ADD_WITHIN;
        assert_eq!(redis.script::<Vec<u8>>(within, "two", "2 - - 1 2 3").await?, [0, 0, 2]);
        assert_eq!(redis.script::<Vec<u8>>(within, "two", "2 - - 1 4").await?, [1, 2]);
        assert_eq!(redis.ttl("two").await?, -1);
        assert_eq!(
            redis.script::<Vec<u8>>(within, "two", &format!("- {now} - 4")).await?,
            [0]
        );
        assert!(redis.ttl("two").await? > 86_000);

        let job = "1 60 http://a endpoint http://a";
        assert_eq!(redis.script::<u8>(scripts::ADD_JOB_WITHIN, "jobs ends", job).await?, 1);
        assert_eq!(redis.script::<u8>(scripts::ADD_JOB_WITHIN, "jobs ends", job).await?, 0);
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 1);
        assert!((50..=60).contains(&redis.ttl("ends").await?));

        for (arguments, expected) in [("a 1", "known"), ("b 1", "full"), ("a 1", "known"), ("b -", "known")] {
            let answer: String = redis
                .script(scripts::REGISTER_COUNTER, "counters in-use", arguments)
                .await?;
            assert_eq!(answer, expected, "{arguments}");
        }
        let used: f64 = redis.run("ZSCORE in-use a").await?;
        let _: String = redis.run("SET lease me").await?;
        let _: u8 = redis.run("ZADD windows-of 1 60:1").await?;
        let keys = "lease in-use progress windows-of";
        for (case, holder, name, seconds, held, left) in [
            ("registered since", "me", "a", used.floor(), 1, &["a", "b"][..]),
            ("unknown", "me", "c", used + 1.0, 1, &["a", "b"]),
            ("has ids", "me", "a", used + 1.0, 1, &["a", "b"]),
            ("no lease", "you", "a", used + 1.0, 0, &["a", "b"]),
            ("idle", "me", "a", used + 1.0, 1, &["b"]),
        ] {
            if case == "idle" {
                let _: u8 = redis.run("DEL windows-of").await?;
            }
            let arguments = format!("{holder} {name} {seconds} 60");
            let is_held: u8 = redis.script(scripts::RETIRE_COUNTER, keys, &arguments).await?;
            let in_use: Vec<String> = redis.run("ZRANGE in-use 0 -1").await?;
            assert_eq!(
                (is_held, in_use.as_slice()),
                (held, &left.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]),
                "{case}"
            );
        }
        assert_eq!(redis.run::<u64>("HGET progress idle").await?, 60);
        assert_eq!(redis.run::<Vec<String>>("ZRANGE counters 0 -1").await?, ["a", "b"]);

        let together = scripts::ADD_TOGETHER;
        assert_eq!(
            redis.script::<Vec<i8>>(together, "x", "x 2 1 2 y 4 1 2 3 4").await?,
            [0; 6]
        );
        assert_eq!(
            redis.script::<Vec<i8>>(together, "x", "x 3 1 2 3 y 1 9").await?,
            [1, 1, 0, 0]
        );
        let _: String = redis.run("SET text 1").await?;
        assert_eq!(redis.script::<Vec<i8>>(together, "x", "x 1 1 text 1 1").await?, [1, -1]);
        let alone = redis.script::<Vec<i8>>(together, "text", "text 1 1").await;
        assert!(format!("{:?}", alone.expect_err("of the wrong type")).contains("WRONGTYPE"));

        let batch = r#"60 0 ["INCR","n"] ["SADD","s","1"]"#;
        for _ in 0..2 {
            assert_eq!(redis.script::<u8>(scripts::RUN_ONCE, "batch", batch).await?, 1);
        }
        assert_eq!(redis.run::<u8>("GET n").await?, 1);
        assert!((50..=60).contains(&redis.ttl("batch").await?));
        // A batch that fails halfway has not run.
        let halfway = r#"60 0 ["INCR","m"] ["SADD","text","1"]"#;
        let failed = redis.script::<u8>(scripts::RUN_ONCE, "halfway", halfway).await;
        assert!(format!("{:?}", failed.expect_err("of the wrong type")).contains("WRONGTYPE"));
        assert_eq!(redis.run::<u8>("EXISTS halfway").await?, 0);
        let full = r#"60 1 ["INCR","n"]"#;
        assert_eq!(redis.script::<u8>(scripts::RUN_ONCE, "other jobs", full).await?, 0);
        let bad = redis
            .script::<u8>(scripts::RUN_ONCE, "third", r#"60 0 ["SADD","text","1"]"#)
            .await;
        assert!(bad.is_err());
        assert_eq!(redis.run::<u8>("EXISTS third").await?, 0);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn of_a_component_that_keeps_nothing() -> Result<()> {
    each(async |mut redis| {
        let now = clock::now_ms() / 1000;
        let keys = "ids stats windows jobs ends";
        let mut record = async |rest: &str| -> Result<String> {
            let arguments = format!("{now} 60 900 {rest}");
            let outcomes: Vec<String> = redis.script(scripts::RECORD, keys, &arguments).await?;
            assert_eq!(outcomes.len(), 1, "{outcomes:?}");
            Ok(outcomes.concat())
        };
        let job = "endpoint http://a brief 60 job endpoint http://a";
        assert_eq!(record(&format!("id 1 most 10 {job}")).await?, "new");
        assert_eq!(record("id 1").await?, "duplicate");
        // An earlier attempt may have counted it.
        assert_eq!(record("again 1 id 1").await?, "duplicate");
        assert_eq!(record("outcome spooled").await?, "spooled");
        assert_eq!(record("outcome new again 1").await?, "new");
        assert_eq!(record(&format!("id 2 most 1 {job}")).await?, "full");
        assert_eq!(record("id 2 limit 1").await?, "window-limit");
        assert_eq!(
            record(&format!("id 2 most 10 endpoint_limit 0 {job}")).await?,
            "endpoint-limit"
        );
        assert_eq!(record("").await?, "");
        assert_eq!(redis.run::<Vec<String>>("SMEMBERS ids").await?, ["1"]);
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 1);
        let counted = map(&[
            ("requests", "5"),
            ("new", "1"),
            ("duplicate", "1"),
            ("spooled", "1"),
            ("limited", "2"),
        ]);
        assert_eq!(redis.run::<BTreeMap<String, String>>("HGETALL stats").await?, counted);
        assert_eq!(redis.run::<Vec<String>>("ZRANGE windows 0 -1").await?, ["60"]);
        for key in ["ids", "stats", "windows"] {
            assert!(redis.ttl(key).await? > 0, "{key}");
        }
        Ok(())
    })
    .await
}

/// Tests the same with windows of two lengths.
#[tokio::test]
async fn of_a_component_that_keeps_nothing_and_has_two_lengths() -> Result<()> {
    each(async |mut redis| {
        let now = clock::now_ms() / 1000;
        let mut record = async |ids: &str, rest: &str| -> Result<Vec<String>> {
            let keys = format!("{ids} stats windows hour-ids hour-stats hour-windows jobs ends");
            let arguments = format!("{now} 60 900 {} 3600 4500 {rest}", now + 3600);
            redis.script(scripts::RECORD, &keys, &arguments).await
        };
        let job = "endpoint http://a brief 60 job endpoint http://a";
        assert_eq!(record("ids", &format!("id 1 most 10 {job}")).await?, ["new", "new"]);
        assert_eq!(record("ids", "id 1").await?, ["duplicate", "duplicate"]);
        assert_eq!(record("ids", "id 2 limit 1").await?, ["window-limit", "window-limit"]);
        assert_eq!(record("ids", &format!("id 2 most 1 {job}")).await?, ["full"]);
        assert_eq!(record("ids", "id 2").await?, ["new", "new"]);
        // An id that is known in the longer window alone.
        assert_eq!(record("next-ids", "id 1 limit 1").await?, ["new", "duplicate"]);
        for (key, expected) in [
            ("ids", vec!["1", "2"]),
            ("next-ids", vec!["1"]),
            ("hour-ids", vec!["1", "2"]),
        ] {
            let ids: Vec<String> = redis.run(&format!("SMEMBERS {key}")).await?;
            assert_eq!(ids, expected, "{key}");
        }
        for (key, new, duplicate) in [("stats", "3", "1"), ("hour-stats", "2", "2")] {
            let counted: BTreeMap<String, String> = redis.run(&format!("HGETALL {key}")).await?;
            let expected = [
                ("requests", "5"),
                ("new", new),
                ("duplicate", duplicate),
                ("limited", "1"),
            ];
            assert_eq!(counted, map(&expected), "{key}");
        }
        for (key, entry) in [("windows", "60"), ("hour-windows", "3600")] {
            assert_eq!(redis.run::<Vec<String>>(&format!("ZRANGE {key} 0 -1")).await?, [entry]);
        }
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 1);
        let [day, hour] = [redis.ttl("ids").await?, redis.ttl("hour-ids").await?];
        assert!(hour > day + 3500, "{day} {hour}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn of_windows_that_are_counted() -> Result<()> {
    each(async |mut redis| {
        let _: u8 = redis.run("SADD ids 1 2").await?;
        for _ in 0..2 {
            assert_eq!(redis.script::<u8>(scripts::CLOSE, "ids closed closing", "60").await?, 2);
            // Ids that arrive later are not moved.
            let _: u8 = redis.run("SADD ids 3").await?;
        }
        assert!((50..=60).contains(&redis.ttl("closed").await?));
        assert_eq!(
            redis
                .script::<u8>(scripts::REMOVE_CLOSED, "closed closing", "900")
                .await?,
            1
        );
        assert_eq!(redis.run::<u8>("EXISTS closed").await?, 0);
        assert!((890..=900).contains(&redis.ttl("closing").await?));
        assert_eq!(redis.script::<u8>(scripts::PUT_ASIDE, "ids late", "60").await?, 1);
        assert_eq!(redis.script::<u8>(scripts::PUT_ASIDE, "ids late", "60").await?, 0);
        let _: u8 = redis.run("SADD ids 3 4").await?;
        assert_eq!(redis.script::<u8>(scripts::PUT_ASIDE, "ids late", "60").await?, 1);
        assert_eq!(redis.run::<Vec<u8>>("SMEMBERS late").await?, [3, 4]);

        let _: u8 = redis.run("ZADD windows 1 60 2 120").await?;
        let _: u8 = redis.script(scripts::FORGET_WINDOWS, "windows", "60 1 120 1").await?;
        assert_eq!(redis.run::<Vec<String>>("ZRANGE windows 0 -1").await?, ["120"]);
        let _: u8 = redis.script(scripts::NOTE_LATE, "lates", "60 120 180").await?;
        assert_eq!(redis.run::<Vec<u8>>("ZRANGE lates 0 -1").await?, [120, 180]);
        assert!((50..=60).contains(&redis.ttl("lates").await?));

        let now = clock::now_ms() / 1000;
        let _: u8 = redis.run(&format!("ZADD counters 1 old {now} new")).await?;
        let _: u8 = redis.run(&format!("ZADD in-use 1 old {now} new")).await?;
        let unused: Vec<String> = redis.script(scripts::FORGET_COUNTERS, "counters in-use", "100").await?;
        assert_eq!(unused, ["old"]);
        for key in ["counters", "in-use"] {
            assert_eq!(redis.run::<Vec<String>>(&format!("ZRANGE {key} 0 -1")).await?, ["new"]);
        }

        let refused: Vec<String> = redis.script(scripts::TRY_COMMANDS, "nobody", "TIME").await?;
        assert_eq!(refused, [""; 0]);
        let _: String = redis.run("ACL SETUSER default -get").await?;
        let refused: Vec<String> = redis.script(scripts::TRY_COMMANDS, "nobody", "GET").await?;
        assert_eq!(refused, ["GET"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn of_the_lease_and_what_is_written_under_it() -> Result<()> {
    each(async |mut redis| {
        let (acquire, renew, release) = (scripts::ACQUIRE_LEASE, scripts::RENEW_LEASE, scripts::RELEASE_LEASE);
        assert_eq!(redis.script::<u8>(acquire, "lease", "a 60000").await?, 1);
        assert_eq!(redis.script::<u8>(acquire, "lease", "b 60000").await?, 0);
        assert_eq!(redis.script::<u8>(renew, "lease", "b 90000").await?, 0);
        assert_eq!(redis.script::<u8>(renew, "lease", "a 90000").await?, 1);
        assert!((80..=90).contains(&redis.ttl("lease").await?));
        assert_eq!(redis.script::<u8>(release, "lease", "b").await?, 0);

        // Scripts have no effect without the lease.
        for (script, keys, arguments) in [
            (scripts::PREPARE, "lease pending", "b 60 0 pending"),
            (
                scripts::RECORD_REPORTS,
                "lease reports pending jobs open progress",
                "b 0 report 1 0",
            ),
            (
                scripts::FINISH,
                "lease reports pending open progress",
                "b 60 removal 0 final",
            ),
            (scripts::REOPEN, "lease reports open pending", "b removal 0 report"),
        ] {
            assert_eq!(redis.script::<u8>(script, keys, arguments).await?, 0, "{script}");
        }
        assert_eq!(redis.run::<u8>("DBSIZE").await?, 1);

        assert_eq!(
            redis
                .script::<u8>(scripts::PREPARE, "lease pending", "a 60 0 first 60 second")
                .await?,
            1
        );
        assert!((50..=60).contains(&redis.ttl("pending").await?));
        // The clock was ahead when older reports were removed.
        let _: u8 = redis.run("HSET progress trimmed 120").await?;
        let keys = "lease reports pending jobs open progress";
        let reports = "a 0 first 1 2 endpoint http://a 60 second 0 0";
        for _ in 0..2 {
            assert_eq!(redis.script::<u8>(scripts::RECORD_REPORTS, keys, reports).await?, 1);
        }
        let both = map(&[("0", "first"), ("60", "second")]);
        assert_eq!(redis.run::<BTreeMap<String, String>>("HGETALL reports").await?, both);
        assert_eq!(redis.run::<u8>("EXISTS pending").await?, 0);
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 1);
        assert_eq!(redis.run::<Vec<u8>>("ZRANGE open 0 -1").await?, [0]);
        assert_eq!(redis.run::<u8>("HGET progress newest").await?, 60);
        assert_eq!(redis.run::<u8>("HGET progress trimmed").await?, 0);

        // After a failover, Redis may not have this field.
        let _: u8 = redis.run("HDEL progress newest").await?;
        let keys = "lease reports pending open progress";
        assert_eq!(
            redis
                .script::<u8>(scripts::FINISH, keys, "a 60 removal 0 final")
                .await?,
            1
        );
        assert_eq!(redis.run::<u8>("EXISTS open").await?, 0);
        assert_eq!(redis.run::<String>("HGET reports 0").await?, "final");
        assert_eq!(redis.run::<u8>("HGET progress newest").await?, 0);
        // A pending revision that another leader has written since is kept.
        let _: u8 = redis.run("HSET pending 60 other").await?;
        let keys = "lease reports open pending";
        assert_eq!(
            redis
                .script::<u8>(scripts::REOPEN, keys, "a removal 0 first 60 second")
                .await?,
            1
        );
        assert_eq!(redis.run::<BTreeMap<String, String>>("HGETALL reports").await?, both);
        assert_eq!(redis.run::<Vec<u8>>("ZRANGE open 0 -1").await?, [0, 60]);
        assert_eq!(
            redis.run::<BTreeMap<String, String>>("HGETALL pending").await?,
            map(&[("60", "other")])
        );
        let _: u8 = redis.script(scripts::REMOVED, "pending", "removal 60").await?;
        assert_eq!(redis.run::<u8>("HLEN pending").await?, 1);
        let _: u8 = redis.script(scripts::REMOVED, "pending", "other 60").await?;
        assert_eq!(redis.run::<u8>("EXISTS pending").await?, 0);

        assert_eq!(
            redis
                .script::<u8>(scripts::NOTE_REPORTS, "old noted", "120 60 120")
                .await?,
            1
        );
        assert_eq!(
            redis
                .script::<u8>(scripts::NOTE_REPORTS, "old noted", "180 180")
                .await?,
            0
        );
        assert_eq!(redis.run::<Vec<u8>>("ZRANGE old 0 -1").await?, [60, 120]);
        let _: u8 = redis.script(scripts::NOTE_PROGRESS, "noted", "trimmed 60").await?;
        let noted = map(&[("newest", "120"), ("trimmed", "60")]);
        assert_eq!(redis.run::<BTreeMap<String, String>>("HGETALL noted").await?, noted);

        // Of the reports of 0 and 60, one stays.
        let mut trim = async |args| {
            redis
                .script::<[u8; 2]>(scripts::TRIM_REPORTS, "reports noted", args)
                .await
        };
        assert_eq!(trim("2 60 60 120").await?, [0, 0]);
        // The note says 60.
        assert_eq!(trim("1 60 0 60").await?, [1, 1]);
        assert_eq!(trim("0 60 60 120").await?, [1, 1]);
        assert_eq!(redis.run::<u8>("EXISTS reports").await?, 0);
        assert_eq!(redis.run::<u8>("HGET noted trimmed").await?, 120);
        for begin in ["60", "120"] {
            assert_eq!(redis.script::<u8>(scripts::NOTE_BEGIN, "from", begin).await?, 60);
        }

        assert_eq!(redis.script::<u8>(release, "lease", "a").await?, 1);
        assert_eq!(redis.script::<u8>(acquire, "lease", "b 60000").await?, 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn of_the_queue_of_callbacks() -> Result<()> {
    each(async |mut redis| {
        let _: String = redis.run("XGROUP CREATE jobs reporter 0 MKSTREAM").await?;
        let take = "XREADGROUP GROUP reporter one COUNT 1 STREAMS jobs >";
        let keys = "jobs retry dead";
        let add = async |redis: &mut Redis| -> Result<String> {
            let id = redis.run("XADD jobs * endpoint http://a").await?;
            let _: redis::Value = redis.run(take).await?;
            Ok(id)
        };
        let settle = scripts::SETTLE;
        let id = add(&mut redis).await?;
        assert_eq!(
            redis
                .script::<i8>(settle, keys, &format!("stream {id} reporter done"))
                .await?,
            0
        );
        assert_eq!(
            redis
                .script::<i8>(settle, keys, &format!("stream {id} reporter done"))
                .await?,
            -2
        );

        let id = add(&mut redis).await?;
        let again = |most| format!("stream {id} reporter again job 0 {most}");
        assert_eq!(redis.script::<i8>(settle, keys, &again(0)).await?, -1);
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 1);
        assert_eq!(redis.script::<i8>(settle, keys, &again(1)).await?, 0);
        assert_eq!(redis.run::<u8>("XLEN jobs").await?, 0);
        // It is due, and can be taken once until it is free again.
        let waiting: Vec<String> = redis.script(scripts::TAKE_WAITING, "retry", "60000 10").await?;
        assert_eq!(waiting, ["job"]);
        let waiting: Vec<String> = redis.script(scripts::TAKE_WAITING, "retry", "60000 10").await?;
        assert_eq!(waiting, [""; 0]);
        let dead = "retry job reporter dead 1 endpoint http://a error down attempts 3";
        assert_eq!(redis.script::<i8>(settle, keys, dead).await?, 0);
        assert_eq!(redis.script::<i8>(settle, keys, dead).await?, -2);
        // Only one dead letter is kept.
        let id = add(&mut redis).await?;
        let dead = format!("stream {id} reporter dead 1 endpoint http://b error down attempts 3");
        assert_eq!(redis.script::<i8>(settle, keys, &dead).await?, 1);
        assert_eq!(redis.run::<u8>("XLEN dead").await?, 1);

        let none = "1-1";
        let bad: String = redis.run("XADD dead * nothing here").await?;
        let entries: redis::streams::StreamRangeReply = redis.run("XRANGE dead - +").await?;
        let id = &entries.ids[0].id;
        let outcomes: Vec<u8> = redis
            .script(scripts::RETRY_DEAD, "dead jobs", &format!("{id} {none} {bad}"))
            .await?;
        assert_eq!(outcomes, [1, 0, 2]);
        let entries: redis::streams::StreamRangeReply = redis.run("XRANGE jobs - +").await?;
        let fields: Vec<&String> = entries.ids[0].map.keys().collect();
        assert_eq!(fields, ["endpoint"]);

        // A consumer with a job stays.
        let _: redis::Value = redis.run(take).await?;
        let _: u8 = redis.run("XGROUP CREATECONSUMER jobs reporter two").await?;
        let _: u8 = redis.run("XGROUP CREATECONSUMER jobs reporter three").await?;
        let remove = scripts::REMOVE_CONSUMERS;
        assert_eq!(redis.script::<u8>(remove, "jobs", "reporter 60000").await?, 0);
        assert_eq!(redis.script::<u8>(remove, "jobs", "reporter 0 two").await?, 1);
        assert_eq!(redis.script::<u8>(remove, "jobs", "reporter 0").await?, 1);
        assert_eq!(redis.script::<u8>(remove, "nobodys", "reporter 0").await?, 0);
        Ok(())
    })
    .await
}
