//! What the documentation and the files in `deploy/` name is there: flags, environment variables, Spin variables, and a
//! Redis user who suffices.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use verve_tests::host::Kind;
use verve_tests::process::Process;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, http, paths, reporter, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Flags of other people's programs: Spin, docker and podman, kubectl, Kafka's, Redis'.
const OTHERS: [&str; 15] = [
    "--runtime-config-file",
    "--build",
    "--format",
    "--from-literal",
    "--bootstrap-server",
    "--from-beginning",
    "--topic",
    "--create",
    "--partitions",
    "--replication-factor",
    "--appendonly",
    "--maxmemory-policy",
    "--dir",
    "--cluster-from",
    "--plug",
];

/// What a program says of itself.
pub struct Help(String);

impl Help {
    /// What `command` prints for `--help`, and so each of its subcommands, and theirs.
    fn of(command: &dyn Fn() -> Result<Command>) -> Result<Self> {
        let mut text = String::new();
        let mut due: Vec<Vec<String>> = vec![Vec::new()];
        while let Some(words) = due.pop() {
            let output = command()?.args(&words).arg("--help").output()?;
            ensure!(output.status.success(), "{words:?} --help: {}", output.status);
            let help = String::from_utf8(output.stdout)?;
            let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
            let names = commands.map_while(|line| line.strip_prefix("  ")?.split(' ').next());
            for name in names.filter(|name| !name.is_empty() && *name != "help") {
                due.push([words.as_slice(), &[name.to_owned()]].concat());
            }
            text += &help;
        }
        Ok(Self(text))
    }

    pub fn reporter() -> Result<Self> {
        Self::of(&reporter::command)
    }

    pub fn host() -> Result<Self> {
        Self::of(&|| Ok(Command::new(paths::verve_host()?)))
    }

    fn xtask() -> Result<Self> {
        Self::of(&|| Ok(Command::new(paths::target().join("release/xtask"))))
    }

    /// Its flags, `--listen` and so on.
    pub fn flags(&self) -> BTreeSet<String> {
        flags_in(&self.0)
    }

    /// The environment variables that stand for its flags.
    pub fn variables(&self) -> BTreeSet<String> {
        // `[env: NAME=value]`, or `[env: NAME]` where the value may be a secret.
        let after = self.0.split("[env: ").skip(1);
        after
            .filter_map(|text| text.split(['=', ']']).next())
            .map(str::to_owned)
            .collect()
    }
}

