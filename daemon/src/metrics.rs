//! Every metric of the daemon, with the question that it answers. What could tell one trust group of another is not
//! here: these go over TCP and are sums over all groups; each group's own figures are on its socket (`lapis status`).

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::{
    engine::Engine,
    movers::Movers,
    status::{DeviceTotals, Gpu, Totals},
};
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
    counter STALLS "lapis_engine_stalls_total" "How often did the engine loop stand still for more than a second? The log says by what.";
    gauge CLIENTS "lapis_clients" "How many clients are connected now?";
    gauge BLOCKS "lapis_blocks" "How many blocks are in DRAM now?";
    gauge DRAM_BYTES "lapis_dram_bytes" "How much DRAM has the arena?";
    gauge DRAM_BYTES_POPULATED "lapis_dram_populated_bytes" "How much of it has memory behind it and can be granted?";
    gauge DRAM_BYTES_USED "lapis_dram_used_bytes" "How many bytes do the slots of stored blocks take?";
    gauge SLOTS_GRANTED "lapis_slots_granted" "How many slots are with clients to be filled now?";
    gauge SLOTS_ASIDE "lapis_slots_aside" "How many slots wait for a reader or a former client before they can be used again?";
    counter KEYS_HIT_SSD "lapis_keys_hit_ssd_total" "How many blocks did somebody wait for that came from SSD? The other hits were in DRAM.";
    gauge SSD_SERVING "lapis_ssd_serving" "Does the SSD tier serve (1), or is it not configured, being recovered or off (0)?";
    gauge SSD_BLOCKS "lapis_ssd_blocks" "How many blocks are on SSD now, in DRAM too or not?";
    gauge SSD_BLOCKS_ONLY "lapis_ssd_only_blocks" "How many blocks are on SSD and not in DRAM?";
    gauge DIRTY_BLOCKS "lapis_dram_only_blocks" "How many blocks would a start without the kept memory not find, because they are in DRAM alone?";
    gauge SSD_BYTES_USED "lapis_ssd_used_bytes" "How many bytes do records of blocks take that are on SSD now?";
    counter SSD_ADMITTED_BYTES "lapis_ssd_admitted_bytes_total" "How many bytes of blocks came to SSD? The denominator of the write amplification.";
    counter SSD_READMITTED_BYTES "lapis_ssd_readmitted_bytes_total" "How many bytes were written anew because their segment went and they were wanted?";
    counter DEMOTIONS "lapis_demotions_total" "How many blocks left DRAM and stayed on SSD?";
    counter PROMOTIONS "lapis_promotions_total" "How many blocks came from SSD into DRAM, asked for or read ahead?";
    counter SSD_EVICTIONS "lapis_ssd_evictions_total" "How many blocks left SSD with their segment, and are nowhere any more?";
    counter SSD_DECLINED "lapis_ssd_declined_blocks_total" "How many full blocks left memory without being on SSD because the write budget had no bytes for them?";
    counter SSD_BUDGET_SPENT_BYTES "lapis_ssd_budget_spent_bytes_total" "How many bytes were written against the write budget, where there is one?";
    counter SSD_SEGMENTS_RETIRED "lapis_ssd_segments_retired_total" "How many segments were given up to be written again?";
    counter SSD_READS_FAILED "lapis_ssd_read_failures_total" "How many blocks could not be read from SSD? Each was a miss.";
    counter SSD_WRITES_FAILED "lapis_ssd_write_failures_total" "How many blocks could not be written to SSD? They stayed in DRAM.";
    counter SSD_CHECKSUM_FAILURES "lapis_ssd_checksum_failures_total" "Of the blocks that did not fit their sum, how many lay on SSD? Look at the devices if this rises.";
    counter SSD_RECOVERED "lapis_ssd_recovered_blocks_total" "How many blocks of former starts were found on SSD?";
    gauge SSD_BUDGET_BYTES "lapis_ssd_budget_bytes" "How many bytes may be written to SSD in a day, 0 without a budget?";
    gauge SSD_BUDGET_AVAILABLE_BYTES "lapis_ssd_budget_available_bytes" "How many bytes of the write budget are saved; below 0: overdrawn?";
    gauge SSD_RECOVERY_SECONDS "lapis_ssd_recovery_seconds" "How long did it take from the start until the SSD tier served?";
    gauge DEVICE_BYTES "lapis_ssd_device_bytes" "How large is the device?";
    gauge DEVICE_HEALTH "lapis_ssd_device_health" "Is the device well (2), degraded: not written (1), or out: neither read nor written (0)?";
    gauge DEVICE_IN_FLIGHT "lapis_ssd_device_operations_in_flight" "How many operations has the device now?";
    gauge DEVICE_SEGMENTS_FREE "lapis_ssd_device_segments_free" "How many segments of the device does nothing use?";
    gauge DEVICE_SEGMENTS_USED "lapis_ssd_device_segments_used" "How many segments of the device hold blocks or are being written?";
    counter DEVICE_ERRORS "lapis_ssd_device_errors_total" "How many operations of the device failed?";
    counter DEVICE_READ_BYTES "lapis_ssd_device_read_bytes_total" "How many bytes came from the device?";
    counter DEVICE_WRITTEN_BYTES "lapis_ssd_device_written_bytes_total" "How many bytes went to the device, all kinds? Over the admitted bytes it is the write amplification.";
    counter DEVICE_OVERHEAD_BYTES "lapis_ssd_device_overhead_bytes_total" "Of the bytes that went to the device, how many were tables of contents, headers and superblocks?";
    counter KEYS_HIT_PEERS "lapis_keys_hit_peers_total" "How many blocks did somebody wait for that came from other hosts?";
    counter PEER_BLOCKS_READ "lapis_peer_read_blocks_total" "How many blocks came from other hosts, asked for or offered?";
    counter PEER_BYTES_READ "lapis_peer_read_bytes_total" "How many bytes came from other hosts?";
    counter PEER_BYTES_READ_RDMA "lapis_peer_read_rdma_bytes_total" "How many of these came by RDMA? The others came by TCP.";
    counter PEER_BLOCKS_LOOKED_UP "lapis_peer_looked_up_blocks_total" "How many blocks came after they were looked up in another host's table, without asking it (peers.locate)?";
    counter PEER_BLOCKS_FAILED "lapis_peer_failed_blocks_total" "How many blocks had another host shown that did not come? Each was a miss, or came from the next one.";
    counter PEER_CHECKSUM_FAILURES "lapis_peer_checksum_failures_total" "How many blocks of other hosts did not fit their sum and were dropped? Some do where owners are short of memory: their slots are reused.";
    counter PEER_WANTS "lapis_peer_wants_total" "How often was something asked of other hosts?";
    counter PEER_WANTS_VAIN "lapis_peer_wants_vain_total" "How often came nothing of it? Digests are late, or hosts slow, if this is much of all.";
    counter PEER_BLOCKS_LENT "lapis_peer_lent_blocks_total" "How many blocks were shown to other hosts?";
    counter PEER_BYTES_LENT "lapis_peer_lent_bytes_total" "How many bytes had those?";
    gauge PEERS "lapis_peers" "How many other hosts are known, once for each group?";
    gauge MEMBERSHIP_STALE_SECONDS "lapis_membership_stale_seconds" "For how long may other hosts have come and gone unseen, because etcd is lost? 0: all is known.";
    gauge PEERS_UP "lapis_peers_up" "How many of them can be asked now?";
    gauge GPU_BYTES "lapis_gpu_bytes" "How much memory of the GPU has the HBM tier?";
    gauge GPU_STATE "lapis_gpu_state" "Is the GPU well (2), does it hang (1), or is it lost (0)?";
    gauge GPU_COPIES_IN_FLIGHT "lapis_gpu_copies_in_flight" "How many copies has the GPU now?";
    gauge GPU_REGISTERED_BYTES "lapis_gpu_registered_bytes" "How much memory of the host can the GPU copy from and to? All of lapis_dram_bytes a while after the start.";
    counter GPU_COPIES "lapis_gpu_copies_total" "How many copies ended well: into the GPU, out of it, within it or from another one?";
    counter GPU_COPIED_BYTES "lapis_gpu_copied_bytes_total" "How many bytes had those?";
    counter GPU_ERRORS "lapis_gpu_errors_total" "How many copies failed, or ended with the GPU?";
    gauge GPU_BLOCKS "lapis_gpu_blocks" "How many blocks do readers find on the GPU?";
    gauge GPU_BYTES_USED "lapis_gpu_used_bytes" "How many bytes have the slots of those?";
    gauge GPU_SLOTS_GRANTED "lapis_gpu_slots_granted" "How many slots on the GPU are with clients to be filled now?";
    gauge GPU_SLOTS_ASIDE "lapis_gpu_slots_aside" "How many slots on the GPU wait for a reader or a former client before they can be used again?";
    counter KEYS_HIT_HBM "lapis_keys_hit_hbm_total" "How many hits were in the memory of GPUs: read there, as clients report, or waited for by somebody on the host?";
    counter HBM_PROMOTIONS "lapis_hbm_promotions_total" "How many blocks were copied to GPUs from DRAM?";
    counter HBM_PUTS "lapis_hbm_puts_total" "How many blocks did clients put on GPUs?";
    counter HBM_EVICTIONS "lapis_hbm_evictions_total" "How many copies on GPUs went to make room?";
    counter HBM_DEMOTIONS "lapis_hbm_demotions_total" "How many blocks left DRAM and stayed on a GPU alone?";
    counter HBM_SAVED "lapis_hbm_saved_total" "How many blocks came to DRAM from GPUs?";
    counter HBM_COPIES_FAILED "lapis_hbm_copy_failures_total" "How many copies of blocks to and from GPUs failed?";
    counter HBM_LOST "lapis_hbm_lost_blocks_total" "How many blocks went with a GPU that was lost?";
    gauge ADOPTING "lapis_adopting" "Are blocks of the former daemon still being taken over (1) or not (0)?";
    gauge UPTIME_SECONDS "lapis_uptime_seconds" "Since when does this daemon run?";
    gauge BUILD_INFO "lapis_build_info" "Which version runs? Always 1, the version is the label.";
}

