//! A Redis Cluster as its clients see it.
//!
//! It knows which node has which slot, and where a redirection leads.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;

use verve_protocol::slot::SLOTS;

use crate::reply::Reply;

/// The placeholder for a host name that was not announced.
const UNKNOWN: &str = "?";

/// The address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Returns an address. `host` is a name or an IP address without brackets.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
        }
    }

    /// Parses `host:port`; an IPv6 address has no brackets there.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        Some(Self::new(host.trim_matches(['[', ']']), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A redirection, which a node answers instead of running a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where the node redirects the client.
    ///
    /// The host is empty if it is that of the node itself, and `?` if it is not known.
    address: Address,
    /// The slot of the command's keys.
    pub slot: u16,
    /// Whether the slot is migrating there, so that this key may already be there.
    ///
    /// Otherwise the slot is there.
    pub is_ask: bool,
}

impl Redirect {
    /// Parses an error as a redirection; `None` if it is another error.
    ///
    /// Redis answers `MOVED 3999 127.0.0.1:6381`. Hosts use their own words, which change between
    /// versions: `Moved: 3999 127.0.0.1:6381`, or without the first word. All of them keep the slot
    /// and the address at the end.
    #[must_use]
    pub fn parse(error: &str) -> Option<Self> {
        let mut words = error.split_ascii_whitespace().rev();
        let address = Address::parse(words.next()?)?;
        let slot = words.next()?.parse().ok().filter(|slot| *slot < SLOTS)?;
        let kind = words.next()?;
        Some(Self {
            address,
            slot,
            is_ask: kind.trim_end_matches(':').eq_ignore_ascii_case("ask"),
        })
    }

    /// Returns the address to which a node redirects the client.
    ///
    /// `asked` is the host at which the node was asked. Returns `None` if the address is not known.
    #[must_use]
    pub fn to(&self, asked: &str) -> Option<Address> {
        let host = match self.address.host.as_str() {
            "" => asked,
            UNKNOWN => return None,
            host => host,
        };
        Some(Address::new(host, self.address.port))
    }
}

/// Which node has which slots.
#[derive(Debug, Default)]
pub struct Map {
    ranges: Vec<(RangeInclusive<u16>, Rc<[Address]>)>,
    /// The slots that have moved since.
    moved: BTreeMap<u16, Rc<[Address]>>,
}

impl Map {
    /// Parses the answer of a node, asked at the host `asked`, to `CLUSTER SLOTS`.
    ///
    /// For each range of slots, the answer has the first and the last slot, and the nodes that have
    /// it, the primary first. For each node it has the host that the cluster prefers, its port, its
    /// name, and since Redis 7.0 pairs of texts with its other hosts.
    #[must_use]
    pub fn parse(answer: &[Reply], asked: &str) -> Self {
        use Reply::{Nothing, Number, Text};
        let mut map = Self::default();
        let mut rest = answer;
        while let [
            Number(first),
            Number(last),
            preferred,
            Number(port),
            Text(_),
            others @ ..,
        ] = rest
        {
            rest = others;
            let mut hosts = match preferred {
                Text(host) if !host.is_empty() => vec![host.as_str()],
                // A node without a host in the answer is at the host that was asked.
                Text(_) | Nothing | Number(_) => vec![asked],
            };
            while let [Text(name), Text(host), others @ ..] = rest {
                if ["ip", "hostname"].contains(&name.as_str()) {
                    hosts.push(host);
                }
                rest = others;
            }
            let next = rest
                .windows(2)
                .position(|two| matches!(two, [Number(_), Number(_)]))
                .unwrap_or(rest.len());
            rest = &rest[next..];
            if let (Ok(first), Ok(last), Ok(port)) = (u16::try_from(*first), u16::try_from(*last), u16::try_from(*port))
            {
                map.ranges.push((first..=last, addresses(hosts, asked, port)));
            }
        }
        map
    }

    /// Returns the addresses of the node that has a slot, as far as is known.
    ///
    /// The first one is the address that the cluster prefers.
    #[must_use]
    pub fn node(&self, slot: u16) -> Option<&Rc<[Address]>> {
        let moved = self.moved.get(&slot);
        moved.or_else(|| {
            let found = self.ranges.iter().find(|(range, _)| range.contains(&slot));
            found.map(|(_, node)| node)
        })
    }

    /// Returns all known addresses of the node at this one.
    ///
    /// Returns `None` if no node with slots is known at this address.
    #[must_use]
    pub fn at(&self, address: &Address) -> Option<&Rc<[Address]>> {
        let of_ranges = self.ranges.iter().map(|(_, node)| node);
        let mut nodes = of_ranges.chain(self.moved.values());
        nodes.find(|node| node.contains(address))
    }

    /// Records that the node at this address has a slot.
    pub fn moved(&mut self, slot: u16, address: Address) {
        let node = self.at(&address).cloned();
        self.moved.insert(slot, node.unwrap_or_else(|| Rc::from([address])));
    }
}

