//! The endpoint of a callback, as a request specifies it.

use std::fmt;
use std::str::FromStr;

use url::Url;

/// The URL that a callback calls, kept as it was given.
///
/// It is an absolute `http` or `https` URL without userinfo, at most [`Endpoint::MAX_BYTES`] long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

/// The error for a text that is not an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// The text is longer than [`Endpoint::MAX_BYTES`].
    #[error("the endpoint is longer than {} bytes", Endpoint::MAX_BYTES)]
    TooLong,
    /// The text does not begin with `http://` or `https://`.
    #[error("the endpoint does not begin with http:// or https://")]
    Scheme,
    /// A blank, a control character, a backslash, or a byte that is not UTF-8.
    #[error("the endpoint has a blank, a control character, a backslash or a byte that is not UTF-8")]
    Character,
    /// The text has a user name or a password before the host.
    #[error("the endpoint has userinfo before its host")]
    Userinfo,
    /// The text has no valid host or port.
    #[error("the endpoint is no valid URL")]
    Url,
}

impl Endpoint {
    /// The maximum length in bytes, after the request's parameter is percent-decoded.
    pub const MAX_BYTES: usize = 2048;

    /// Returns the URL as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the parsed URL.
    #[must_use]
    pub fn to_url(&self) -> Url {
        // `from_str` has parsed it before, and parsing is deterministic.
        Url::parse(&self.0).unwrap_or_else(|_| unreachable!("an Endpoint is a valid URL"))
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Parses an endpoint, more strictly than the URL Standard.
    ///
    /// The URL Standard repairs many errors. An endpoint that is accepted here means the same to
    /// every HTTP client.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidEndpoint::TooLong);
        }
        // Lossy decoding replaces bytes that are not UTF-8 by U+FFFD.
        if text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '\\' || c == char::REPLACEMENT_CHARACTER)
        {
            return Err(InvalidEndpoint::Character);
        }
        let (scheme, rest) = text.split_once("://").ok_or(InvalidEndpoint::Scheme)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(InvalidEndpoint::Scheme);
        }
        // The URL Standard skips further slashes, and would then use a part of the path as the
        // host.
        if rest.starts_with('/') {
            return Err(InvalidEndpoint::Url);
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(InvalidEndpoint::Userinfo);
        }
        Url::parse(text).map_err(|_| InvalidEndpoint::Url)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn endpoints_are_kept_as_given() {
        for text in [
            "http://example.com",
            "HTTPS://Example.com:8443/a/b?x=1&y=%20#f",
            "http://127.0.0.1:1/",
            "http://[::1]:80/?",
            "http://xn--mnchen-3ya.de/",
            "http://example.com/straße?ü=1",
            "http://example.com/a@b",
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).as_str(), text);
        }
        let longest = format!("http://e.com/{}", "x".repeat(Endpoint::MAX_BYTES - 13));
        assert!(longest.parse::<Endpoint>().is_ok());
        assert_eq!(format!("{longest}x").parse::<Endpoint>(), Err(InvalidEndpoint::TooLong));
    }

    #[test]
    fn an_invalid_endpoint_is_refused_with_the_reason() {
        use InvalidEndpoint::{Character, Scheme, Url, Userinfo};
        for (text, reason) in [
            ("", Scheme),
            ("example.com/x", Scheme),
            ("/relative", Scheme),
            ("//example.com", Scheme),
            ("http:example.com", Scheme),
            ("ftp://example.com", Scheme),
            ("file:///etc/passwd", Scheme),
            ("javascript:alert(1)", Scheme),
            ("http://", Url),
            ("http:///example.com", Url),
            ("http://:80/", Url),
            ("http://example.com:99999/", Url),
            ("http://example.com:x/", Url),
            ("http://[::1/", Url),
            ("http://1.2.3.256/", Url),
            ("http://münchen.de/", Url),
            ("http://user@example.com/", Userinfo),
            ("http://user:pw@example.com/", Userinfo),
            ("http://@example.com/", Userinfo),
            ("http://exa mple.com/", Character),
            (" http://example.com/", Character),
            ("http://example.com/a\nb", Character),
            ("http://example.com\\@evil/", Character),
            ("http://example.com/\u{fffd}", Character),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(reason), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_is_an_http_url_with_a_host(text in "(http|https|ftp)?:?/{0,3}[a-z0-9@:.\\[\\]%\\\\]{0,20}[/?#]?\\PC{0,20}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                let url = endpoint.to_url();
                prop_assert!(matches!(url.scheme(), "http" | "https"));
                prop_assert!(url.host_str().is_some_and(|h| !h.is_empty()));
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }
    }
}
