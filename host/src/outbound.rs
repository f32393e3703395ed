//! The servers that the component may connect to: `allowed_outbound_hosts`.
//!
//! The format is Spin's. An entry is `scheme://host[:port]`. Scheme, host and port may each be `*`.
//! A host may be `*.domain` for all names below a domain, or a network such as `10.0.0.0/8`. A port
//! may be a range, `7000..7010`, which excludes its end.

use std::ops::RangeInclusive;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use url::{Host, Url};

use crate::variables::{Template, Values};

/// The parsed list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// `None` allows any scheme.
    scheme: Option<String>,
    host: HostPattern,
    ports: RangeInclusive<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    /// The domain with a leading dot.
    Below(String),
    Network(IpNet),
    Exactly(Host),
}

impl AllowedHosts {
    /// Parses the entries of a manifest, which may be templates.
    ///
    /// A template that resolves to an empty text is ignored, so that a server can be optional.
    ///
    /// # Errors
    /// If an entry is malformed. The message shows the entry as written in the manifest, because
    /// values may be secret.
    pub fn try_new(entries: &[String], values: &Values) -> anyhow::Result<Self> {
        let mut allowed = Vec::new();
        for entry in entries {
            let parsed = Template::try_new(entry).map_err(Into::into).and_then(|template| {
                let text = template.resolve(values)?;
                let skipped = text.is_empty() && !template.is_literal();
                if skipped {
                    Ok(None)
                } else {
                    Entry::parse(text.trim()).map(Some)
                }
            });
            allowed.extend(parsed.with_context(|| format!("allowed_outbound_hosts, entry {entry:?}"))?);
        }
        Ok(Self(allowed))
    }

    /// Returns whether the component may connect to this URL.
    pub fn allow(&self, url: &Url) -> bool {
        // The `url` crate parses hosts only for schemes of the web.
        let Some(Ok(host)) = url.host_str().map(Host::parse) else {
            return false;
        };
        let port = url.port().or_else(|| default_port(url.scheme()));
        self.0.iter().any(|entry| entry.allows(url.scheme(), &host, port))
    }
}

impl Entry {
    // No message repeats `text`: it may contain a secret.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = text
            .split_once("://")
            .context("expected scheme://host[:port], such as redis://10.0.0.5")?;
        ensure!(
            scheme == "*" || (!scheme.is_empty() && scheme.chars().all(char::is_alphabetic)),
            "the scheme has to be letters, or * for any"
        );
        let (host, port) = split_port(rest.strip_suffix('/').unwrap_or(rest));
        Ok(Self {
            scheme: (scheme != "*").then(|| scheme.to_owned()),
            host: HostPattern::parse(host)?,
            ports: parse_ports(port, scheme)?,
        })
    }

    fn allows(&self, scheme: &str, host: &Host, port: Option<u16>) -> bool {
        let any_port = self.ports == (0..=u16::MAX);
        self.scheme.as_deref().is_none_or(|allowed| allowed == scheme)
            && self.host.matches(host)
            && port.map_or(any_port, |port| self.ports.contains(&port))
    }
}

/// Splits at the colon before the port, and ignores the colons of an IPv6 address.
fn split_port(text: &str) -> (&str, &str) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains([']', '/']) && text.parse::<IpNet>().is_err() => (host, port),
        _ => (text, ""),
    }
}

fn parse_ports(port: &str, scheme: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let number = |text: &str| {
        text.parse::<u16>()
            .ok()
            .context("the port has to be a number, a range `a..b` or *")
    };
    if port == "*" {
        return Ok(0..=u16::MAX);
    }
    if port.is_empty() {
        let port = default_port(scheme).with_context(|| format!("`{scheme}` has no default port: add one, or :*"))?;
        return Ok(port..=port);
    }
    let Some((first, end)) = port.split_once("..") else {
        let port = number(port)?;
        return Ok(port..=port);
    };
    let (first, end) = (number(first)?, number(end)?);
    ensure!(first < end, "the range of ports is empty");
    Ok(first..=end - 1)
}