/// Brings the exported values up to date.
pub fn publish<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time) {
    let totals = Totals::of(engine, now);
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
        (STALLS, counts.stalls),
        (KEYS_HIT_SSD, totals.core.ssd_hits),
        (SSD_ADMITTED_BYTES, totals.core.admitted_bytes),
        (SSD_READMITTED_BYTES, totals.core.readmitted_bytes),
        (DEMOTIONS, totals.core.demotions),
        (PROMOTIONS, totals.core.promotions),
        (SSD_EVICTIONS, totals.core.ssd_evictions),
        (SSD_DECLINED, totals.core.ssd_declined),
        (SSD_BUDGET_SPENT_BYTES, totals.core.budget_spent_bytes),
        (SSD_SEGMENTS_RETIRED, totals.core.segments_retired),
        (SSD_READS_FAILED, totals.core.ssd_reads_failed),
        (SSD_WRITES_FAILED, totals.core.ssd_writes_failed),
        (SSD_CHECKSUM_FAILURES, totals.core.ssd_corrupt),
        (SSD_RECOVERED, totals.core.ssd_found),
        (KEYS_HIT_HBM, totals.hit_hbm),
        (HBM_PROMOTIONS, totals.core.hbm_promotions),
        (HBM_PUTS, totals.core.hbm_puts),
        (HBM_EVICTIONS, totals.core.hbm_evictions),
        (HBM_DEMOTIONS, totals.core.hbm_demotions),
        (HBM_SAVED, totals.core.hbm_saved),
        (HBM_COPIES_FAILED, totals.core.hbm_copies_failed),
        (HBM_LOST, totals.core.hbm_lost),
        (KEYS_HIT_PEERS, totals.peers.blocks_hit),
        (PEER_BLOCKS_READ, totals.peers.blocks_read),
        (PEER_BYTES_READ, totals.peers.bytes_read),
        (PEER_BLOCKS_LOOKED_UP, totals.peers.blocks_looked_up),
        (PEER_BYTES_READ_RDMA, totals.peers.bytes_read_rdma),
        (PEER_BLOCKS_FAILED, totals.peers.blocks_failed),
        (PEER_CHECKSUM_FAILURES, totals.peers.blocks_corrupt),
        (PEER_WANTS, totals.peers.wants),
        (PEER_WANTS_VAIN, totals.peers.wants_vain),
        (PEER_BLOCKS_LENT, totals.peers.blocks_lent),
        (PEER_BYTES_LENT, totals.peers.bytes_lent),
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
        (SSD_SERVING, f64::from(u8::from(totals.ssd.serves))),
        (SSD_BLOCKS, totals.core.ssd_blocks as f64),
        (SSD_BLOCKS_ONLY, totals.core.lines_used.saturating_sub(totals.core.blocks) as f64),
        (DIRTY_BLOCKS, totals.core.lines_used.saturating_sub(totals.core.ssd_blocks) as f64),
        (SSD_BYTES_USED, totals.core.ssd_bytes as f64),
        (SSD_BUDGET_BYTES, totals.ssd.budget_bytes_a_day as f64),
        (SSD_BUDGET_AVAILABLE_BYTES, totals.ssd.budget_available_bytes as f64),
        (SSD_RECOVERY_SECONDS, totals.ssd.recovery_us as f64 / 1e6),
        (PEERS, totals.peers.members as f64),
        (PEERS_UP, totals.peers.up as f64),
        (MEMBERSHIP_STALE_SECONDS, totals.membership_stale_s(now)),
        (ADOPTING, if engine.adopted() { 0.0 } else { 1.0 }),
        (UPTIME_SECONDS, now.since_us(engine.started) as f64 / 1e6),
    ];
    for (name, value) in gauges {
        gauge!(name).set(value);
    }
    totals.ssd.devices.iter().for_each(publish_device);
    totals.gpus.iter().for_each(publish_gpu);
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Devices are the host's, not a group's: their path is a label.
fn publish_device(device: &DeviceTotals) {
    let path = || device.path.clone();
    let counters = [
        (DEVICE_ERRORS, device.errors),
        (DEVICE_READ_BYTES, device.load.read_bytes),
        (DEVICE_WRITTEN_BYTES, device.load.written_bytes),
        (DEVICE_OVERHEAD_BYTES, device.overhead_bytes),
    ];
    for (name, value) in counters {
        counter!(name, "device" => path()).absolute(value);
    }
    let gauges = [
        (DEVICE_BYTES, device.bytes),
        (DEVICE_HEALTH, device.health.into()),
        (DEVICE_IN_FLIGHT, device.load.operations_in_flight),
        (DEVICE_SEGMENTS_FREE, device.load.segments_free),
        (DEVICE_SEGMENTS_USED, device.load.segments_used),
    ];
    for (name, value) in gauges {
        gauge!(name, "device" => path()).set(value as f64);
    }
}

