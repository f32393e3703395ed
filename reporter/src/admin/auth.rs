//! Controls access to the admin port.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{AppendHeaders, IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;

/// Offers both schemes, so that a browser shows its own login dialog.
///
/// Each has its own header line, because Chromium reads only the first challenge of a line.
const CHALLENGES: [&str; 2] = [r#"Basic realm="verve""#, r#"Bearer realm="verve""#];

/// The token that a request must contain. Its value is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Creates a token of visible ASCII characters, all that a header can hold.
    ///
    /// # Errors
    /// If it has other characters. The token is not shown.
    pub fn try_new(token: String) -> Result<Self, &'static str> {
        if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(token))
        } else {
            Err("expected visible ASCII characters without blanks")
        }
    }

    fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }

    /// Returns whether a request contains the token.
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        let authorization = headers.get(AUTHORIZATION);
        authorization.is_some_and(|header| self.is_in(header.as_bytes()))
    }

    /// Returns whether this `Authorization` header contains the token.
    ///
    /// It is a bearer token, or the password of any user, because browsers cannot send the former.
    fn is_in(&self, authorization: &[u8]) -> bool {
        let Some(space) = authorization.iter().position(|byte| *byte == b' ') else {
            return false;
        };
        let (scheme, shown) = (&authorization[..space], authorization[space..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return self.is(shown);
        }
        let pair = STANDARD.decode(shown).unwrap_or_default();
        let password = pair
            .iter()
            .position(|byte| *byte == b':')
            .map(|colon| &pair[colon + 1..]);
        scheme.eq_ignore_ascii_case(b"basic") && password.is_some_and(|password| self.is(password))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Passes on the requests that contain the token.
pub async fn check(State(token): State<Token>, request: Request, next: Next) -> Response {
    if token.is_shown(request.headers()) {
        next.run(request).await
    } else {
        let challenges = AppendHeaders(CHALLENGES.map(|challenge| (WWW_AUTHENTICATE, challenge)));
        (StatusCode::UNAUTHORIZED, challenges, "the admin token is needed\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_a_bearer_s_or_a_password() {
        let token = Token::try_new("s3cret:x".to_owned()).expect("a token");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for good in [
            "Bearer s3cret:x",
            "bearer  s3cret:x ",
            &basic("any:s3cret:x"),
            &basic(":s3cret:x"),
        ] {
            assert!(token.is_in(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cret:",
            "Bearer s3cret:xx",
            "Bearer S3CRET:X",
            "s3cret:x",
            "Digest s3cret:x",
            "Basic s3cret:x",
            &basic("s3cret"),
            &basic("s3cret:x:"),
        ] {
            assert!(!token.is_in(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_token_fits_into_a_header() {
        for bad in ["", "a b", "a\n", "ä"] {
            assert!(Token::try_new(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
