//! `verve-reporter doctor`: checks what the reporter needs, and suggests changes.
//!
//! It changes nothing itself. [`redis`], [`traffic`] and [`kafka`] each separate the function that
//! reads a state from the one that judges it. [`rights`] tries commands.

mod kafka;
mod redis;
mod rights;
mod traffic;

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::cli::Config;
use crate::store::Store;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Fine,
    /// It works until something fails.
    Warning,
    /// Counts are wrong or missing, or soon will be.
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// What was found.
    what: String,
    /// What to change.
    fix: Option<String>,
}

impl Finding {
    fn fine(what: impl Into<String>) -> Self {
        Self {
            level: Level::Fine,
            what: what.into(),
            fix: None,
        }
    }

    fn warning(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            what: what.into(),
            fix: Some(fix.into()),
        }
    }

    fn problem(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            ..Self::warning(what, fix)
        }
    }

    /// Returns the same finding, with the name of its subject.
    fn of(self, whom: &str) -> Self {
        Self {
            what: format!("{whom}: {}", self.what),
            ..self
        }
    }
}

/// The findings, as text.
pub struct Report {
    /// A line for each finding, one for what to change, and the number of each level.
    pub text: String,
    /// Whether counts are wrong or missing, or soon will be.
    pub is_bad: bool,
}

/// Runs all checks.
pub async fn examine(store: &Store, config: &Config) -> Report {
    let (answers, mut findings) = redis::examine(store, config.windows.grace).await;
    if answers {
        // If this fails, the checks below find the reason.
        if let Ok(Some(format)) = store.other_format().await {
            let fix = "run the newest version of the reporter that has run here";
            findings.push(Finding::problem(format, fix).of(&store.redis().to_string()));
        }
        findings.extend(rights::examine(store).await);
        findings.extend(traffic::examine(store, &config.lengths).await);
    }
    findings.extend(kafka::examine(&config.kafka).await);
    findings.extend(callback(config).await);
    findings.extend(admin(config));
    report(&findings)
}

fn report(findings: &[Finding]) -> Report {
    let mut text = String::new();
    for Finding { level, what, fix } in findings {
        let level = match level {
            Level::Fine => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{level:8} {what}");
        if let Some(fix) = fix {
            let _ = writeln!(text, "         -> {fix}");
        }
    }
    let of = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (fine, warnings, problems) = (of(Level::Fine), of(Level::Warning), of(Level::Problem));
    let _ = writeln!(text, "{fine} ok, {warnings} to check, {problems} to fix");
    Report {
        text,
        is_bad: problems > 0,
    }
}

/// Checks whether the policy permits the host of the fixed callback.
///
/// It does not call the host.
async fn callback(config: &Config) -> Option<Finding> {
    let (endpoint, _) = config.windows.callback.as_ref()?;
    let url = endpoint.to_url();
    let host = url.host_str().unwrap_or_default();
    let what = format!("callback to {host}");
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        // The parser of the command line has checked it.
        return Some(Finding::fine(what));
    }
    Some(match config.callbacks.policy.resolve(host).await {
        Ok(_) => Finding::fine(what),
        Err(error) => Finding::problem(
            format!("{what}: {error}"),
            "correct --callback-url, or list the host in --callback-allow if it is yours",
        ),
    })
}

/// Checks who can read the admin port.
fn admin(config: &Config) -> Option<Finding> {
    let open = config.admin_token.is_none() && !config.listen.ip().is_loopback();
    open.then(|| {
        Finding::warning(
            format!("the admin port {} answers anyone who can reach it", config.listen),
            "set --admin-token, or keep the port on a network of your own",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_counted() {
        let findings = [
            Finding::fine("a"),
            Finding::warning("b", "do b").of("B"),
            Finding::problem("c", "do c"),
        ];
        let bad = report(&findings);
        assert!(bad.is_bad);
        let expected =
            "ok       a\nwarning  B: b\n         -> do b\nproblem  c\n         -> do c\n1 ok, 1 to check, 1 to fix\n";
        assert_eq!(bad.text, expected);
        assert!(!report(&findings[..2]).is_bad);
    }
}