/// GPUs are the host's, not a group's: their UUID is a label.
fn publish_gpu(gpu: &Gpu) {
    let Some(load) = gpu.load else { return };
    let uuid = || gpu.uuid.clone();
    let ways = [
        ("in", load.copies_in, load.bytes_in),
        ("out", load.copies_out, load.bytes_out),
        ("across", load.copies_across, load.bytes_across),
    ];
    for (way, copies, bytes) in ways {
        counter!(GPU_COPIES, "gpu" => uuid(), "way" => way).absolute(copies);
        counter!(GPU_COPIED_BYTES, "gpu" => uuid(), "way" => way).absolute(bytes);
    }
    counter!(GPU_ERRORS, "gpu" => uuid()).absolute(load.errors);
    let state = match gpu.state.as_str() {
        "well" => 2,
        "hangs" => 1,
        _ => 0,
    };
    let held = gpu.held.unwrap_or_default();
    let gauges = [
        (GPU_BLOCKS, held.blocks),
        (GPU_BYTES_USED, held.used_bytes),
        (GPU_SLOTS_GRANTED, held.slots_granted),
        (GPU_SLOTS_ASIDE, held.slots_aside),
        (GPU_BYTES, gpu.bytes),
        (GPU_STATE, state),
        (GPU_COPIES_IN_FLIGHT, load.copies_in_flight),
        (GPU_REGISTERED_BYTES, load.registered_bytes),
    ];
    for (name, value) in gauges {
        gauge!(name, "gpu" => uuid()).set(value as f64);
    }
}
