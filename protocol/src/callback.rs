//! Callback jobs, which the component adds to a stream and the reporter delivers.

use std::fmt;
use std::str::FromStr;

use crate::{CounterName, Endpoint, Window, WindowLength};

/// The HTTP method of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET endpoint?unique_count=N`
    Get,
    /// `POST endpoint` with `{"unique_count":N}`
    Post,
}

/// The error for a text that is not a [`Method`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("callback method {0:?} is neither \"get\" nor \"post\"")]
pub struct InvalidMethod(String);

impl Method {
    /// Returns the name of the method, in lower case.
    ///
    /// Requests, variables and jobs contain this name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
        }
    }
}

impl FromStr for Method {
    type Err = InvalidMethod;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "get" => Ok(Self::Get),
            "post" => Ok(Self::Post),
            other => Err(InvalidMethod(other.to_owned())),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request to send the unique count of a window to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallbackJob {
    /// The endpoint to call.
    pub endpoint: Endpoint,
    /// The HTTP method of the call.
    pub method: Method,
    /// The window whose count is sent.
    pub window: Window,
    /// The named counter whose count is sent; `None` is the unnamed one.
    pub counter: Option<CounterName>,
    /// The revision of the report. Only a job of the fixed callback has one.
    pub revision: Option<u64>,
}

/// The error for a stream entry that is not a [`CallbackJob`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("callback job: field {field:?} is missing or invalid")]
pub struct InvalidJob {
    field: &'static str,
}

impl CallbackJob {
    const ENDPOINT: &'static str = "endpoint";
    const METHOD: &'static str = "method";
    const WINDOW: &'static str = "window";
    const LENGTH: &'static str = "length";
    const COUNTER: &'static str = "counter";
    const REVISION: &'static str = "revision";

    /// Returns the fields of the job's stream entry.
    #[must_use]
    pub fn to_fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            (Self::ENDPOINT, self.endpoint.to_string()),
            (Self::METHOD, self.method.to_string()),
            (Self::WINDOW, self.window.start().to_string()),
            (Self::LENGTH, self.window.length().to_string()),
        ];
        fields.extend(self.counter.as_ref().map(|name| (Self::COUNTER, name.to_string())));
        fields.extend(self.revision.map(|revision| (Self::REVISION, revision.to_string())));
        fields
    }

    /// Parses the job in a stream entry, whose fields `get` looks up.
    ///
    /// `length` is the window length of a job that does not contain one.
    ///
    /// # Errors
    /// If a field is missing or invalid. Neither the component nor the reporter writes such an
    /// entry.
    pub fn from_fields<'a>(length: WindowLength, get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, InvalidJob> {
        fn parse<T: FromStr>(field: &'static str, text: Option<&str>) -> Result<T, InvalidJob> {
            text.and_then(|t| t.parse().ok()).ok_or(InvalidJob { field })
        }
        fn parse_optional<T: FromStr>(field: &'static str, text: Option<&str>) -> Result<Option<T>, InvalidJob> {
            text.map(|text| parse(field, Some(text))).transpose()
        }
        let start = parse(Self::WINDOW, get(Self::WINDOW))?;
        let length = parse_optional(Self::LENGTH, get(Self::LENGTH))?.unwrap_or(length);
        Ok(Self {
            endpoint: parse(Self::ENDPOINT, get(Self::ENDPOINT))?,
            method: parse(Self::METHOD, get(Self::METHOD))?,
            window: length
                .window_starting(start)
                .ok_or(InvalidJob { field: Self::WINDOW })?,
            counter: parse_optional(Self::COUNTER, get(Self::COUNTER))?,
            revision: parse_optional(Self::REVISION, get(Self::REVISION))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(length: WindowLength, fields: &[(&str, &str)]) -> Result<CallbackJob, InvalidJob> {
        CallbackJob::from_fields(length, |name| fields.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
    }

    #[test]
    fn the_fields_are_pinned() {
        let length = WindowLength::try_new(60).expect("valid");
        let fields = [
            ("endpoint", "http://e.com/?a=b"),
            ("method", "post"),
            ("window", "120"),
            ("length", "60"),
        ];
        let job = read(length, &fields).expect("a job");
        assert_eq!(job.to_fields(), fields.map(|(n, v)| (n, v.to_owned())));
        // A job of an earlier version contains no length and has that of the reader. Any other job
        // contains its own.
        assert_eq!(read(length, &fields[..3]), Ok(job.clone()));
        let hour = WindowLength::try_new(3600).expect("valid");
        assert_eq!(read(hour, &fields), Ok(job.clone()));
        let of_counter = CallbackJob {
            counter: Some("game-7".parse().expect("a name")),
            ..job
        };
        let fields = [&fields[..], &[("counter", "game-7")]].concat();
        assert_eq!(read(length, &fields), Ok(of_counter.clone()));
        assert_eq!(of_counter.to_fields().last(), Some(&("counter", "game-7".to_owned())));
    }

    #[test]
    fn a_broken_field_is_named() {
        let length = WindowLength::try_new(60).expect("valid");
        for (endpoint, method, window, revision, field) in [
            ("nonsense", "get", "60", "0", "endpoint"),
            ("http://e.com", "GET", "60", "0", "method"),
            ("http://e.com", "get", "61", "0", "window"),
            ("http://e.com", "get", "x", "0", "window"),
            ("http://e.com", "get", "60", "-1", "revision"),
        ] {
            let fields = [
                ("endpoint", endpoint),
                ("method", method),
                ("window", window),
                ("revision", revision),
            ];
            assert_eq!(read(length, &fields), Err(InvalidJob { field }));
        }
        assert_eq!(read(length, &[]), Err(InvalidJob { field: "window" }));
        let of_no_length = [("window", "60"), ("length", "0")];
        assert_eq!(read(length, &of_no_length), Err(InvalidJob { field: "length" }));
        let of_no_counter = [
            ("window", "60"),
            ("endpoint", "http://e.com"),
            ("method", "get"),
            ("counter", "a b"),
        ];
        assert_eq!(read(length, &of_no_counter), Err(InvalidJob { field: "counter" }));
    }

    proptest! {
        #[test]
        fn a_job_reads_back(path in "[a-z0-9/?=&]{0,30}", post: bool, seconds in 1..=86_400u32, n in 0..1_000_000u64, counter in proptest::option::of("[a-z0-9._-]{1,64}"), revision: Option<u64>) {
            let length = WindowLength::try_new(seconds).expect("valid");
            let job = CallbackJob {
                endpoint: format!("https://example.com/{path}").parse().expect("an endpoint"),
                method: if post { Method::Post } else { Method::Get },
                window: length.window_starting(n * u64::from(seconds)).expect("a start"),
                counter: counter.map(|name| name.parse().expect("a name")),
                revision,
            };
            let fields = job.to_fields();
            let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            prop_assert_eq!(read(length, &fields), Ok(job));
        }
    }
}
