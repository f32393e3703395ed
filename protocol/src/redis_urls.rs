//! The addresses of the Redis servers.

use std::fmt;
use std::str::FromStr;

use url::Url;

/// The default port of Redis.
const DEFAULT_PORT: u16 = 6379;

/// A comma-separated list of one or more Redis URLs.
///
/// It names one server, or some nodes of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrls(Vec<RedisUrl>);

/// The URL of one Redis server, as `redis://` or, with TLS, `rediss://`.
///
/// Its form is `redis://[user[:password]@]host[:port][/database]`. `Display` and `Debug` omit the
/// user and the password, so that no log contains them.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(Url);

/// The error for a text that is not a list of Redis URLs.
///
/// It names the position and the rule, but never the text, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "redis URL {position} of {count} {problem}; expected redis://[user:password@]host[:port][/database] or rediss://…, comma-separated"
)]
pub struct InvalidRedisUrls {
    position: usize,
    count: usize,
    problem: &'static str,
}

impl FromStr for RedisUrls {
    type Err = InvalidRedisUrls;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let mut urls = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let invalid = |problem| InvalidRedisUrls {
                position: index + 1,
                count: parts.len(),
                problem,
            };
            let url = parse(part).map_err(invalid)?;
            if urls.contains(&url) {
                return Err(invalid("is in the list twice"));
            }
            urls.push(url);
        }
        Ok(Self(urls))
    }
}

fn parse(text: &str) -> Result<RedisUrl, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "redis" | "rediss") {
        return Err("has another scheme than redis and rediss");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("has no host");
    }
    let database = url.path().trim_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err("has a path that is no database number");
    }
    Ok(RedisUrl(url))
}

impl RedisUrls {
    /// Returns all URLs in their order; never empty.
    #[must_use]
    pub fn as_slice(&self) -> &[RedisUrl] {
        &self.0
    }

    /// Returns the URLs as they were given, with `***` for users and passwords.
    #[must_use]
    pub fn shown(&self) -> String {
        let shown = self.0.iter().map(|url| match (url.0.username(), url.0.password()) {
            ("", None) => url.to_string(),
            _ => url.to_string().replacen("://", "://***@", 1),
        });
        shown.collect::<Vec<_>>().join(",")
    }

    /// Returns the first URL.
    #[must_use]
    pub fn first(&self) -> &RedisUrl {
        &self.0[0]
    }
}

/// Writes the URLs as they were given, without users and passwords.
impl fmt::Display for RedisUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&urls.join(","))
    }
}

impl RedisUrl {
    /// Returns whether the connection uses TLS: `rediss://`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "rediss"
    }

    /// Returns the host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port().unwrap_or(DEFAULT_PORT)
    }

    /// Returns the URL of another node of the same cluster.
    ///
    /// The node has the same user and password. `None` if `host` is not a valid host.
    #[must_use]
    pub fn of_node(&self, host: &str, port: u16) -> Option<Self> {
        let mut url = self.0.clone();
        let is_ipv6 = host.contains(':');
        let host = if is_ipv6 { format!("[{host}]") } else { host.to_owned() };
        // A node that does not know its own name answers an empty host: it has the host of this
        // URL.
        if host.is_empty() || url.set_host(Some(&host)).is_ok() {
            url.set_port(Some(port)).ok()?;
            return Some(Self(url));
        }
        None
    }

    /// Returns the whole URL with its password, to open connections, never to show it.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order() {
        let urls: RedisUrls = "redis://b:1, redis://a,rediss://[::1]:3/2".parse().expect("a list");
        let shown: Vec<String> = urls.as_slice().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["redis://b:1", "redis://a", "rediss://[::1]:3/2"]);
        assert_eq!(urls.first().to_string(), "redis://b:1");
    }

    #[test]
    fn passwords_are_kept_and_not_shown() {
        let urls: RedisUrls = "redis://user:hunter2@host:6379/1".parse().expect("a list");
        assert_eq!(urls.first().secret(), "redis://user:hunter2@host:6379/1");
        assert_eq!(
            format!("{} {urls:?}", urls.first()),
            "redis://host:6379/1 RedisUrls([RedisUrl(redis://host:6379/1)])"
        );
        let urls: RedisUrls = "redis://:hunter2@a,rediss://b:7/1".parse().expect("a list");
        assert_eq!(urls.shown(), "redis://***@a,rediss://b:7/1");
    }

    #[test]
    fn other_nodes_get_the_same_user() {
        let url: RedisUrls = "rediss://user:hunter2@a:6379".parse().expect("a list");
        for (host, expected) in [
            ("b.example", "b.example"),
            ("10.0.0.1", "10.0.0.1"),
            ("::1", "[::1]"),
            ("", "a"),
        ] {
            let node = url.first().of_node(host, 7000).expect(host);
            assert_eq!(
                node.secret(),
                format!("rediss://user:hunter2@{expected}:7000"),
                "{host}"
            );
        }
        assert_eq!(url.first().of_node("a b", 1), None);
    }

    #[test]
    fn errors_do_not_contain_the_text() {
        for (text, problem) in [
            ("", "1 of 1 is empty"),
            ("redis://a,,redis://b", "2 of 3 is empty"),
            ("hunter2", "1 of 1 is not a URL"),
            ("redis://a,http://hunter2", "2 of 2 has another scheme"),
            ("redis://", "1 of 1 has no host"),
            ("redis://:hunter2@", "1 of 1"),
            ("redis://a/hunter2", "1 of 1 has a path"),
            ("redis://a:1,redis://a:1", "2 of 2 is in the list twice"),
        ] {
            let error = text.parse::<RedisUrls>().expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
