//! Shows dead letters, without the parts that may contain secrets.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use url::Url;
use verve_protocol::{CounterName, Method};

use super::super::deliver;
use super::EntryId;
use crate::command;

/// The readable parts of a dead letter that may be shown.
#[derive(Debug, Serialize)]
pub struct DeadJob {
    /// The id of its entry in the dead stream.
    #[serde(serialize_with = "serialize_id")]
    pub id: EntryId,
    /// When the job was given up.
    time: Option<String>,
    /// The start of its window, as in the key of the Kafka record.
    window: Option<String>,
    /// The named counter, if it is not the unnamed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    counter: Option<String>,
    method: Option<&'static str>,
    /// Without query and userinfo.
    endpoint: Option<String>,
    attempts: Option<u32>,
    /// The error of the last attempt.
    error: Option<String>,
}

fn serialize_id<S: serde::Serializer>(id: &EntryId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl DeadJob {
    /// Converts the entry `id` with these fields.
    pub fn new(id: EntryId, fields: &HashMap<String, String>) -> Self {
        let field = |name: &str| fields.get(name);
        let time = i64::try_from(id.time_ms).ok().map(Timestamp::from_millisecond);
        let window = field("window").and_then(|start| start.parse().ok());
        Self {
            id,
            time: time.and_then(Result::ok).map(|time| format!("{time:.3}")),
            window: window.and_then(|start| Some(Timestamp::from_second(start).ok()?.to_string())),
            counter: field("counter").and_then(|name| Some(name.parse::<CounterName>().ok()?.to_string())),
            method: field("method").and_then(|method| Some(method.parse::<Method>().ok()?.as_str())),
            endpoint: field("endpoint").and_then(|text| Some(deliver::without_secrets(Url::parse(text).ok()?))),
            attempts: field("attempts").and_then(|attempts| attempts.parse().ok()),
            // Control characters could manipulate the terminal.
            error: field("error").map(|error| error.replace(char::is_control, " ")),
        }
    }

    /// Returns a line of the table.
    pub fn line(&self) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        // As in the key of the Kafka record.
        let counter = self.counter.as_ref().map(|name| format!("{name}/"));
        columns([
            &self.id.to_string(),
            &text(&self.time),
            &(counter.unwrap_or_default() + &text(&self.window)),
            self.method.unwrap_or("-"),
            &self.attempts.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            &text(&self.endpoint),
            &text(&self.error),
        ])
    }
}

fn columns([id, time, window, method, attempts, endpoint, error]: [&str; 7]) -> String {
    format!("{id:<17}  {time:<24}  {window:<20}  {method:<6}  {attempts:>8}  {endpoint}  {error}")
}

/// Writes the jobs to standard output: a table, or one JSON array.
pub fn print(jobs: &[DeadJob], json: bool) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string_pretty(jobs)? + "\n"
    } else {
        let header = columns(["ID", "TIME", "WINDOW", "METHOD", "ATTEMPTS", "ENDPOINT", "ERROR"]);
        let lines = jobs.iter().map(DeadJob::line);
        std::iter::once(header)
            .chain(lines)
            .map(|line| line + "\n")
            .collect::<String>()
    };
    Ok(command::print(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(fields: &[(&str, &str)]) -> DeadJob {
        let fields = fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        DeadJob::new("1795383012345-7".parse().expect("an id"), &fields.collect())
    }

    #[test]
    fn a_job_is_shown_without_its_secrets() {
        let job = job(&[
            ("endpoint", "http://u:hunter2@e.com:81/a?token=hunter2#hunter2"),
            ("method", "post"),
            ("window", "1795383000"),
            ("error", "status\n\u{1b}[31m418"),
            ("attempts", "3"),
        ]);
        let json = serde_json::to_string(&job).expect("JSON");
        assert_eq!(
            json,
            r#"{"id":"1795383012345-7","time":"2026-11-22T21:30:12.345Z","window":"2026-11-22T21:30:00Z","method":"post","endpoint":"http://e.com:81/a","attempts":3,"error":"status  [31m418"}"#
        );
        assert_eq!(
            job.line(),
            "1795383012345-7    2026-11-22T21:30:12.345Z  2026-11-22T21:30:00Z  post           3  http://e.com:81/a  status  [31m418"
        );
    }

    #[test]
    fn a_named_counter_is_shown() {
        let job = job(&[("window", "1795383000"), ("counter", "game-7")]);
        assert!(job.line().contains("  game-7/2026-11-22T21:30:00Z  "), "{}", job.line());
        let json = serde_json::to_string(&job).expect("JSON");
        assert!(
            json.contains(r#""window":"2026-11-22T21:30:00Z","counter":"game-7""#),
            "{json}"
        );
    }

    #[test]
    fn an_invalid_job_is_shown_by_its_error() {
        let job = job(&[
            ("endpoint", "hunter2"),
            ("method", "hunter2"),
            ("window", "hunter2"),
            ("job", "hunter2"),
            ("error", "not readable"),
            ("attempts", "0"),
        ]);
        let json = serde_json::to_string(&job).expect("JSON");
        assert_eq!(
            json,
            r#"{"id":"1795383012345-7","time":"2026-11-22T21:30:12.345Z","window":null,"method":null,"endpoint":null,"attempts":0,"error":"not readable"}"#
        );
        assert!(!job.line().contains("hunter2"));
    }
}
