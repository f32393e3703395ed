//! Which addresses callbacks may reach: public ones, and those the operator allows.
//!
//! The check is part of the name resolution, and the client connects to the address that was
//! checked. A name that later resolves to another address therefore gains nothing. Literal
//! addresses, which are not resolved, are checked before the call.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// What callbacks may reach.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    networks: Vec<IpNet>,
    hosts: Vec<String>,
    /// Whether all other addresses are forbidden.
    only: bool,
}

/// A host that callbacks may not reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    host: String,
    /// The addresses of the name.
    addresses: Vec<IpAddr>,
    only: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.host)?;
        if !self.addresses.is_empty() {
            let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
            write!(f, " ({})", addresses.join(", "))?;
        }
        f.write_str(if self.only {
            " is not in --callback-allow"
        } else {
            " is not public and not in --callback-allow"
        })
    }
}

impl Policy {
    /// Allows `allowed`: host names, addresses and CIDRs.
    ///
    /// `only` forbids all others, public or not.
    ///
    /// # Errors
    /// One line with the entry that is none of these.
    pub fn try_new(allowed: &[String], only: bool) -> Result<Self, String> {
        let mut policy = Self {
            only,
            ..Self::default()
        };
        for entry in allowed
            .iter()
            .map(|entry| entry.trim())
            .filter(|entry| !entry.is_empty())
        {
            let plain = entry.trim_start_matches('[').trim_end_matches(']');
            if let Ok(network) = plain.parse::<IpNet>() {
                policy.networks.push(network.trunc());
            } else if let Ok(address) = plain.parse::<IpAddr>() {
                policy.networks.push(address.into());
            } else {
                match Host::parse(entry) {
                    Ok(Host::Domain(host)) if !entry.contains('/') => policy.hosts.push(host),
                    _ => return Err(format!("{entry:?} is no host name, address or CIDR such as 10.0.0.0/8")),
                }
            }
        }
        if only && policy.networks.is_empty() && policy.hosts.is_empty() {
            return Err("--callback-allow-only needs at least one --callback-allow".to_owned());
        }
        Ok(policy)
    }

    /// Checks a URL whose host is a literal address.
    ///
    /// A name passes, and is checked when it is resolved.
    ///
    /// # Errors
    /// If the address may not be reached.
    pub fn check_literal(&self, url: &Url) -> Result<(), Refused> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        if self.permits_address(address) {
            Ok(())
        } else {
            Err(Refused {
                host: address.to_string(),
                addresses: Vec::new(),
                only: self.only,
            })
        }
    }

    /// Resolves a name with the system's resolver, and returns its permitted addresses.
    ///
    /// # Errors
    /// If the name has no address, or no permitted one.
    pub async fn resolve(&self, host: &str) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let addresses = tokio::net::lookup_host((host, 0)).await?;
        Ok(self.permitted(host, addresses.collect())?)
    }

    /// Returns those of a name's addresses that are permitted.
    ///
    /// # Errors
    /// If none is permitted.
    fn permitted(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if self
            .hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(host.trim_end_matches('.')))
        {
            return Ok(addresses);
        }
        let permitted: Vec<SocketAddr> = addresses
            .iter()
            .filter(|address| self.permits_address(address.ip()))
            .copied()
            .collect();
        if permitted.is_empty() {
            let addresses = addresses.iter().map(SocketAddr::ip).collect();
            return Err(Refused {
                host: host.to_owned(),
                addresses,
                only: self.only,
            });
        }
        Ok(permitted)
    }

    fn permits_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address)) || (!self.only && is_public(address))
    }
}

/// Resolves names with the system's resolver to the permitted addresses.
pub struct Resolver(Policy);

impl Resolver {
    /// Creates a resolver with this policy.
    pub fn new(policy: Policy) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self(policy))
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let permitted = policy.resolve(name.as_str()).await?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Returns whether an address is globally reachable; in case of doubt, `false`.
///
/// The source is the IANA special-purpose address registries of IPv4 and IPv6 (RFC 6890 and its
/// updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(embedded) => is_public(IpAddr::V4(embedded)),
            None => GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address)),
        },
    }
}

/// Returns the IPv4 address in a mapped (RFC 4291) or NAT64 (RFC 6052) address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let nat64 = NAT64
        .contains(&address)
        .then(|| Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]));
    address.to_ipv4_mapped().or(nat64)
}

