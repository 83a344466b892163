//! Ten thousand connections that say nothing leave those that speak alone.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Instant,
};

use lapis_transport::peers::{
    links::{LinkEvent, LinkId, Links},
    message::PeerMessage,
    tcp::TcpLimits,
};
use rustix::{
    net::{AddressFamily, SocketType, bind, connect, socket},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    certificates::Authority,
    harness::{End, PATIENCE, hello, pair, ping},
};

const FLOOD: usize = 10_000;
/// For everything else that this process has open, other tests' among it.
const SPARE: usize = 1000;
const NEWCOMERS_MAX: usize = 64;

/// As many as this process may have open.
fn most() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // It is raised as far as it may be: a soft limit is for programs that use select.
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("what is allowed");
    let most = maximum.map_or(FLOOD, |most| (most as usize).saturating_sub(SPARE).min(FLOOD));
    assert!(most > 2000, "a limit of {maximum:?} descriptors is too low for a flood");
    most
}

/// Another address than everybody else's, other processes with this test among them: each has some 28,000 ports.
fn source() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 64, middle, low)
}

fn one_of_the_flood(to: SocketAddr) -> TcpStream {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a descriptor is left");
    bind(&stream, &SocketAddrV4::new(source(), 0)).expect("all of 127.0.0.0/8 is loopback");
    connect(&stream, &to).expect("there is a place for a moment");
    stream.into()
}

/// The next event that is not about the flood.
fn next(end: &mut End, told: &mut usize) -> LinkEvent {
    let flood = format!("from {}:", source());
    end.find(|event| match event {
        LinkEvent::Closed { reason, .. } if reason.starts_with(&flood) => {
            *told += 1;
            None
        }
        event => Some(event),
    })
}

fn ping_in_flood(a: &mut End, to_b: LinkId, b: &mut End, from_a: LinkId, number: u64, told: &mut usize) {
    a.links.send(to_b, PeerMessage::Ping { number });
    match next(b, told) {
        LinkEvent::Message { link, message: PeerMessage::Ping { number: came } } if link == from_a => {
            assert_eq!(came, number);
        }
        event => panic!("{event:?}"),
    }
    b.links.send(from_a, PeerMessage::Pong { number });
    assert_eq!(a.message(to_b), PeerMessage::Pong { number });
}

fn connect_in_flood(a: &mut End, b: &mut End, told: &mut usize) -> (LinkId, LinkId) {
    let to_b = a.links.dial("host-b", &b.address());
    a.links.send(to_b, hello("host-a"));
    assert!(matches!(a.next(), LinkEvent::Dialled { link, .. } if link == to_b));
    let from_a = match next(b, told) {
        LinkEvent::Accepted { link, .. } => link,
        event => panic!("{event:?}"),
    };
    assert!(matches!(next(b, told), LinkEvent::Message { message: PeerMessage::Hello(_), .. }));
    (to_b, from_a)
}

#[test]
fn an_established_link_goes_on_and_new_ones_are_made_in_a_flood() {
    let most = most();
    let authority = Authority::new();
    // Who says nothing would otherwise be gone before the flood is over.
    let limits =
        TcpLimits { newcomers_max: NEWCOMERS_MAX, connect: PATIENCE, first_message: PATIENCE, ..TcpLimits::default() };
    let (mut a, mut b, to_b, from_a) = pair(&authority, limits);
    let address = b.links.local_addr();
    let started = Instant::now();
    let flood = std::thread::spawn(move || (0..most).map(|_| one_of_the_flood(address)).collect::<Vec<_>>());
    let (mut links, mut told, mut pings) = (Vec::new(), 0, 0);
    while !flood.is_finished() || pings < 3 {
        pings += 1;
        ping_in_flood(&mut a, to_b, &mut b, from_a, pings, &mut told);
        if links.len() < 50 {
            links.push(connect_in_flood(&mut a, &mut b, &mut told));
        }
    }
    let seconds = started.elapsed().as_secs() as usize + 1;
    let flood = flood.join().expect("all had a place for a moment");
    let until = Instant::now() + PATIENCE;
    while (b.links.refused() as usize) < most - NEWCOMERS_MAX {
        assert!(Instant::now() < until, "{} of {most} made room", b.links.refused());
        std::thread::yield_now();
    }
    drop(flood);
    // Those that were left have ended by themselves.
    while (b.links.refused() as usize) < most {
        assert!(Instant::now() < until + PATIENCE, "{} of {most} have ended", b.links.refused());
        std::thread::yield_now();
    }
    while let Some(event) = b.links.poll() {
        assert!(matches!(&event, LinkEvent::Closed { .. }), "{event:?}");
        told += 1;
    }
    let seconds = seconds + started.elapsed().as_secs() as usize;
    assert!(told <= 8 * (seconds + 1), "{told} of {most} were told of one by one in {seconds} s");
    assert!(links.len() >= 3, "{} links, {pings} pings", links.len());
    for (number, (to_b, from_a)) in links.into_iter().chain([(to_b, from_a)]).enumerate() {
        ping(&mut a, to_b, &mut b, from_a, number as u64);
    }
}
