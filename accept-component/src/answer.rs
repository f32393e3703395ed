//! What a request is answered: status, headers and body, all decided here.

use crate::request::BadRequest;

/// What became of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded, for the first time in its window.
    New,
    /// Recorded in its window before.
    Duplicate,
    /// Redis is away: recorded on disk, and brought to Redis later.
    Spooled,
}

impl Outcome {
    /// The value of the header `verve-outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Duplicate => "duplicate",
            Self::Spooled => "spooled",
        }
    }
}

/// What a request was beyond: something that the operator has limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `window_limit`: the ids of a window.
    Window,
    /// `endpoint_limit`: the callback jobs of an endpoint in a window.
    Endpoint,
}

impl Limit {
    /// The value of the header `verve-error`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window-limit",
            Self::Endpoint => "endpoint-limit",
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The id is recorded: 200.
    Recorded(Outcome),
    /// The request is bad: 400.
    BadRequest(BadRequest),
    /// Not recorded, since this would be beyond a limit: 429. Not 503, by which a client that floods one window would have balancers take
    /// every instance for broken.
    Limited(Limit),
    /// The id could not be recorded: 503.
    Unavailable,
    /// Another method than GET: 405.
    MethodNotAllowed,
}

impl Answer {
    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Recorded(_) => 200,
            Self::BadRequest(_) => 400,
            Self::Limited(_) => 429,
            Self::Unavailable => 503,
            Self::MethodNotAllowed => 405,
        }
    }

    /// The body.
    #[must_use]
    pub const fn body(self) -> &'static str {
        match self {
            Self::Recorded(_) => "ok",
            _ => "failed",
        }
    }

    /// The header that says why, or what became of the id.
    #[must_use]
    pub const fn reason(self) -> (&'static str, &'static str) {
        match self {
            Self::Recorded(outcome) => ("verve-outcome", outcome.as_str()),
            Self::BadRequest(bad) => ("verve-error", bad.code()),
            Self::Limited(limit) => ("verve-error", limit.as_str()),
            Self::Unavailable => ("verve-error", "unavailable"),
            Self::MethodNotAllowed => ("allow", "GET"),
        }
    }

    /// All headers. `content-length` among them: without it the host sends head and body in two writes.
    #[must_use]
    pub const fn headers(self) -> [(&'static str, &'static str); 4] {
        [
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", if self.body().len() == 2 { "2" } else { "6" }),
            ("cache-control", "no-store"),
            self.reason(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_the_bodys() {
        for answer in [
            Answer::Recorded(Outcome::New),
            Answer::Recorded(Outcome::Duplicate),
            Answer::Recorded(Outcome::Spooled),
            Answer::BadRequest(BadRequest::InvalidId),
            Answer::Limited(Limit::Window),
            Answer::Limited(Limit::Endpoint),
            Answer::Unavailable,
            Answer::MethodNotAllowed,
        ] {
            assert!(
                answer
                    .headers()
                    .contains(&("content-length", &answer.body().len().to_string())),
                "{answer:?}"
            );
        }
    }
}
