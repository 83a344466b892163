//! A device whose bytes are not what was written: flipped, torn, zeroed, swapped, cut off. Whatever is done to it, a start
//! finds a shorter cache: no panic, and no block that is not the one that was put.
//!
//! The log is written by the real volume and read by the real recovery, in memory; real files and a real daemon have
//! their turn in `process/ssd_damage.rs`. Long form: `LAPIS_SSD_DAMAGES=1000000`.

mod log;
mod one_by_one;

use lapis_ssd::{disk::Disk, format::PAGE_BYTES};
use proptest::prelude::*;

use self::log::{Log, judge};

/// What may happen to a device. Places are chosen among the pages that were written.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        page: prop::sample::Index,
        bit: usize,
    },
    Zero {
        page: prop::sample::Index,
        pages: usize,
    },
    /// Sectors of one page become those of another one.
    Tear {
        page: prop::sample::Index,
        from: prop::sample::Index,
        sectors: u8,
    },
    Swap {
        pages: [prop::sample::Index; 2],
    },
    /// A write went elsewhere, too.
    Copy {
        page: prop::sample::Index,
        to: prop::sample::Index,
    },
    Cut {
        page: prop::sample::Index,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    let index = any::<Index>;
    prop_oneof![
        (index(), 0..PAGE_BYTES * 8).prop_map(|(page, bit)| Damage::Flip { page, bit }),
        (index(), 1..40usize).prop_map(|(page, pages)| Damage::Zero { page, pages }),
        (index(), index(), 1..=254u8).prop_map(|(page, from, sectors)| Damage::Tear { page, from, sectors }),
        [index(), index()].prop_map(|pages| Damage::Swap { pages }),
        (index(), index()).prop_map(|(page, to)| Damage::Copy { page, to }),
        index().prop_map(|page| Damage::Cut { page }),
    ]
}

/// The disk after it; another one where it is shorter.
fn apply(damage: &Damage, disk: Disk, written: &[u64]) -> Disk {
    // What was cut off is not there to be damaged.
    let end = disk.bytes();
    let at = |index: &prop::sample::Index| *index.get(written);
    let page = |offset: u64| disk.read(offset, PAGE_BYTES);
    let write = |offset: u64, bytes: &[u8]| {
        if offset + bytes.len() as u64 <= end {
            disk.write(offset, bytes);
        }
    };
    let has = |offset: u64| offset + PAGE_BYTES as u64 <= end;
    match damage {
        Damage::Flip { page: index, bit } if has(at(index)) => {
            let mut bytes = page(at(index));
            bytes[bit / 8] ^= 1 << (bit % 8);
            write(at(index), &bytes);
        }
        Damage::Zero { page, pages } => write(at(page), &vec![0; pages * PAGE_BYTES]),
        Damage::Tear { page: index, from, sectors } if has(at(index)) && has(at(from)) => {
            let (mut bytes, other) = (page(at(index)), page(at(from)));
            for sector in (0..8).filter(|sector| sectors & 1 << sector != 0) {
                let range = sector * 512..(sector + 1) * 512;
                bytes[range.clone()].copy_from_slice(&other[range]);
            }
            write(at(index), &bytes);
        }
        Damage::Swap { pages: [a, b] } if has(at(a)) && has(at(b)) => {
            let [first, second] = [page(at(a)), page(at(b))];
            write(at(a), &second);
            write(at(b), &first);
        }
        Damage::Copy { page: index, to } if has(at(index)) => write(at(to), &page(at(index))),
        Damage::Cut { page } => {
            let shorter = Disk::new(at(page).max(PAGE_BYTES as u64).min(end));
            let kept = written.iter().filter(|offset| **offset + PAGE_BYTES as u64 <= shorter.bytes());
            kept.for_each(|offset| shorter.write(*offset, &disk.read(*offset, PAGE_BYTES)));
            return shorter;
        }
        _ => {}
    }
    disk
}

#[test]
fn an_undamaged_log_gives_everything_back() {
    let log = Log::write();
    let found = judge(&log, &log.disk);
    assert_eq!((found.right, found.misses), (log.winners(), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_a_device_a_start_finds_right_blocks_or_none(
        damages in prop::collection::vec(damage(), 1..12),
    ) {
        thread_local! {
            static LOG: Log = Log::write();
        }
        LOG.with(|log| {
            let disk = damages.iter().fold(log.disk.fork(), |disk, damage| apply(damage, disk, &log.written));
            // Judges every byte of every block that has its sum.
            let found = judge(log, &disk);
            assert!(found.right + found.misses <= log.winners() + log.superseded());
        });
    }
}
