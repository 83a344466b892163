//! What the fuzz targets run, one for each decoder of bytes that this process did not write. Each function takes any
//! bytes and panics only if the code under test is wrong. `tests/tests/fuzz.rs` runs the same functions over the kept
//! corpus and over seeded damage, so that they run where cargo-fuzz is not.

pub mod config;
pub mod etcd;
pub mod log;
pub mod peers;
pub mod rings;
pub mod state;
pub mod trace;
pub mod wire;

/// A target by its name, with what honest encoders make for it: where fuzzing begins.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub honest: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "config", run: config::file, honest: config::files },
    Target { name: "contents", run: log::contents, honest: log::contents_pages },
    Target { name: "etcd", run: etcd::session, honest: etcd::sessions },
    Target { name: "frame", run: wire::frame, honest: wire::frames },
    Target { name: "hello", run: wire::hello, honest: wire::messages },
    Target { name: "hold", run: wire::hold, honest: wire::hold_messages },
    Target { name: "peer_digest", run: peers::digest, honest: peers::digests },
    Target { name: "peer_host", run: peers::host, honest: peers::sessions },
    Target { name: "peer_message", run: peers::message, honest: peers::messages },
    Target { name: "peer_stream", run: peers::stream, honest: peers::heads },
    Target { name: "rdma", run: wire::rdma, honest: wire::rdma_said },
    Target { name: "ring", run: rings::ring, honest: rings::scripts },
    Target { name: "segment", run: log::segment, honest: log::segments },
    Target { name: "state", run: state::state, honest: state::changes },
    Target { name: "superblock", run: log::superblock, honest: log::superblocks },
    Target { name: "trace", run: trace::trace, honest: trace::traces },
];
