//! The reporter's settings: by flag, by environment variable, and from a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;
use verve_tests::process::Process;
use verve_tests::reporter::{self, Reporter};
use verve_tests::{net, paths};

use crate::site::{SOON, Site};

struct Settings(TempDir);

impl Settings {
    fn new(text: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("verve.toml"), text)?;
        Ok(Self(folder))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("verve.toml")
    }
}

/// Returns the output and exit code of `verve-reporter` with these arguments.
async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let mut command = reporter::command()?;
    command.args(arguments).envs(environment.iter().copied());
    let process = Process::spawn("verve-reporter", command)?;
    let status = process.wait(SOON).await?;
    Ok((status.code(), process.log()))
}

async fn check(file: &Path, more: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let file = file.display().to_string();
    let arguments = [&["config", "check", "--config", &file], more].concat();
    let (code, text) = run(&arguments, environment).await?;
    assert_eq!(code, Some(0), "{text}");
    Ok(text)
}

#[tokio::test]
async fn the_command_line_comes_before_the_environment_and_that_before_the_file() -> Result<()> {
    let file = Settings::new(
        "namespace = 'file'\nwindow-seconds = 5\nlate-seconds = '7'\ngrace-ms = 1\nkafka-option = ['linger.ms=3', 'client.rack=a']\n\
         callback-allow = ['10.0.0.0/8', 'e.com']\ncallback-allow-only = true\nkafka-transactions = false\n",
    )?;
    let environment = [("VERVE_WINDOW_SECONDS", "6"), ("VERVE_GRACE_MS", "2")];
    let text = check(&file.path(), &["--grace-ms", "3"], &environment).await?;
    for line in [
        "redis-urls = \"redis://127.0.0.1:6379\" # default",
        "namespace = \"file\" # file",
        "window-seconds = 6 # environment, VERVE_WINDOW_SECONDS",
        "grace-ms = 3 # command line",
        "late-seconds = 7 # file",
        "kafka-option = [\"linger.ms=3\", \"client.rack=***\"] # file",
        "callback-allow = [\"10.0.0.0/8\", \"e.com\"] # file",
        "callback-allow-only = true # file",
        "kafka-transactions = false # file",
        "# kafka-brokers is not set",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
    }
    // A flag on the command line replaces the whole list of the file.
    let text = check(&file.path(), &["--callback-allow", "f.com"], &[]).await?;
    assert!(text.contains("callback-allow = [\"f.com\"] # command line"), "{text}");
    // The file can be named in the environment, and flags can come first.
    let path = file.path().display().to_string();
    let (_, text) = run(&["--grace-ms", "4", "config", "check"], &[("VERVE_CONFIG", &path)]).await?;
    assert!(
        text.contains("grace-ms = 4 # command line") && text.contains("namespace = \"file\" # file"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn the_effective_configuration_is_a_valid_file() -> Result<()> {
    let file = Settings::new(
        "namespace = 'a'\nkafka-option = ['linger.ms=3']\ncallback-allow-only = true\ncallback-allow = ['e.com']",
    )?;
    let first = check(&file.path(), &[], &[]).await?;
    let again = Settings::new(&first)?;
    let second = check(&again.path(), &[], &[]).await?;
    let values = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .map(|line| line.split(" # ").next().unwrap_or_default().to_owned());
        lines.collect()
    };
    assert_eq!(values(&first), values(&second));
    Ok(())
}

#[tokio::test]
async fn secrets_are_not_shown() -> Result<()> {
    let secret = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==";
    let file = Settings::new(&format!(
        "redis-urls = 'redis://user:hunter2@a:1'\nkafka-option = ['sasl.password=hunter2']\n\
         callback-url = 'https://e.com/hunter2?hunter2=1'\ncallback-secret = '{secret}'\nadmin-token = 'hunter2hunter2hunter2'\n",
    ))?;
    let text = check(&file.path(), &[], &[]).await?;
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVy"), "{text}");
    for shown in [
        "a:1",
        "https://e.com/",
        "sasl.password=***",
        "callback-secret = \"***\"",
        "admin-token = \"***\"",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn errors_in_a_file_are_reported() -> Result<()> {
    for (text, words) in [
        (
            "windows-seconds = 5",
            &["verve.toml", "windows-seconds", "no such setting"][..],
        ),
        ("config = 'x'", &["config", "no such setting"]),
        ("grace-ms = 1\n\nnamespace = ", &["verve.toml", "line 3"]),
        ("grace-ms = 1\ngrace-ms = 2", &["verve.toml", "line 2", "duplicate"]),
        ("window-seconds = 0", &["verve.toml", "--window-seconds", "86400"]),
        (
            "window-seconds = 1.5",
            &["verve.toml", "window-seconds", "whole number"],
        ),
        (
            "window-seconds = [5]",
            &["verve.toml", "window-seconds", "whole number"],
        ),
        (
            "[window-seconds]\na = 5",
            &["verve.toml", "window-seconds", "whole number"],
        ),
        ("kafka-option = 'a=b'", &["verve.toml", "kafka-option", "list"]),
        ("callback-allow = [1]", &["verve.toml", "callback-allow", "list"]),
        (
            "callback-allow-only = 'yes'",
            &["verve.toml", "callback-allow-only", "true or false"],
        ),
        ("redis-urls = 'hunter2'", &["verve.toml", "--redis-urls", "redis://"]),
        ("callback-secret = 'hunter2'", &["verve.toml", "--callback-secret"]),
        ("admin-token = 'hunter2", &["verve.toml", "line 1"]),
        (
            "kafka-option = ['no.such.setting=hunter2']",
            &["verve.toml", "no.such.setting"],
        ),
    ] {
        let file = Settings::new(text)?;
        let (code, output) = run(&["--config", &file.path().display().to_string()], &[]).await?;
        assert_eq!(code, Some(64), "{text}: {output}");
        assert_eq!(output.lines().count(), 1, "{text}: {output}");
        assert!(words.iter().all(|word| output.contains(word)), "{text}: {output}");
        assert!(!output.contains("hunter2"), "{text}: {output}");
    }
    let (code, output) = run(&["--config", "/nowhere/verve.toml"], &[]).await?;
    assert_eq!(code, Some(64));
    assert!(output.contains("/nowhere/verve.toml"), "{output}");
    // A mistake on the command line is not attributed to the file.
    let file = Settings::new("namespace = 'a'")?;
    let (_, output) = run(
        &["--config", &file.path().display().to_string(), "--redis-urls", "x"],
        &[],
    )
    .await?;
    assert!(!output.contains("verve.toml"), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_reporter_runs_by_its_file_alone() -> Result<()> {
    let site = Site::new(5).await?;
    let file = Settings::new(&format!(
        "redis-urls = '{}'\nnamespace = '{}'\nwindow-seconds = 5\nlisten = '{}'\n",
        site.redis_urls(),
        site.namespace,
        net::free_address()?,
    ))?;
    let reporter = Reporter::start(&["--config".to_owned(), file.path().display().to_string()])?;
    reporter.wait_ready(SOON).await
}

#[tokio::test]
async fn completions_manual_and_version() -> Result<()> {
    for program in ["verve-reporter", "verve-host"] {
        let run = async |arguments: &[&str]| -> Result<String> {
            let path = if program == "verve-host" {
                paths::verve_host()?
            } else {
                paths::verve_reporter()?
            };
            let mut command = std::process::Command::new(path);
            command.args(arguments);
            let process = Process::spawn(program, command)?;
            let status = process.wait(SOON).await?;
            assert!(status.success(), "{program} {arguments:?}: {}", process.log());
            Ok(process.log())
        };
        for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
            let text = run(&["completions", shell]).await?;
            assert!(
                text.contains(word) && text.contains("listen"),
                "{program} {shell}: {text}"
            );
        }
        // The possible values of a flag are offered.
        let words = run(&["completions", "bash"]).await?;
        assert!(words.contains("compgen -W \"text json\""), "{program}: {words}");
        let manual = run(&["man"]).await?;
        assert!(
            manual.contains(".TH") && manual.contains("listen"),
            "{program}: {manual}"
        );
        let version = run(&["--version"]).await?;
        assert!(
            version.starts_with(&format!("{program} {}", env!("CARGO_PKG_VERSION"))),
            "{version}"
        );
    }
    Ok(())
}
