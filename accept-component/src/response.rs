//! The response to a request: its status, headers and body.

use verve_counter::{NotCounted, Outcome};

use crate::request::BadRequest;

/// The response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The outcome of the id: 200, or 429 or 503 if it is not recorded.
    ///
    /// The status is 429 if the id exceeds a limit, and 503 if it could not be recorded. A limit is
    /// not answered with 503, because load balancers would then treat every instance as broken when
    /// a client floods one window.
    Answered(Result<Outcome, NotCounted>),
    /// The request is bad: 400.
    BadRequest(BadRequest),
    /// The method is not GET: 405.
    MethodNotAllowed,
    /// A variable of the component is invalid: 503.
    Misconfigured,
}

impl Response {
    /// Returns the HTTP status.
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

    /// Returns the body.
    #[must_use]
    pub const fn body(self) -> &'static str {
        match self {
            Self::Answered(Ok(_)) => "ok",
            _ => "failed",
        }
    }

    /// Returns the header with the outcome of the id, or with the reason.
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

    /// Returns all headers.
    ///
    /// They include `content-length`: without it, the host sends head and body in two writes.
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
