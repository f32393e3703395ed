//! Short output of failed tests.
//!
//! Their complete output may be thousands of lines before the end of a log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::sys;

/// The number of lines of a failed test's output that are repeated, at each end.
const LINES: usize = 12;
/// The maximum length of a repeated line, in characters.
const WIDTH: usize = 300;

/// The time limit of a test. The slowest tests take a minute.
const LIMIT: Duration = Duration::from_secs(240);
/// The message of the test harness about a test that takes long.
const LONG: &str = " has been running for over 60 seconds";
/// The duration after which the test harness prints it.
const PRINTED_AFTER: Duration = Duration::from_secs(60);
/// The maximum number of failed tests that are run again.
///
/// If more fail, they have another cause.
const MOST_AGAIN: usize = 10;

/// Runs tests with their output shown, and adds failed ones to `failed`, in short.
pub fn keep(command: &mut Command, failed: &mut Vec<String>) -> Result<()> {
    let ran = ran(command)?;
    failed.extend(in_short(&ran.output));
    ran.result
}

/// Runs tests like [`keep`], and then the failed tests once more.
///
/// `again` makes the command that runs the tests with these names. A test that passes the second
/// time is flaky. That is a failure too, and it is reported.
pub fn report_flaky(
    command: &mut Command,
    again: impl FnOnce(&[String]) -> Command,
    failed: &mut Vec<String>,
) -> Result<()> {
    let first = ran(command)?;
    failed.extend(in_short(&first.output));
    let names = failed_tests(&first.output);
    if first.result.is_ok() || !(1..=MOST_AGAIN).contains(&names.len()) {
        return first.result;
    }
    sys::log("what has failed is run once more");
    let second = ran(&mut again(&names))?;
    let still = failed_tests(&second.output);
    if second.result.is_ok() || !still.is_empty() {
        for name in names.iter().filter(|name| !still.contains(name)) {
            failed.push(format!(
                "FLAKY: {name} has failed, and has passed when it was run once more"
            ));
        }
    }
    first.result
}

/// The output of tests, and their result.
struct Ran {
    output: Vec<String>,
    result: Result<()>,
}

fn ran(command: &mut Command) -> Result<Ran> {
    let mut child = command
        // A backtrace would show the internals of tokio.
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", sys::shown(command)))?;
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    let reader = thread::spawn(move || {
        for line in stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout).split(b'\n'))
        {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut output = Vec::new();
    let mut long: BTreeMap<String, Instant> = BTreeMap::new();
    let mut hangs = None;
    loop {
        match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(LONG)) {
                    long.insert(name.to_owned(), Instant::now());
                } else if let Some((name, _)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
                    long.remove(name);
                }
                output.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let mut late = long.iter().filter(|(_, since)| since.elapsed() + PRINTED_AFTER > LIMIT);
        if let Some((name, _)) = late.next() {
            hangs = Some(name.clone());
            end(child.id());
            break;
        }
    }
    let status = child.wait()?;
    let _ = reader.join();
    output.extend(receiver.try_iter());
    let result = match hangs {
        Some(name) => Err(anyhow!("{name} has not ended within {} s: it hangs", LIMIT.as_secs())),
        None if status.success() => Ok(()),
        None => Err(anyhow!("{} failed: {status}", sys::shown(command))),
    };
    Ok(Ran { output, result })
}

/// Kills a process, and then all its descendants.
fn end(process: u32) {
    // The children are read first, because they lose their parent when it is killed.
    let threads = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<String> = children.collect();
    let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
    let children = children.iter().flat_map(|children| children.split_whitespace());
    for child in children.filter_map(|child| child.parse().ok()) {
        end(child);
    }
}

/// Returns the names of the failed tests.
fn failed_tests(output: &[String]) -> Vec<String> {
    let names = output
        .iter()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    names.map(str::to_owned).collect()
}

/// Returns the shortened output of each failed test from that of the test harness.
fn in_short(output: &[String]) -> Vec<String> {
    let heads = |line: &String| line.starts_with("---- ") && line.ends_with(" ----");
    let ends = |line: &String| heads(line) || line == "failures:";
    let mut failures = Vec::new();
    for (at, _) in output.iter().enumerate().filter(|(_, line)| heads(line)) {
        let section = &output[at..];
        let end = section.iter().skip(1).position(ends).map_or(section.len(), |n| n + 1);
        failures.push(shortened(&section[..end]));
    }
    failures
}

fn shortened(lines: &[String]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.chars().take(WIDTH).collect())
        .collect();
    let cut = lines.len().saturating_sub(2 * LINES);
    if cut == 0 {
        return lines.join("\n");
    }
    let (first, last) = (&lines[..LINES], &lines[LINES + cut..]);
    format!("{}\n[{cut} lines]\n{}", first.join("\n"), last.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{LINES, end, in_short, report_flaky};

    /// Returns a command that prints what a test harness would print.
    fn harness(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_test_that_passes_when_repeated_is_flaky() {
        let twice = |first: &str, second: &str| {
            let mut failed = Vec::new();
            let mut names = Vec::new();
            let again = |tests: &[String]| {
                names = tests.to_vec();
                harness(second)
            };
            let result = report_flaky(&mut harness(first), again, &mut failed);
            (result.is_ok(), names, failed)
        };
        let fails = "echo 'test a::b ... FAILED'; echo 'test a::c ... FAILED'; echo 'test d ... ok'; exit 1";
        let (passed, names, reported) = twice(fails, "echo 'test a::b ... ok'; echo 'test a::c ... FAILED'; exit 1");
        assert!(!passed && names == ["a::b", "a::c"]);
        assert_eq!(
            reported,
            ["FLAKY: a::b has failed, and has passed when it was run once more"]
        );
        let (passed, names, reported) = twice("echo 'test a::b ... ok'", "exit 1");
        assert!(passed && names.is_empty() && reported.is_empty(), "{reported:?}");
        // The second run did not even begin.
        let (passed, _, reported) = twice(fails, "exit 101");
        assert!(!passed && reported.is_empty(), "{reported:?}");
    }

    #[test]
    fn a_hanging_command_ends_with_all_its_processes() {
        let mut command = harness("sleep 60 & wait");
        let mut child = command.spawn().expect("sh");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let started = loop {
            let started = std::fs::read_to_string(&children).expect("Linux");
            if !started.is_empty() {
                break started.trim().to_owned();
            }
        };
        end(child.id());
        assert!(!child.wait().expect("ended").success());
        // The process has ended, or is a zombie that its new parent has not reaped.
        let lives = || {
            let state = std::fs::read_to_string(format!("/proc/{started}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        let begun = std::time::Instant::now();
        while lives() {
            assert!(begun.elapsed().as_secs() < 10, "{started} lives");
        }
    }

    #[test]
    fn failed_tests_are_repeated_in_short() {
        let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let text = format!(
            "test a ... ok\n\nfailures:\n\n---- b stdout ----\nError: no\n\n---- c stdout ----\n{long}\n\nfailures:\n    b\n    c\n"
        );
        let output: Vec<String> = text.lines().map(str::to_owned).collect();
        let [b, c] = &in_short(&output)[..] else {
            panic!("{:?}", in_short(&output));
        };
        assert_eq!(b, "---- b stdout ----\nError: no");
        assert_eq!(c.lines().count(), 2 * LINES + 1);
        assert!(c.starts_with("---- c stdout ----\nline 0\n") && c.ends_with("line 99"));
    }

    #[test]
    fn tests_that_passed_are_not() {
        assert!(in_short(&["test a ... ok".to_owned()]).is_empty());
    }
}
