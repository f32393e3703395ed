//! A Redis Cluster as its clients see it: which node has which slot, and where an answer sends them instead.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use verve_protocol::slot::SLOTS;

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets; empty where a node means itself.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host:port`; an IPv6 address has no brackets there.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.parse().ok().filter(|port| *port > 0)?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a node answers instead of running a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The slot is another node's.
    Moved(u16, Address),
    /// The slot is on its way to another node, which may have this key already.
    Ask(Address),
}

impl Redirect {
    /// The redirection that an error is, if it is one.
    ///
    /// Redis says `MOVED 3999 127.0.0.1:6381`. Hosts put it in their own words, in each version in others: `Moved: 3999
    /// 127.0.0.1:6381`, or without the first word. All of them keep the slot and the address at the end.
    #[must_use]
    pub fn told(error: &str) -> Option<Self> {
        let mut words = error.split_ascii_whitespace().rev();
        let address = Address::parse(words.next()?)?;
        let slot = words.next()?.parse().ok().filter(|slot| *slot < SLOTS)?;
        let said = words.next()?;
        Some(if said.trim_end_matches(':').eq_ignore_ascii_case("ask") {
            Self::Ask(address)
        } else {
            Self::Moved(slot, address)
        })
    }
}

/// Which node has which slots.
#[derive(Debug, Default)]
pub struct Map {
    ranges: Vec<(RangeInclusive<u16>, Address)>,
    /// What was learnt since.
    moved: BTreeMap<u16, Address>,
}

impl Map {
    /// Reads the answer to `CLUSTER NODES`: a line for each node, of which a primary's ends with its slots. A name that a node has
    /// announced comes before its address, since a certificate is for a name.
    #[must_use]
    pub fn parse(nodes: &str) -> Self {
        let mut ranges = Vec::new();
        for line in nodes.lines() {
            let mut fields = line.split(' ');
            let (address, flags) = (fields.nth(1).unwrap_or_default(), fields.next().unwrap_or_default());
            let Some(address) = announced(address).filter(|_| flags.contains("master")) else {
                continue;
            };
            // Those on their way are in brackets, and here until they have gone.
            let slots = fields.skip(5).filter(|slots| !slots.starts_with('['));
            ranges.extend(slots.filter_map(range).map(|range| (range, address.clone())));
        }
        Self {
            ranges,
            moved: BTreeMap::new(),
        }
    }

    /// The node that has a slot, as far as is known.
    #[must_use]
    pub fn node(&self, slot: u16) -> Option<&Address> {
        let moved = self.moved.get(&slot);
        moved.or_else(|| {
            let found = self.ranges.iter().find(|(range, _)| range.contains(&slot));
            found.map(|(_, address)| address)
        })
    }

    /// Whether a node at this address has slots, as far as is known.
    #[must_use]
    pub fn has(&self, address: &Address) -> bool {
        let of_ranges = self.ranges.iter().map(|(_, node)| node);
        of_ranges.chain(self.moved.values()).any(|node| node == address)
    }

    /// Learns that another node has a slot.
    pub fn moved(&mut self, slot: u16, address: Address) {
        self.moved.insert(slot, address);
    }
}

/// `ip:port@bus-port[,name[,…]]`.
fn announced(field: &str) -> Option<Address> {
    let mut parts = field.split(',');
    let mut address = Address::parse(parts.next()?.split('@').next()?)?;
    if let Some(name) = parts.next().filter(|name| !name.is_empty() && !name.contains('=')) {
        name.clone_into(&mut address.host);
    }
    Some(address)
}

fn range(slots: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = slots.split_once('-').unwrap_or((slots, slots));
    Some(from.parse().ok()?..=to.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    #[test]
    fn redirections_are_read_in_the_words_of_every_host() {
        let moved = Some(Redirect::Moved(3999, at("127.0.0.1:6381")));
        for error in [
            "MOVED 3999 127.0.0.1:6381",
            "Moved: 3999 127.0.0.1:6381",
            "An error was signalled by the server - Moved: 3999 127.0.0.1:6381",
            "An error was signalled by the server: 3999 127.0.0.1:6381",
        ] {
            assert_eq!(Redirect::told(error), moved, "{error}");
        }
        for error in ["Ask: 1 a.example:1", "server - Ask: 1 a.example:1", "ASK 1 a.example:1"] {
            assert_eq!(Redirect::told(error), Some(Redirect::Ask(at("a.example:1"))), "{error}");
        }
        // By itself a node means the host that was asked.
        assert_eq!(
            Redirect::told("Moved: 0 :7000"),
            Some(Redirect::Moved(
                0,
                Address {
                    host: String::new(),
                    port: 7000
                }
            ))
        );
        assert_eq!(
            Redirect::told("Moved: 0 ::1:7000"),
            Some(Redirect::Moved(
                0,
                Address {
                    host: "::1".to_owned(),
                    port: 7000
                }
            ))
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
            assert_eq!(Redirect::told(error), None, "{error}");
        }
    }

    #[test]
    fn the_map_is_what_the_nodes_say() {
        let text = "\
07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004@31004 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 0 1426238317239 4 connected
67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:30002@31002,b.example master - 0 1426238316232 2 connected 5461-10922
292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f 127.0.0.1:30003@31003,,shard-id=1 master - 0 1426238318243 3 connected 10923-16380 16383
e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca :30001@31001 myself,master - 0 0 1 connected 0-5460 [5461-<-67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1]
ffffffffffffffffffffffffffffffffffffffff 127.0.0.1:30009@31009 master - 0 0 1 connected
";
        let mut map = Map::parse(text);
        let node = |map: &Map, slot| map.node(slot).map(ToString::to_string);
        for (slot, expected) in [
            (0, Some(":30001")),
            (5460, Some(":30001")),
            (5461, Some("b.example:30002")),
            (10_923, Some("127.0.0.1:30003")),
            (16_381, None),
            (16_383, Some("127.0.0.1:30003")),
        ] {
            assert_eq!(node(&map, slot).as_deref(), expected, "{slot}");
        }
        assert!(map.has(&at("b.example:30002")) && !map.has(&at("127.0.0.1:30002")));
        map.moved(5461, at("127.0.0.1:30001"));
        assert!(map.has(&at("127.0.0.1:30001")));
        assert_eq!(node(&map, 5461).as_deref(), Some("127.0.0.1:30001"));
        assert_eq!(node(&map, 5462).as_deref(), Some("b.example:30002"));
        assert!(Map::parse("nonsense\n\n").node(0).is_none());
    }
}
