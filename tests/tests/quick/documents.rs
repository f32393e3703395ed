//! The documentation and the files in `deploy/` refer only to things that exist.
//!
//! These are flags, environment variables, Spin variables, tests and headings.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use verve_tests::{paths, reporter};

/// Flags of other programs: Spin, docker and podman, kubectl, Kafka, Redis.
const OTHERS: [&str; 22] = [
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
    "--scan",
    "--pattern",
    "--cluster-from",
    "--engine",
    "--include-files",
    "--out",
    "--plug",
    "--release",
    "--target",
];

/// The help text of a program.
pub struct Help(String);

impl Help {
    /// Returns the output of `command` for `--help`, with all levels of subcommands.
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

    /// Returns its flags, `--listen` and so on.
    pub fn flags(&self) -> BTreeSet<String> {
        flags_in(&self.0)
    }

    /// Returns the environment variables that can replace its flags.
    pub fn variables(&self) -> BTreeSet<String> {
        // `[env: NAME=value]`, or `[env: NAME]` if the value may be a secret.
        let after = self.0.split("[env: ").skip(1);
        after
            .filter_map(|text| text.split(['=', ']']).next())
            .map(str::to_owned)
            .collect()
    }
}

/// Returns every `--flag` in a text.
pub fn flags_in(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let words = text.split(|c| !is_word(c));
    // The rule of a table consists only of dashes. A word with too many dashes is not a flag.
    words
        .filter(|word| word.starts_with("--") && word[2..].starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// Returns the application's variables, from `spin.toml`.
pub fn spin_variables() -> Result<BTreeSet<String>> {
    let manifest: toml::Table = fs::read_to_string(paths::manifest())?.parse()?;
    let variables = manifest.get("variables").and_then(toml::Value::as_table);
    Ok(variables.context("[variables]")?.keys().cloned().collect())
}

/// Returns all files below a folder of the repository, including its subfolders.
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

/// Returns whether a file has one of these extensions.
pub fn has_extension(file: &Path, extensions: &[&str]) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&extension))
}

/// Returns the documents that users read.
fn documents() -> Result<Vec<PathBuf>> {
    let mut all = files("docs")?;
    all.retain(|file| has_extension(file, &["md"]));
    let others = ["CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"];
    all.extend(others.map(|name| paths::repository().join(name)));
    Ok(all)
}

#[test]
fn the_reference_matches_the_help_of_the_programs() -> Result<()> {
    for (name, mut command) in [
        ("verve-reporter", reporter::command()?),
        ("verve-host", Command::new(paths::verve_host()?)),
    ] {
        let output = command.arg("markdown").output()?;
        ensure!(output.status.success(), "{name} markdown: {}", output.status);
        let page = fs::read_to_string(paths::repository().join(format!("docs/{name}.md")))?;
        let same = page.trim() == String::from_utf8(output.stdout)?.trim();
        assert!(
            same,
            "docs/{name}.md is outdated: `cargo xtask reference` writes it again"
        );
    }
    Ok(())
}

/// If a document names an end-to-end test, `module::test`, the test exists.
#[test]
fn tests_that_are_named_exist() -> Result<()> {
    let mut named = 0;
    let sources = files("tests/tests")?;
    for file in documents()? {
        let text = fs::read_to_string(&file)?;
        for (module, test) in text.split('`').filter_map(|word| word.split_once("::")) {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            // The module may be in the folder of any theme.
            let source = sources
                .iter()
                .find(|file| file.file_stem().is_some_and(|stem| stem == module));
            let Some(source) = source.filter(|_| test.chars().all(is_name)) else {
                continue;
            };
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

/// A link in a document leads to an existing file and heading.
#[test]
fn links_lead_somewhere() -> Result<()> {
    // The address of a heading, made from its text.
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

/// Each flag has its variable: `--kafka-brokers` is `VERVE_KAFKA_BROKERS`.
///
/// In many pods, other software sets names without the prefix.
#[test]
fn the_environment_is_that_of_the_flags() -> Result<()> {
    let help = Help::reporter()?;
    let flags = help.flags().into_iter();
    // These have no variable, like all flags of subcommands.
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
fn a_value_is_not_mistaken_for_a_flag() {
    let found = flags_in("|---|\n`--listen` --late-seconds=5, a--b <!-- note --> --x1 -v ---- --X\n");
    let expected = ["--late-seconds", "--listen", "--x1"].map(str::to_owned);
    assert_eq!(found, expected.into());
}

/// The common settings of the two manifests are the same.
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
    // The only variable of the spool, which the older build does not have.
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

/// The book lists each page once, and no page that does not exist.
#[test]
fn the_book_lists_every_page() -> Result<()> {
    let summary = fs::read_to_string(paths::repository().join("docs/SUMMARY.md"))?;
    let mut listed: Vec<&str> = summary
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    listed.sort_unstable();
    let pages = files("docs")?;
    let pages = pages.iter().filter(|file| has_extension(file, &["md"]));
    let names = pages.filter_map(|file| file.file_name()?.to_str());
    let pages: Vec<&str> = names.filter(|name| *name != "SUMMARY.md").collect();
    assert_eq!(listed, pages);
    Ok(())
}

/// A visitor reads one page.
#[test]
fn the_readme_is_one_page() -> Result<()> {
    let readme = fs::read_to_string(paths::repository().join("README.md"))?;
    assert!(readme.lines().count() <= 120, "{} lines", readme.lines().count());
    Ok(())
}

/// Each alert has a runbook.
#[test]
fn each_alert_has_a_runbook() -> Result<()> {
    let rules = fs::read_to_string(paths::repository().join("deploy/prometheus/alerts.yaml"))?;
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let runbooks = fs::read_to_string(paths::repository().join("docs/runbooks.md"))?;
    let headings: Vec<&str> = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(alerts, headings);
    Ok(())
}
