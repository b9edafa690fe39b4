//! How many at once, overall and per client (R-X13).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts who is in.
pub(super) struct Gate {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    total: usize,
    /// Only clients with at least one.
    per_client: HashMap<IpAddr, usize>,
}

/// Which limit stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Overall,
    Client,
}

impl Full {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Full::Overall => "max_connections",
            Full::Client => "max_connections_per_client",
        }
    }
}

impl Gate {
    pub(super) fn new() -> Arc<Gate> {
        Arc::new(Gate {
            inside: Mutex::default(),
        })
    }

    /// A place inside, until the pass is dropped: of `most`, and of `most_per_client`.
    pub(super) fn enter(self: &Arc<Gate>, client: IpAddr, most: usize, most_per_client: usize) -> Result<Pass, Full> {
        let client = one_client(client);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = inside.per_client.get(&client).copied().unwrap_or(0);
        if mine >= most_per_client {
            return Err(Full::Client);
        }
        if inside.total >= most {
            return Err(Full::Overall);
        }
        inside.total += 1;
        inside.per_client.insert(client, mine + 1);
        Ok(self.pass(Some(client), true))
    }

    /// A place of `most` that counts in nobody's share: a trusted proxy's, which must not fill the share of the clients
    /// at its address or in its IPv6 network.
    pub(super) fn enter_for_nobody(self: &Arc<Gate>, most: usize) -> Result<Pass, Full> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.total >= most {
            return Err(Full::Overall);
        }
        inside.total += 1;
        Ok(self.pass(None, true))
    }

    /// A share of what this client may have, for something that is counted among all already: a proxy's connection,
    /// or a request on it.
    pub(super) fn share(self: &Arc<Gate>, client: IpAddr, most_per_client: usize) -> Result<Pass, Full> {
        let client = one_client(client);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = inside.per_client.get(&client).copied().unwrap_or(0);
        if mine >= most_per_client {
            return Err(Full::Client);
        }
        inside.per_client.insert(client, mine + 1);
        Ok(self.pass(Some(client), false))
    }

    fn pass(self: &Arc<Gate>, client: Option<IpAddr>, is_of_total: bool) -> Pass {
        Pass {
            gate: self.clone(),
            client,
            is_of_total,
            other: None,
        }
    }

    fn leave(&self, client: Option<IpAddr>, is_of_total: bool) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.total -= usize::from(is_of_total);
        let Some(client) = client else { return };
        match inside.per_client.get_mut(&client) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => {
                inside.per_client.remove(&client);
            }
        }
    }
}

/// One IPv6 host owns a whole /64 and could otherwise be as many clients as it likes.
fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// A place inside a [`Gate`].
pub(super) struct Pass {
    gate: Arc<Gate>,
    /// The client in whose share it counts, if in any.
    client: Option<IpAddr>,
    is_of_total: bool,
    /// Held together with this one.
    other: Option<Box<Pass>>,
}

impl Pass {
    /// Both, until this is dropped.
    pub(super) fn with(mut self, other: Pass) -> Pass {
        self.other = Some(Box::new(other));
        self
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.client, self.is_of_total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_limits_hold_and_places_come_free() {
        let gate = Gate::new();
        let first = gate.enter(ip("10.0.0.1"), 3, 2).ok().unwrap();
        let _second = gate.enter(ip("::ffff:10.0.0.1"), 3, 2).ok().unwrap();
        assert_eq!(gate.enter(ip("10.0.0.1"), 3, 2).err(), Some(Full::Client));
        let _other = gate.enter(ip("10.0.0.2"), 3, 2).ok().unwrap();
        assert_eq!(gate.enter(ip("10.0.0.3"), 3, 2).err(), Some(Full::Overall));
        drop(first);
        assert!(gate.enter(ip("10.0.0.1"), 3, 2).is_ok());
    }

    #[test]
    fn a_share_is_of_its_client_and_of_no_total() {
        let gate = Gate::new();
        let place = gate.enter(ip("10.0.0.1"), 1, 2).ok().unwrap();
        let share = gate.share(ip("10.0.0.1"), 2).ok().unwrap();
        assert_eq!(gate.share(ip("10.0.0.1"), 2).err(), Some(Full::Client));
        assert_eq!(gate.enter(ip("10.0.0.1"), 9, 2).err(), Some(Full::Client));
        assert_eq!(gate.enter(ip("10.0.0.2"), 1, 2).err(), Some(Full::Overall));
        assert!(gate.share(ip("10.0.0.2"), 2).is_ok(), "it needs no place");
        drop(place.with(share));
        let inside = gate.inside.lock().unwrap();
        assert_eq!((inside.total, inside.per_client.len()), (0, 0));
    }

    #[test]
    fn a_place_for_nobody_is_of_no_share() {
        let gate = Gate::new();
        let place = gate.enter_for_nobody(2).ok().unwrap();
        let _mine = gate.enter(ip("2001:db8::2"), 2, 1).ok().unwrap();
        assert_eq!(gate.enter_for_nobody(2).err(), Some(Full::Overall));
        drop(place);
        let inside = gate.inside.lock().unwrap();
        assert_eq!((inside.total, inside.per_client.len()), (1, 1));
    }

    #[test]
    fn one_ipv6_network_is_one_client_and_nothing_is_left_behind() {
        let gate = Gate::new();
        let pass = gate.enter(ip("2001:db8::1"), 9, 1).ok().unwrap();
        assert_eq!(gate.enter(ip("2001:db8::2"), 9, 1).err(), Some(Full::Client));
        assert!(gate.enter(ip("2001:db8:0:1::1"), 9, 1).is_ok());
        drop(pass);
        let inside = gate.inside.lock().unwrap();
        assert_eq!((inside.total, inside.per_client.len()), (0, 0));
    }
}
