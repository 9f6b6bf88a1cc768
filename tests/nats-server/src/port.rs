//! A loopback port for one server, ours as long as we hold it, also while the server is down.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;

use crate::error::Error;

/// Below these live the ports that people give to their services.
const FIRST: u16 = 10_000;

/// Fewer to choose from, and parallel tests would meet too often.
const CHOICE_MIN: usize = 1_000;

/// A number whose TCP side was free when it was taken.
///
/// Its UDP side, for which nats-server has no use, is held: so no other server of ours gets the number while this one
/// is down, in whatever process, and the kernel clears up when we die.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _udp: UdpSocket,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self, Error> {
        let range = choice(ephemeral());
        let start = RandomState::new().hash_one(()) as usize % range.len();
        let mut numbers = range.clone().cycle().skip(start).take(range.len());
        numbers.find_map(Self::take).ok_or_else(|| Error::new(format!("no free port among {range:?}")))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    fn take(number: u16) -> Option<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _udp: udp })
    }
}

/// Where the kernel does not choose the near end of outgoing connections. There, a client that keeps knocking at the
/// port of a server that is down can be given that very port, and is then connected to itself.
fn choice(ephemeral: Range<u16>) -> Range<u16> {
    let below = FIRST..ephemeral.start;
    let above = ephemeral.end..u16::MAX;
    [below, above].into_iter().find(|range| range.len() >= CHOICE_MIN).unwrap_or(FIRST..u16::MAX)
}

/// The ports that the kernel gives to outgoing connections; its default where it does not tell.
fn ephemeral() -> Range<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) => first..last.saturating_add(1),
        _ => 32_768..61_000,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait::eventually;

    #[test]
    fn a_port_that_is_held_is_not_given_again() {
        let held = Port::reserve().unwrap();
        assert!(Port::take(held.number()).is_none());
        let number = held.number();
        drop(held);
        // A process that a test beside this one starts holds a copy of the socket until it is another program.
        eventually(Duration::from_secs(10), "the port to be free", || Port::take(number).is_some());
    }

    #[test]
    fn ports_stay_clear_of_outgoing_connections_where_they_can() {
        assert_eq!(choice(32_768..61_000), 10_000..32_768);
        assert_eq!(choice(1_024..61_000), 61_000..65_535);
        assert_eq!(choice(1_024..65_535), 10_000..65_535);
    }
}
