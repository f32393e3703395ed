//! What a request is answered: status, headers and body, all decided here.

use verve_counter::{NotCounted, Outcome};

use crate::request::BadRequest;

/// The response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// What came of the id: 200; 429 if it is beyond a limit, and not 503, by which a client that floods one window would have balancers take
    /// every instance for broken; 503 if it could not be recorded.
    Answered(Result<Outcome, NotCounted>),
    /// The request is bad: 400.
    BadRequest(BadRequest),
    /// Another method than GET: 405.
    MethodNotAllowed,
    /// A variable of the component is not valid: 503.
    Misconfigured,
}

impl Response {
    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Answered(Ok(_)) => 200,
            Self::BadRequest(_) => 400,
            Self::Answered(Err(NotCounted::Limited(_))) => 429,
            Self::Answered(Err(NotCounted::Unavailable)) | Self::Misconfigured => 503,
            Self::MethodNotAllowed => 405,
        }
    }

    /// The body.
    #[must_use]
    pub const fn body(self) -> &'static str {
        match self {
            Self::Answered(Ok(_)) => "ok",
            _ => "failed",
        }
    }

    /// The header that says why, or what became of the id.
    #[must_use]
    pub const fn reason(self) -> (&'static str, &'static str) {
        match self {
            Self::Answered(Ok(outcome)) => ("verve-outcome", outcome.as_str()),
            Self::BadRequest(bad) => ("verve-error", bad.code()),
            Self::Answered(Err(NotCounted::Limited(limit))) => ("verve-error", limit.as_str()),
            Self::Answered(Err(NotCounted::Unavailable)) => ("verve-error", "unavailable"),
            Self::MethodNotAllowed => ("allow", "GET"),
            Self::Misconfigured => ("verve-error", "misconfigured"),
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
    use verve_counter::Limit;

    #[test]
    fn the_length_is_the_bodys() {
        let answers = [
            Ok(Outcome::New),
            Ok(Outcome::Duplicate),
            Ok(Outcome::Spooled),
            Err(NotCounted::Limited(Limit::Window)),
            Err(NotCounted::Limited(Limit::Endpoint)),
            Err(NotCounted::Unavailable),
        ];
        let others = [
            Response::BadRequest(BadRequest::InvalidId),
            Response::MethodNotAllowed,
            Response::Misconfigured,
        ];
        for response in answers.map(Response::Answered).into_iter().chain(others) {
            let length = response.body().len().to_string();
            assert!(
                response.headers().contains(&("content-length", &length)),
                "{response:?}"
            );
        }
    }
}