/// Returns each known host once, or the host that was asked if none is known.
fn addresses(hosts: Vec<&str>, asked: &str, port: u16) -> Rc<[Address]> {
    let mut addresses: Vec<Address> = Vec::new();
    for host in hosts {
        let address = Address::new(host, port);
        if !host.is_empty() && host != UNKNOWN && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(Address::new(asked, port));
    }
    addresses.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    #[test]
    fn redirections_are_read_in_the_words_of_every_host() {
        let parsed = |error| Redirect::parse(error).map(|redirect| (redirect.is_ask, redirect.to("asked")));
        for error in [
            "MOVED 3999 127.0.0.1:6381",
            "Moved: 3999 127.0.0.1:6381",
            "An error was signalled by the server - Moved: 3999 127.0.0.1:6381",
            "An error was signalled by the server: 3999 127.0.0.1:6381",
        ] {
            assert_eq!(parsed(error), Some((false, Some(at("127.0.0.1:6381")))), "{error}");
        }
        for error in ["Ask: 1 a.example:1", "server - Ask: 1 a.example:1", "ASK 1 a.example:1"] {
            assert_eq!(parsed(error), Some((true, Some(at("a.example:1")))), "{error}");
        }
        // A node without a host means the host that was asked. Some nodes do not know where others
        // are.
        assert_eq!(parsed("Moved: 0 :7000"), Some((false, Some(at("asked:7000")))));
        assert_eq!(parsed("MOVED 0 ?:7000"), Some((false, None)));
        assert_eq!(
            parsed("Moved: 0 ::1:7000"),
            Some((false, Some(Address::new("::1", 7000))))
        );
        for error in [
            "",
            "CrossSlot: Keys in request don't hash to the same slot",
            "ClusterDown: Hash slot not served",
            "no answer within 500 ms",
            "Moved: 16384 a:1",
            "Moved: 1 a:0",
            "Connection refused (os error 111)",
            "3999 127.0.0.1:6381",
        ] {
            assert_eq!(Redirect::parse(error), None, "{error}");
        }
    }

    /// Parses an answer in short form: numbers, texts, and `-` for nothing.
    fn answer(text: &str) -> Vec<Reply> {
        let parts = text.split_whitespace().map(|word| match (word, word.parse()) {
            ("-", _) => Reply::Nothing,
            ("''", _) => Reply::Text(String::new()),
            (_, Ok(number)) => Reply::Number(number),
            (text, _) => Reply::Text(text.to_owned()),
        });
        parts.collect()
    }

    #[test]
    fn the_map_matches_the_answers_of_the_nodes() {
        let mut map = Map::parse(
            &answer(
                "0 5460 10.0.0.1 30001 id-a hostname a.example zone eu-1 10.0.0.4 30004 id-d hostname d.example \
                5461 10922 b.example 30002 id-b ip 10.0.0.2 - 30004 id-e \
                10923 16380 - 30003 id-c ip 10.0.0.3 hostname '' \
                16381 16381 ? 30005 id-f ip 10.0.0.5 \
                16382 16382 '' 30006 id-g 10.0.0.4 30004 id-d",
            ),
            "asked",
        );
        let node = |map: &Map, slot| {
            map.node(slot)
                .map(|node| node.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        for (slot, expected) in [
            (0, Some("10.0.0.1:30001 a.example:30001")),
            (5460, Some("10.0.0.1:30001 a.example:30001")),
            (5461, Some("b.example:30002 10.0.0.2:30002")),
            (10_923, Some("asked:30003 10.0.0.3:30003")),
            (16_381, Some("10.0.0.5:30005")),
            (16_382, Some("asked:30006")),
            (16_383, None),
        ] {
            assert_eq!(node(&map, slot).as_deref(), expected, "{slot}");
        }
        assert!(map.at(&at("10.0.0.2:30002")).is_some() && map.at(&at("10.0.0.4:30004")).is_none());
        map.moved(5461, at("10.0.0.9:30001"));
        assert!(map.at(&at("10.0.0.9:30001")).is_some());
        assert_eq!(node(&map, 5461).as_deref(), Some("10.0.0.9:30001"));
        assert_eq!(node(&map, 5462).as_deref(), Some("b.example:30002 10.0.0.2:30002"));
        // To a known node, with all its addresses.
        map.moved(1, at("10.0.0.2:30002"));
        assert_eq!(node(&map, 1).as_deref(), Some("b.example:30002 10.0.0.2:30002"));
        for nonsense in ["", "1", "0 1 a 1", "a b c d e", "-1 70000 a 1 id"] {
            assert!(Map::parse(&answer(nonsense), "asked").node(0).is_none(), "{nonsense}");
        }
        // An answer before Redis 7.0, and a node whose address is unknown.
        let map = Map::parse(&answer("0 9 127.0.0.1 1 id-a 127.0.0.1 2 id-b 10 19 ? 3 id-c"), "asked");
        assert_eq!(node(&map, 9).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(node(&map, 10).as_deref(), Some("asked:3"));
    }
}