/// Returns the default port of a scheme, as in Spin.
///
/// `rediss` has none, so its port must always be given.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "redis" => Some(6379),
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl HostPattern {
    fn parse(text: &str) -> anyhow::Result<Self> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let (text, below) = match text.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (text, false),
        };
        match Host::parse(text) {
            Ok(Host::Domain(domain)) if domain.contains('*') => bail!("`*` is the whole host or its first label"),
            Ok(Host::Domain(domain)) if below => Ok(Self::Below(format!(".{domain}"))),
            Ok(host) if !below => Ok(Self::Exactly(host)),
            _ => {
                bail!("the host has to be a name, an address, a network such as 10.0.0.0/8, *.domain or *, and no path")
            }
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Below(suffix), Host::Domain(domain)) => domain.ends_with(suffix.as_str()),
            (Self::Network(network), Host::Ipv4(address)) => network.contains(&std::net::IpAddr::V4(*address)),
            (Self::Network(network), Host::Ipv6(address)) => network.contains(&std::net::IpAddr::V6(*address)),
            (Self::Exactly(allowed), host) => allowed == host,
            (Self::Below(_) | Self::Network(_), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variables::tests::values;

    fn allowed(entry: &str) -> anyhow::Result<AllowedHosts> {
        let values = values(&[
            ("host", "redis.internal"),
            ("url", "redis://10.1.1.1:7000"),
            ("none", ""),
        ]);
        AllowedHosts::try_new(&[entry.to_owned()], &values)
    }

    #[test]
    fn entries_allow_urls() {
        let cases = [
            ("redis://*:*", "redis://10.0.0.5:6379", true),
            ("redis://*:*", "redis://:secret@db.example:1/0", true),
            ("redis://*:*", "rediss://db.example:6379", false),
            ("*://*:*", "rediss://db.example", true),
            ("*://*:*", "redis+unix:///var/run/redis.sock", false),
            ("redis://db.example", "redis://db.example", true),
            ("redis://db.example/", "redis://db.example:6379/3", true),
            ("redis://db.example", "redis://db.example:6380", false),
            ("redis://db.example", "redis://xdb.example", false),
            ("redis://db.example:6380", "redis://db.example", false),
            ("redis://*.example:*", "redis://a.db.example", true),
            ("redis://*.example:*", "redis://example", false),
            ("redis://*.example:*", "redis://10.0.0.5", false),
            ("redis://db:7000..7002", "redis://db:7000", true),
            ("redis://db:7000..7002", "redis://db:7002", false),
            ("redis://10.0.0.0/8", "redis://10.9.9.9", true),
            ("redis://10.0.0.0/8:*", "redis://11.0.0.1", false),
            ("redis://10.0.0.0/8:7000", "redis://10.9.9.9:7000", true),
            ("redis://10.0.0.0/8:*", "redis://ten.example", false),
            ("redis://10.0.0.5", "redis://10.0.0.5", true),
            ("redis://[::1]", "redis://[::1]:6379", true),
            ("redis://[::1]:7000", "redis://[::1]:7000", true),
            ("redis://fd00::/8", "redis://[fd00::7]", true),
            ("redis://{{ host }}:6379", "redis://redis.internal", true),
            ("{{ url }}", "redis://10.1.1.1:7000", true),
            ("{{ none }}", "redis://10.1.1.1:7000", false),
            ("rediss://db.example:6379", "rediss://db.example:6379", true),
            ("rediss://db.example:6379", "rediss://db.example", false),
            // User name or query contain the allowed host, but the connection goes to another host.
            ("redis://db.example", "redis://db.example@evil.example", false),
            ("redis://db.example", "redis://evil.example?db.example", false),
        ];
        for (entry, url, expected) in cases {
            let allowed = allowed(entry).unwrap_or_else(|error| panic!("{entry}: {error:#}"));
            let url = Url::parse(url).expect("a URL");
            assert_eq!(allowed.allow(&url), expected, "{entry} {url}");
        }
    }

    #[test]
    fn invalid_entries() {
        let cases = [
            ("*", "expected scheme://"),
            ("", "expected scheme://"),
            ("db.example:6379", "expected scheme://"),
            ("rediss://db.example", "`rediss` has no default port"),
            ("*://db.example", "`*` has no default port"),
            ("redis://db.example/0", "the host has to be"),
            ("redis://user:secret@db.example:6379", "the host has to be"),
            ("redis://a*.example", "`*` is the whole host"),
            ("redis://*.10.0.0.5", "the host has to be"),
            ("redis://:6379", "the host has to be"),
            ("redis://db:x", "the port has to be"),
            ("redis://db:70000", "the port has to be"),
            ("redis://db:2..1", "the range of ports is empty"),
            ("{redis,rediss}://db:1", "the scheme has to be"),
            ("redis://{{ nobody }}", "`nobody`"),
        ];
        for (entry, expected) in cases {
            let error = allowed(entry)
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default();
            assert!(error.contains(expected), "{entry:?}: {error:?}");
        }
    }
}