const SPECIAL_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),       // this network
    v4(10, 0, 0, 0, 8),      // private
    v4(100, 64, 0, 0, 10),   // carrier-grade NAT
    v4(127, 0, 0, 0, 8),     // loopback
    v4(169, 254, 0, 0, 16),  // link-local, includes cloud metadata
    v4(172, 16, 0, 0, 12),   // private
    v4(192, 0, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 0, 24),    // documentation
    v4(192, 31, 196, 0, 24), // AS112
    v4(192, 88, 99, 0, 24),  // 6to4 relay, deprecated
    v4(192, 168, 0, 0, 16),  // private
    v4(198, 18, 0, 0, 15),   // benchmarking
    v4(198, 51, 100, 0, 24), // documentation
    v4(203, 0, 113, 0, 24),  // documentation
    v4(224, 0, 0, 0, 4),     // multicast
    v4(240, 0, 0, 0, 4),     // reserved, broadcast
];

/// The range that is assigned as global unicast.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);

const SPECIAL_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0, 0], 23),     // protocol assignments, includes Teredo
    v6([0x2001, 0xdb8, 0, 0], 32), // documentation
    v6([0x2002, 0, 0, 0], 16),     // 6to4, which embeds any IPv4 address
    v6([0x3fff, 0, 0, 0], 20),     // documentation
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(first: [u16; 4], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(
        Ipv6Addr::new(first[0], first[1], first[2], first[3], 0, 0, 0, 0),
        prefix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allowed: &[&str], only: bool) -> Policy {
        let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
        Policy::try_new(&allowed, only).expect("valid")
    }

    fn permits(policy: &Policy, url: &str) -> bool {
        policy.check_literal(&url.parse().expect("a URL")).is_ok()
    }

    #[test]
    fn private_addresses_are_refused() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[fc00::1]",
            "[fd12::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[5f00::1]",
        ] {
            assert!(!permits(&policy(&[], false), &format!("http://{host}:80/")), "{host}");
        }
    }

    #[test]
    fn public_addresses_are_permitted() {
        for host in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "223.255.255.255",
            "[2606:4700:4700::1111]",
            "[2a00:1450::1]",
            "[::ffff:8.8.8.8]",
            "[64:ff9b::808:808]",
        ] {
            assert!(permits(&policy(&[], false), &format!("http://{host}/")), "{host}");
            assert!(
                !permits(&policy(&["e.com"], true), &format!("http://{host}/")),
                "{host} by --callback-allow-only"
            );
        }
    }

    #[test]
    fn allowed_addresses_are_permitted() {
        for (allowed, url) in [
            ("127.0.0.1", "http://127.0.0.1:8080/"),
            ("127.0.0.1", "http://[::ffff:127.0.0.1]/"),
            ("127.0.0.0/8", "http://127.9.9.9/"),
            ("10.1.2.3/8", "http://10.200.0.1/"),
            ("::1", "http://[::1]/"),
            ("[::1]", "http://[::1]/"),
            ("fd00::/8", "http://[fd12::1]/"),
        ] {
            assert!(permits(&policy(&[allowed], false), url), "{allowed} {url}");
            assert!(permits(&policy(&[allowed], true), url), "{allowed} {url}");
        }
        assert!(!permits(&policy(&["127.0.0.1"], false), "http://127.0.0.2/"));
    }

    #[test]
    fn a_name_is_permitted_by_its_addresses_or_by_itself() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts
                .iter()
                .map(|text| SocketAddr::new(text.parse().expect("an address"), 0))
                .collect()
        };
        let both = addresses(&["10.0.0.1", "8.8.8.8"]);
        assert_eq!(
            policy(&[], false).permitted("both.test", both.clone()),
            Ok(addresses(&["8.8.8.8"]))
        );
        assert_eq!(
            policy(&["Both.test"], false).permitted("both.test", both.clone()),
            Ok(both.clone())
        );
        assert_eq!(
            policy(&["both.test"], true).permitted("both.test.", both.clone()),
            Ok(both)
        );
        let refused = policy(&[], false)
            .permitted("in.test", addresses(&["10.0.0.1", "::1"]))
            .expect_err("private");
        assert_eq!(
            refused.to_string(),
            "refused: in.test (10.0.0.1, ::1) is not public and not in --callback-allow"
        );
    }

    #[test]
    fn entries_that_are_nothing_are_refused() {
        for entry in ["10.0.0.0/33", "a b", "http://e.com", "e.com/x", "1.2.3.4:80"] {
            assert!(Policy::try_new(&[entry.to_owned()], false).is_err(), "{entry}");
        }
        assert!(Policy::try_new(&[], true).is_err());
    }
}
