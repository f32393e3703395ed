//! The query of a request.
//!
//! `id=<integer>[&counter=<name>][&endpoint=<url>][&method=get|post]`

use verve_counter::Callback;
use verve_protocol::{CounterName, Id};

/// The content of a valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The id to record.
    pub id: Id,
    /// The named counter, if it is not the unnamed one.
    pub counter: Option<CounterName>,
    /// The callback, if one is requested.
    pub callback: Option<Callback>,
}

/// The reason why a request is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// `id` is missing.
    MissingId,
    /// `id` is not a decimal 64-bit integer.
    InvalidId,
    /// `id`, `counter`, `endpoint` or `method` occurs more than once.
    RepeatedParameter,
    /// `counter` is not the name of a counter.
    InvalidCounter,
    /// `counter` names a counter that the variable `counters` does not permit.
    UnknownCounter,
    /// `endpoint` is not an absolute HTTP URL, or is too long.
    InvalidEndpoint,
    /// `method` is neither `get` nor `post`.
    InvalidMethod,
}

impl BadRequest {
    /// Returns the value of the header `verve-error`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::MissingId => "missing-id",
            Self::InvalidId => "invalid-id",
            Self::RepeatedParameter => "repeated-parameter",
            Self::InvalidCounter => "invalid-counter",
            Self::UnknownCounter => "unknown-counter",
            Self::InvalidEndpoint => "invalid-endpoint",
            Self::InvalidMethod => "invalid-method",
        }
    }
}

impl Accept {
    /// Parses a query, and opens the counter that it names.
    ///
    /// `open` returns `None` if requests may not use the counter.
    ///
    /// # Errors
    /// As [`Accept::parse`], and last [`BadRequest::UnknownCounter`] if requests may not use it.
    pub fn open<C>(
        path_with_query: &str,
        open: impl FnOnce(CounterName) -> Option<C>,
    ) -> Result<(Self, Option<C>), BadRequest> {
        let accept = Self::parse(path_with_query)?;
        let name = accept.counter.clone();
        let opened = name.map(|name| open(name).ok_or(BadRequest::UnknownCounter));
        Ok((accept, opened.transpose()?))
    }

