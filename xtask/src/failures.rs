//! What failed tests said, in short: their whole output may be thousands of lines before the end of a log.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sys;

/// How many lines of a failed test's output are repeated, of its beginning and of its end.
const LINES: usize = 12;
/// How long a repeated line may be, in characters.
const WIDTH: usize = 300;

/// Runs tests with their output shown. Those that failed are added to `failed`, in short.
pub fn keep(command: &mut Command, failed: &mut Vec<String>) -> Result<()> {
    let mut child = command
        // A backtrace would show the insides of tokio.
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", sys::shown(command)))?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            said.push(line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        failed.extend(in_short(&said));
        bail!("{} failed: {status}", sys::shown(command));
    }
    Ok(())
}

/// The output of each failed test in what the test harness has printed.
fn in_short(said: &[String]) -> Vec<String> {
    let heads = |line: &String| line.starts_with("---- ") && line.ends_with(" ----");
    let ends = |line: &String| heads(line) || line == "failures:";
    let mut failures = Vec::new();
    for (at, _) in said.iter().enumerate().filter(|(_, line)| heads(line)) {
        let section = &said[at..];
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
    use super::{LINES, in_short};

    #[test]
    fn failed_tests_are_repeated_in_short() {
        let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let text = format!(
            "test a ... ok\n\nfailures:\n\n---- b stdout ----\nError: no\n\n---- c stdout ----\n{long}\n\nfailures:\n    b\n    c\n"
        );
        let said: Vec<String> = text.lines().map(str::to_owned).collect();
        let [b, c] = &in_short(&said)[..] else {
            panic!("{:?}", in_short(&said));
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
