//! Every metric of the daemon, with the question that it answers. What could tell one trust group of another is not
//! here: these go over TCP and are sums over all groups; each group's own figures are on its socket (`lapis status`).

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::{engine::Engine, movers::Movers, status::Totals};
use lapis_config::Time;
use lapis_transport::wire::Wire;

macro_rules! metrics_table {
    ($($kind:ident $constant:ident $name:literal $question:literal;)*) => {
        $(pub const $constant: &str = $name;)*

        /// Tells the exporter what each metric means.
        pub fn describe() {
            $(metrics_table!(@describe $kind $constant $question);)*
        }
    };
    (@describe counter $constant:ident $question:literal) => { describe_counter!($constant, $question) };
    (@describe gauge $constant:ident $question:literal) => { describe_gauge!($constant, $question) };
}

metrics_table! {
    counter KEYS_ASKED "lapis_keys_asked_total" "How many block keys did clients ask for? The denominator of the hit rate; as reported by clients.";
    counter KEYS_HIT "lapis_keys_hit_total" "How many of the asked keys were hits? As reported by clients.";
    counter BYTES_HIT "lapis_hit_bytes_total" "How many bytes did hits deliver? As reported by clients.";
    counter PUTS_STORED "lapis_puts_stored_total" "How many blocks were put and published?";
    counter PUTS_EXISTED "lapis_puts_existed_total" "How many puts found their key there already?";
    counter PUTS_REFUSED "lapis_puts_refused_total" "How many puts were refused? Should stay 0.";
    counter BLOCKS_EVICTED "lapis_blocks_evicted_total" "How many blocks were evicted from DRAM to make room?";
    counter SLABS_MOVED "lapis_slabs_moved_total" "How often did a slab change its pool because demand moved?";
    counter BLOCKS_VERIFIED "lapis_blocks_verified_total" "How many kept blocks were checked against their sum after a restart?";
    counter CHECKSUM_FAILURES "lapis_checksum_failures_total" "How many blocks did not fit their sum and were dropped? Look at the host's memory if this rises.";
    counter CLIENTS_CONNECTED "lapis_clients_connected_total" "How many clients have connected since the start?";
    counter CLIENTS_RESUMED "lapis_clients_resumed_total" "How many clients came back after a restart and went on?";
    counter CLIENTS_DIED "lapis_clients_died_total" "How many client processes ended without saying good-bye?";
    counter CLIENTS_EXPELLED "lapis_clients_expelled_total" "How many clients were disconnected because they pinned too much?";
    counter CLIENT_FAULTS "lapis_client_faults_total" "How many clients were disconnected because of malformed frames or unread answers?";
    counter FRAMES_SERVED "lapis_frames_served_total" "How many requests came over the rings?";
    gauge CLIENTS "lapis_clients" "How many clients are connected now?";
    gauge BLOCKS "lapis_blocks" "How many blocks are in DRAM now?";
    gauge DRAM_BYTES "lapis_dram_bytes" "How much DRAM has the arena?";
    gauge DRAM_BYTES_POPULATED "lapis_dram_populated_bytes" "How much of it has memory behind it and can be granted?";
    gauge DRAM_BYTES_USED "lapis_dram_used_bytes" "How many bytes do the slots of stored blocks take?";
    gauge SLOTS_GRANTED "lapis_slots_granted" "How many slots are with clients to be filled now?";
    gauge SLOTS_ASIDE "lapis_slots_aside" "How many slots wait for a reader or a former client before they can be used again?";
    gauge ADOPTING "lapis_adopting" "Are blocks of the former daemon still being taken over (1) or not (0)?";
    gauge UPTIME_SECONDS "lapis_uptime_seconds" "Since when does this daemon run?";
    gauge BUILD_INFO "lapis_build_info" "Which version runs? Always 1, the version is the label.";
}

/// Brings the exported values up to date.
pub fn publish<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time) {
    let totals = Totals::of(engine);
    let counts = engine.counts();
    let counters = [
        (KEYS_ASKED, totals.asked),
        (KEYS_HIT, totals.hit),
        (BYTES_HIT, totals.bytes_hit),
        (PUTS_STORED, totals.core.puts_stored),
        (PUTS_EXISTED, totals.core.puts_exists),
        (PUTS_REFUSED, totals.core.puts_refused),
        (BLOCKS_EVICTED, totals.core.evictions),
        (SLABS_MOVED, totals.core.slabs_moved),
        (BLOCKS_VERIFIED, totals.core.verified),
        (CHECKSUM_FAILURES, totals.core.corrupt),
        (CLIENTS_CONNECTED, counts.clients_connected),
        (CLIENTS_RESUMED, counts.clients_resumed),
        (CLIENTS_DIED, counts.clients_died),
        (CLIENTS_EXPELLED, counts.clients_expelled),
        (CLIENT_FAULTS, counts.client_faults),
        (FRAMES_SERVED, counts.frames),
    ];
    for (name, value) in counters {
        counter!(name).absolute(value);
    }
    let gauges = [
        (CLIENTS, totals.clients as f64),
        (BLOCKS, totals.core.blocks as f64),
        (DRAM_BYTES, totals.dram_bytes as f64),
        (DRAM_BYTES_POPULATED, totals.populated_bytes as f64),
        (DRAM_BYTES_USED, totals.core.bytes_used as f64),
        (SLOTS_GRANTED, totals.core.slots_granted as f64),
        (SLOTS_ASIDE, totals.core.slots_aside as f64),
        (ADOPTING, if engine.adopted() { 0.0 } else { 1.0 }),
        (UPTIME_SECONDS, now.since_us(engine.started) as f64 / 1e6),
    ];
    for (name, value) in gauges {
        gauge!(name).set(value);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}
