//! Gets of blocks layer by layer, as an engine does them: its stream was told to wait for each layer's flag before anything was
//! asked for, and reads a layer once it is there. That nothing is read too early is what the stand-in looks at.

use std::{ops::Range, sync::atomic::Ordering, time::Instant};

use lapis_arena::hbm::{HbmExtent, Stream};
use lapis_client::{ClientError, DeviceFlag, DeviceLoad, DevicePiece, DevicePtr, GetOptions, Key, Wait};
use serde_json::json;

use super::{
    Bench, PATIENCE,
    blocks::{self, BATCH, SMALL},
    say, wait_for,
};

const LAYERS: usize = 4;
const LAYER: usize = SMALL / LAYERS;
/// What a flag says of a layer that is over.
const OVER: u32 = 9;

pub fn run(bench: &Bench, role: &str, ids: Range<u64>) {
    let batches = || blocks::batches(ids.clone()).map(blocks::keys);
    // In memory of the host each call has words of its own: nobody takes them back.
    let in_host = |call: usize| bench.word(call * LAYERS).1;
    match role {
        "layers" => {
            let flags = HbmExtent::create(bench.own.device(), 4096, &[]).expect("memory of the GPU");
            tell(batches().zip(0..).map(|(keys, call)| bench.in_layers(&keys, flags.address() + call * 64)));
        }
        "layers with flags of the host" => {
            tell(batches().zip(0..).map(|(keys, call)| bench.in_layers(&keys, in_host(call))));
            let flags = (0..batches().count() * LAYERS).map(|word| bench.word(word).0.load(Ordering::Acquire));
            assert!(flags.into_iter().all(|flag| flag == OVER), "the host sees them too");
        }
        // The last half of a call is in memory, the first is to come.
        "layers that come later" => {
            let half = BATCH / 2;
            let both = [ids.start..ids.start + half, ids.end - half..ids.end];
            let keys: Vec<Key> = both.into_iter().flat_map(blocks::keys).collect();
            tell([bench.in_layers(&keys, in_host(0))].into_iter());
        }
        // A half is there, nobody puts the other.
        "layers of which a copy is refused and others are awaited" => {
            let options = GetOptions { wait: Wait::Absent, ..bench.options.clone() };
            let began = Instant::now();
            let error = bench.refused(&blocks::keys(ids.clone()), &options);
            say(&json!({ "error": error, "waited": began.elapsed() > PATIENCE / 4 }));
        }
        "layers of which a copy is refused" => {
            let keys = blocks::keys(ids.clone());
            let error = bench.refused(&keys, &bench.options);
            let (hits, wrong) = bench.in_layers(&keys, in_host(1));
            say(&json!({ "error": error, "hits": hits, "wrong": wrong }));
        }
        other => panic!("no role {other:?}"),
    }
}

fn tell(loads: impl Iterator<Item = (usize, u64)>) {
    let (hits, wrong) = loads.fold((0, 0), |(hits, wrong), (more, bad)| (hits + more, wrong + bad));
    say(&json!({ "hits": hits, "wrong": wrong }));
}

impl Bench {
    fn layer_at(&self, layer: usize, blocks: usize) -> u64 {
        self.memory.address() + (layer * blocks * LAYER) as u64
    }

    /// One layer after the other, each with the flag that is `flags` and so many words behind.
    fn load(&self, keys: &[Key], flags: u64, options: &GetOptions) -> Result<DeviceLoad, ClientError> {
        let place = |layer, block| DevicePtr(self.layer_at(layer, keys.len()) + (block * LAYER) as u64);
        let to: Vec<Vec<DevicePtr>> =
            (0..LAYERS).map(|layer| (0..keys.len()).map(|block| place(layer, block)).collect()).collect();
        let piece = |layer: usize| {
            let flag = DeviceFlag { at: DevicePtr(flags + 4 * layer as u64), value: OVER };
            DevicePiece { offset: (layer * LAYER) as u64, bytes: LAYER as u64, to: &to[layer], flag: Some(flag) }
        };
        let pieces: Vec<DevicePiece<'_>> = (0..LAYERS).map(piece).collect();
        // SAFETY: memory of this bench's own, used behind the flags or `wait_piece` alone, and not freed before they are
        // seen.
        unsafe { self.client.get_device_pieces(&self.pool, keys, &pieces, &self.stream, options) }
    }

    /// Hits, and bytes of theirs that are wrong.
    fn in_layers(&self, keys: &[Key], flags: u64) -> (usize, u64) {
        let engine = Stream::create(self.own.device()).expect("a stream");
        let bytes = (keys.len() * LAYER) as u64;
        for layer in 0..LAYERS {
            // SAFETY: memory of this bench's own, which lives until all is over.
            unsafe {
                engine.wait_word(flags + 4 * layer as u64, OVER).expect("a wait");
                let from = self.layer_at(layer, keys.len());
                engine.copy_out(from, &self.host, layer as u64 * bytes, bytes).expect("a copy");
            }
        }
        let load = self.load(keys, flags, &self.options).expect("a sound call");
        load.wait_piece(LAYERS - 1, &self.stream).expect("a wait");
        wait_for(&engine.mark(), "a flag is not written");
        self.wait();
        assert!(load.is_piece_over(LAYERS - 1) && load.is_over() && load.still_valid());
        let layers = self.mapping.to_vec(0, keys.len() * SMALL);
        let part = |block: usize, layer: usize| &layers[layer * bytes as usize + block * LAYER..][..LAYER];
        let read: Vec<u8> = (0..keys.len())
            .flat_map(|block| (0..LAYERS).map(move |layer| (block, layer)))
            .flat_map(|(block, layer)| part(block, layer).to_vec())
            .collect();
        (load.got.hits, blocks::wrong_bytes(&self.pool, keys, &load.got, &read))
    }

    /// With a driver that refuses one copy of it: why it failed, once all flags were seen all the same.
    fn refused(&self, keys: &[Key], options: &GetOptions) -> String {
        let error = self.load(keys, self.word(0).1, options).expect_err("a copy is refused");
        assert!(matches!(error, ClientError::Gpu { .. }), "{error:?}");
        let began = Instant::now();
        for layer in 0..LAYERS {
            while self.word(layer).0.load(Ordering::Acquire) != OVER {
                assert!(began.elapsed() < PATIENCE, "the flag of layer {layer} is not written");
                std::thread::yield_now();
            }
        }
        error.to_string()
    }
}