    /// Parses the query that follows `?` in `path_with_query`.
    ///
    /// Names and values are percent-decoded, `+` is a blank, and parameters with other names are
    /// ignored.
    ///
    /// # Errors
    /// The first reason that applies, in the order of [`BadRequest`]. Only a repeated parameter
    /// comes before all others. [`BadRequest::UnknownCounter`] is not among them: it depends on the
    /// configuration.
    pub fn parse(path_with_query: &str) -> Result<Self, BadRequest> {
        let query = path_with_query.split_once('?').map_or("", |(_, query)| query);
        let (mut id, mut counter, mut endpoint, mut method) = (None, None, None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let parameter = match &*name {
                "id" => &mut id,
                "counter" => &mut counter,
                "endpoint" => &mut endpoint,
                "method" => &mut method,
                _ => continue,
            };
            if parameter.replace(value).is_some() {
                return Err(BadRequest::RepeatedParameter);
            }
        }
        let id = id
            .ok_or(BadRequest::MissingId)?
            .parse()
            .map_err(|_| BadRequest::InvalidId)?;
        let counter = counter
            .map(|name| name.parse())
            .transpose()
            .map_err(|_| BadRequest::InvalidCounter)?;
        let endpoint = endpoint
            .map(|e| e.parse())
            .transpose()
            .map_err(|_| BadRequest::InvalidEndpoint)?;
        let method = method
            .map(|m| m.parse())
            .transpose()
            .map_err(|_| BadRequest::InvalidMethod)?;
        Ok(Self {
            id,
            counter,
            callback: endpoint.map(|endpoint| Callback { endpoint, method }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use verve_protocol::Method;

    fn parse(query: &str) -> Result<Accept, BadRequest> {
        Accept::parse(&format!("/api/verve/accept?{query}"))
    }

    #[test]
    fn ids_alone() {
        for (query, id) in [
            ("id=7", 7),
            ("id=007", 7),
            ("id=-0", 0),
            ("id=%37", 7),
            ("%69d=7", 7),
            ("x=1&id=7&y", 7),
            ("&&id=7&&", 7),
            ("method=post&id=7", 7),
            ("id=-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(
                parse(query),
                Ok(Accept {
                    id: Id(id),
                    counter: None,
                    callback: None
                }),
                "{query}"
            );
        }
    }

    #[test]
    fn counters() {
        for (query, name) in [
            ("id=7&counter=game-7", "game-7"),
            ("counter=a%2Eb_C&id=7&endpoint=http://e.com", "a.b_C"),
        ] {
            let accept = parse(query).expect(query);
            assert_eq!(accept.counter.expect("a counter").as_str(), name, "{query}");
        }
    }

    #[test]
    fn callbacks() {
        for (query, endpoint, method) in [
            ("id=1&endpoint=http://e.com/", "http://e.com/", None),
            (
                "endpoint=https%3A%2F%2Fe.com%2F%3Fa%3Db%26c%3Dd&id=1",
                "https://e.com/?a=b&c=d",
                None,
            ),
            (
                "id=1&endpoint=http://e.com/%253F&method=post",
                "http://e.com/%3F",
                Some(Method::Post),
            ),
            (
                "id=1&method=get&endpoint=http://e.com/?a=b",
                "http://e.com/?a=b",
                Some(Method::Get),
            ),
        ] {
            let callback = parse(query).expect(query).callback.expect("a callback");
            assert_eq!(
                (callback.endpoint.as_str(), callback.method),
                (endpoint, method),
                "{query}"
            );
        }
    }

    #[test]
    fn bad_requests_have_their_code() {
        for (query, code) in [
            ("", "missing-id"),
            ("ID=7", "missing-id"),
            ("endpoint=nonsense", "missing-id"),
            ("id", "invalid-id"),
            ("id=", "invalid-id"),
            ("id=+7", "invalid-id"),
            ("id=%2B7", "invalid-id"),
            ("id=7+", "invalid-id"),
            ("id=%D9%A7", "invalid-id"),
            ("id=%FF", "invalid-id"),
            ("id=9223372036854775808", "invalid-id"),
            ("id=7&id=7", "repeated-parameter"),
            ("id=x&id=y", "repeated-parameter"),
            ("id=7&%69d=8", "repeated-parameter"),
            ("id=7&endpoint=http://a.com&endpoint=http://a.com", "repeated-parameter"),
            ("id=7&method=get&method=get", "repeated-parameter"),
            ("id=7&counter=a&counter=a", "repeated-parameter"),
            ("id=x&counter=", "invalid-id"),
            ("id=7&counter=", "invalid-counter"),
            ("id=7&counter=a+b", "invalid-counter"),
            ("id=7&counter=a*", "invalid-counter"),
            ("id=7&counter=a/b&endpoint=", "invalid-counter"),
            ("id=7&endpoint=", "invalid-endpoint"),
            ("id=7&endpoint=ftp://a.com", "invalid-endpoint"),
            ("id=7&endpoint=http://u:p@a.com", "invalid-endpoint"),
            ("id=7&endpoint=http://a.com/%FF", "invalid-endpoint"),
            ("id=7&method=put", "invalid-method"),
            ("id=7&method=", "invalid-method"),
            ("id=7&method=POST", "invalid-method"),
        ] {
            assert_eq!(parse(query).expect_err(query).code(), code, "{query}");
        }
        assert_eq!(Accept::parse("/api/verve/accept"), Err(BadRequest::MissingId));
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "\\PC{0,60}|([a-z%0-9=&+]|id=|endpoint=){0,40}") {
            let _ = parse(&query);
        }

        #[test]
        fn an_encoded_request_reads_back(id: i64, path in "[a-z?&=+ %#/]{0,20}") {
            let endpoint: String = format!("http://e.com/{}", path.replace(' ', ""));
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("id", &id.to_string()).append_pair("endpoint", &endpoint).finish();
            let accept = parse(&query).expect("valid");
            prop_assert_eq!(accept.id, Id(id));
            let callback = accept.callback.expect("a callback");
            prop_assert_eq!(callback.endpoint.as_str(), endpoint);
        }
    }
}