/// Every `--flag` in a text.
pub fn flags_in(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let words = text.split(|c| !is_word(c));
    // A table's rule is dashes alone, and a dash too many is no flag.
    words
        .filter(|word| word.starts_with("--") && word[2..].starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// The application's variables, by `spin.toml`.
pub fn spin_variables() -> Result<BTreeSet<String>> {
    let manifest: toml::Table = fs::read_to_string(paths::manifest())?.parse()?;
    let variables = manifest.get("variables").and_then(toml::Value::as_table);
    Ok(variables.context("[variables]")?.keys().cloned().collect())
}

/// All files below a folder of the repository, those of its subfolders included.
pub fn files(folder: &str) -> Result<Vec<PathBuf>> {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                collect(&path, files)?;
            } else {
                files.push(path);
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    collect(&paths::repository().join(folder), &mut files).with_context(|| folder.to_owned())?;
    files.sort();
    Ok(files)
}

/// The texts that users follow.
fn documents() -> Result<Vec<PathBuf>> {
    let mut all = files("docs")?;
    all.retain(|file| file.extension().is_some_and(|e| e == "md"));
    let others = ["CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"];
    all.extend(others.map(|name| paths::repository().join(name)));
    Ok(all)
}

#[test]
fn the_reference_is_what_the_programs_say() -> Result<()> {
    for (name, mut command) in [
        ("verve-reporter", reporter::command()?),
        ("verve-host", Command::new(paths::verve_host()?)),
    ] {
        let output = command.arg("markdown").output()?;
        ensure!(output.status.success(), "{name} markdown: {}", output.status);
        let said = fs::read_to_string(paths::repository().join(format!("docs/{name}.md")))?;
        let same = said.trim() == String::from_utf8(output.stdout)?.trim();
        assert!(
            same,
            "docs/{name}.md is outdated: `cargo xtask reference` writes it anew"
        );
    }
    Ok(())
}

/// Where a document names an end-to-end test, `module::test`, there is one.
#[test]
fn tests_that_are_named_exist() -> Result<()> {
    let mut named = 0;
    for file in documents()? {
        let text = fs::read_to_string(&file)?;
        for (module, test) in text.split('`').filter_map(|word| word.split_once("::")) {
            let source = paths::repository().join(format!("tests/tests/e2e/{module}.rs"));
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            if !test.chars().all(is_name) || !source.is_file() {
                continue;
            }
            let source = fs::read_to_string(source)?;
            assert!(
                source.contains(&format!("fn {test}(")),
                "{}: {module}::{test}",
                file.display()
            );
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
    Ok(())
}

/// What leads from a document to another file, or to a heading, leads there.
#[test]
fn links_lead_somewhere() -> Result<()> {
    // As it is made of a heading for its address.
    let anchor = |heading: &str| -> String {
        let kept = heading
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
            .collect()
    };
    let mut links = 0;
    for file in documents()? {
        let text = fs::read_to_string(&file)?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => file.clone(),
                path => file.parent().context("a folder")?.join(path),
            };
            assert!(target.exists(), "{}: {link}", file.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target)?;
                let mut headings = text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| anchor(line.trim_start_matches('#')));
                assert!(headings.any(|found| found == heading), "{}: {link}", file.display());
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
    Ok(())
}

#[test]
fn flags_exist() -> Result<()> {
    let mut known = Help::reporter()?.flags();
    known.extend(Help::host()?.flags());
    known.extend(Help::xtask()?.flags());
    assert!(known.contains("--redis-urls") && known.contains("--state-dir") && known.contains("--demo"));
    known.extend(OTHERS.map(str::to_owned));
    for file in documents()? {
        let named = flags_in(&fs::read_to_string(&file)?);
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{}: no program has {unknown:?}", file.display());
    }
    Ok(())
}

#[test]
fn spin_variables_exist() -> Result<()> {
    let known: BTreeSet<String> = spin_variables()?.iter().map(|name| name.to_uppercase()).collect();
    assert!(known.contains("REDIS_URLS"));
    for file in documents()?.into_iter().chain(files("deploy")?) {
        let text = fs::read_to_string(&file)?;
        for after in text.split("SPIN_VARIABLE_").skip(1) {
            let name: String = after
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                .collect();
            // `SPIN_VARIABLE_NAME` stands for all of them.
            let exists = known.contains(&name) || name == "NAME";
            assert!(exists, "{}: spin.toml has no variable {name}", file.display());
        }
    }
    Ok(())
}

/// `--kafka-brokers` is `VERVE_KAFKA_BROKERS`. Names without the prefix are set by others in many pods.
#[test]
fn the_environment_is_that_of_the_flags() -> Result<()> {
    let help = Help::reporter()?;
    let flags = help.flags().into_iter();
    // Those of subcommands have none.
    let without = [
        "--help",
        "--version",
        "--all",
        "--json",
        "--limit",
        "--dry-run",
        "--counter",
        "--from",
        "--to",
    ];
    let expected: BTreeSet<String> = flags
        .filter(|flag| !without.contains(&flag.as_str()))
        .map(|flag| format!("VERVE_{}", flag[2..].replace('-', "_").to_uppercase()))
        .collect();
    assert!(expected.contains("VERVE_REDIS_URLS"));
    assert_eq!(help.variables(), expected);
    Ok(())
}

#[test]
fn what_is_no_flag_is_not_taken_for_one() {
    let found = flags_in("|---|\n`--listen` --late-seconds=5, a--b <!-- note --> --x1 -v ---- --X\n");
    let expected = ["--late-seconds", "--listen", "--x1"].map(str::to_owned);
    assert_eq!(found, expected.into());
}

/// The rules in the documents that begin so, for this site's namespace.
fn rules(site: &Site, begin: &str) -> Result<String> {
    let text = fs::read_to_string(paths::repository().join("docs/deploy.md"))?;
    let rules = text.split('`').find(|code| code.starts_with(begin));
    let rules = rules.context("docs/deploy.md has no rules")?;
    let namespace = &site.namespace;
    Ok(rules
        .replace("~verve", &format!("~{namespace}"))
        .replace("~{verve", &format!("~{{{namespace}")))
}

/// The rules of the component's own Redis user, for this site's namespace.
fn redis_user(site: &Site) -> Result<Vec<String>> {
    let rules = rules(site, "~verve:* ~{verve}:* +")?;
    let (rules, selector) = rules.split_once(" (").context("a selector")?;
    let words = ["SETUSER", "edge", "reset", "on", ">hunter2"]
        .into_iter()
        .chain(rules.split(' '));
    Ok(words.map(str::to_owned).chain([format!("({selector}")]).collect())
}

#[tokio::test]
async fn the_components_redis_user_suffices() -> Result<()> {
    let site = Site::with_one_window().await?;
    let rules = redis_user(&site)?;
    let url = format!("redis://edge:hunter2@{}", site.redis.server().address());
    let host = site.host(Kind::VerveHost).variable("redis_urls", &url);
    let host = host.variable("redis_timeout_ms", "300").start().await?;
    let window = clock::current_window(site.length);
    let accept = async |query: &str| -> Result<String> {
        let answer = http::get(host.addr(), &format!("/api/verve/accept?{query}")).await?;
        Ok(answer.header("verve-outcome").unwrap_or_default().to_owned())
    };
    // Nobody knows the user yet, so all three are spooled, the callback too.
    for query in ["id=1", "id=2", "id=3&endpoint=http%3A%2F%2Fe.com%2F"] {
        assert_eq!(accept(query).await?, "spooled", "{query}");
    }
    let mut acl = redis::cmd("ACL");
    acl.arg(&rules)
        .exec_async(&mut site.connection().await?)
        .await
        .context("ACL")?;
    wait::until("the spool to be drained", SOON, || async {
        let jobs = site.stream(&site.keys().callbacks()).await.ok()?;
        let ids = site.members(window).await.ok()?;
        (jobs.len() == 1 && ids[0].len() == 3).then_some(())
    })
    .await
    .with_context(|| host.process().log())?;
    // Another instance, if it is asked, spools once more before it finds out.
    let asked = Cell::new(3);
    let recorded = async |query: &dyn Fn(u64) -> String, outcome: &str| {
        wait::until(outcome, SOON, || async {
            asked.set(asked.get() + 1);
            (accept(&query(asked.get())).await.ok()? == outcome).then_some(())
        })
        .await
    };
    recorded(&|_| "id=3".to_owned(), "duplicate").await?;
    recorded(&|n| format!("id={n}&endpoint=http%3A%2F%2Fe.com%2F"), "new").await?;
    let stats = site.keys().stats(window);
    wait::until("statistics that expire", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let requests: u64 = redis.hget(&stats, "requests").await.ok()?;
        let expiry: i64 = redis.ttl(&stats).await.ok()?;
        (requests == asked.get() && expiry > 0).then_some(())
    })
    .await?;
    let older = site.host(Kind::VerveHostP2).variable("redis_urls", &url);
    let older = older.start().await?;
    for (query, outcome) in [("id=2", "duplicate"), ("id=-1&endpoint=http%3A%2F%2Fe.com%2F", "new")] {
        let answer = http::get(older.addr(), &format!("/api/verve/accept?{query}")).await?;
        assert_eq!(answer.header("verve-outcome"), Some(outcome), "{query} on WASI 0.2");
    }
    assert_eq!(denied(&site).await?, [""; 0]);
    Ok(())
}

/// What was refused to users of Redis, other than to log in, and the name that clients give themselves (Redis 7.2).
async fn denied(site: &Site) -> Result<Vec<String>> {
    let log: Vec<BTreeMap<String, String>> = redis::cmd("ACL")
        .arg("LOG")
        .query_async(&mut site.connection().await?)
        .await?;
    let is_refusal = |entry: &&BTreeMap<String, String>| {
        entry.get("reason").is_none_or(|reason| reason != "auth")
            && entry.get("object").is_none_or(|object| !object.starts_with("client"))
    };
    Ok(log
        .iter()
        .filter(is_refusal)
        .map(|entry| format!("{entry:?}"))
        .collect())
}

/// Reporting, late ids, callbacks that die and are put back, named counters, `counts`, `dead` and `doctor`, all by a user who may do what the documents say.
#[tokio::test]
async fn the_reporters_redis_user_suffices() -> Result<()> {
    let redis = RedisServer::options().append_only().start().await?;
    let site = Site::with_redis(1, redis);
    let rules = rules(&site, "~verve:* ~{verve:* ")?;
    let set_user = async |rules: &str| {
        let mut acl = redis::cmd("ACL");
        acl.arg("SETUSER")
            .arg("reporter")
            .arg("reset")
            .arg("on")
            .arg(">hunter2");
        acl.arg(rules.split(' ').collect::<Vec<_>>());
        acl.exec_async(&mut site.connection().await?).await.context("ACL")
    };
    set_user(&rules).await?;
    let url = format!("redis://reporter:hunter2@{}", site.redis.server().address());
    let sink = Sink::start().await?;
    sink.answer("/no", [Answer::status(500), Answer::status(500)]);
    let mut ledger = Ledger::new().await?;
    let flags = [
        "--redis-urls",
        &url,
        "--late-seconds",
        "2",
        "--callback-allow",
        "127.0.0.1",
    ];
    let flags = [&flags[..], &["--callback-attempts", "2", "--callback-backoff-ms", "1"]].concat();
    let all = ledger.flags(&site, &flags);
    let reporter = Reporter::ready(&all).await?;
    let host = site.host(Kind::VerveHost).start().await?;
    let endpoint = sink.url("/no");
    let answer = http::get(host.addr(), &format!("/api/verve/accept?id=1&endpoint={endpoint}")).await?;
    assert_eq!(answer.status, 200);
    let window = clock::next_window(site.length).await;
    site.add(window, 0..5).await?;
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 5..6).await?;
    ledger.read_to(window, 2, SOON).await?;
    reporter.process().wait_for_text("callback given up on", SOON).await?;
    // Final, and then more.
    tokio::time::sleep(Duration::from_secs(5)).await;
    site.add(window, 6..7).await?;
    site.index(window).await?;
    reporter
        .process()
        .wait_for_text("ids came after their window", 2 * SOON)
        .await?;
    let run = async |command: &[&str]| -> Result<(Option<i32>, String)> {
        let mut asked = reporter::command()?;
        asked.args(command).args(site.flags(&["--redis-urls", &url]));
        let process = Process::spawn("verve-reporter", asked)?;
        let status = process.wait(SOON).await?;
        Ok((status.code(), process.log()))
    };
    for command in [
        &["counts"][..],
        &["dead", "list"],
        &["dead", "retry", "--all"],
        &["dead", "drop", "--all"],
        &["doctor"],
    ] {
        let (code, said) = run(command).await?;
        assert_eq!(code, Some(0), "{command:?}: {said}");
    }
    assert_eq!(denied(&site).await?, [""; 0]);
    // What is missing is said.
    for (right, word) in [
        ("+evalsha ", "EVALSHA"),
        ("+zscore ", "ZSCORE"),
        ("+xgroup ", "XGROUP|CREATE, XGROUP|DELCONSUMER"),
        ("+hset ", "HSET"),
    ] {
        set_user(&rules.replace(right, "")).await?;
        let (code, said) = run(&["doctor"]).await?;
        assert_eq!(code, Some(1), "{right}: {said}");
        assert!(said.contains(word), "{right}: {said}");
    }
    Ok(())
}

/// What the two manifests have in common is the same in both.
#[test]
fn the_manifests_agree() -> Result<()> {
    let [usual, older] = [paths::manifest(), paths::repository().join("deploy/spin-wasip2.toml")]
        .map(|path| anyhow::Ok(fs::read_to_string(path)?.parse::<toml::Table>()?));
    let (mut usual, older) = (usual?, older?);
    let component = |manifest: &toml::Table| manifest["component"]["accept"].clone();
    let [usual_component, older_component] = [component(&usual), component(&older)];
    assert_eq!(
        usual_component["allowed_outbound_hosts"],
        older_component["allowed_outbound_hosts"]
    );
    assert_eq!(older_component.get("sqlite_databases"), None);
    for table in [usual["variables"].clone(), usual_component["variables"].clone()] {
        assert!(table.get("spool_limit").is_some(), "{table:?}");
    }
    // The one variable of the spool, which the older build does not have.
    let without = |table: &toml::Value| {
        let mut table = table.as_table().cloned().unwrap_or_default();
        table.remove("spool_limit");
        table
    };
    assert_eq!(without(&usual["variables"]), without(&older["variables"]));
    assert_eq!(
        without(&usual_component["variables"]),
        without(&older_component["variables"])
    );
    for name in ["application", "trigger"] {
        assert_eq!(usual.remove(name), older.get(name).cloned(), "{name}");
    }
    Ok(())
}
