//! Which devices are near which memory: of a host with several NUMA nodes, what is written from one to the other crosses
//! between them. Pure.

use std::{collections::BTreeMap, ops::Range};

/// Nodes of extents and devices, as far as they are known: the default is near everywhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Near {
    /// Where each extent ends, in units, and its node; in order of place.
    extents: Vec<(u32, Option<u32>)>,
    devices: BTreeMap<u8, u32>,
}

impl Near {
    /// One more extent, laid after the others.
    pub fn extent(&mut self, units: u32, node: Option<u32>) {
        let base = self.extents.last().map_or(0, |(end, _)| *end);
        self.extents.push((base + units, node));
    }

    pub fn device(&mut self, device: u8, node: Option<u32>) {
        match node {
            Some(node) => drop(self.devices.insert(device, node)),
            None => drop(self.devices.remove(&device)),
        }
    }

    /// The node of the memory at a place.
    pub fn node_of(&self, place: u32) -> Option<u32> {
        let at = self.extents.partition_point(|(end, _)| *end <= place);
        self.extents.get(at)?.1
    }

    /// Where the memory of a node is: places, in their order.
    pub fn of_node(&self, node: u32) -> impl Iterator<Item = Range<u32>> + Clone {
        let mut base = 0;
        self.extents.iter().filter_map(move |&(end, of)| {
            let extent = std::mem::replace(&mut base, end)..end;
            (of == Some(node)).then_some(extent)
        })
    }

    /// Whether both are known and are not the same.
    pub fn is_far(&self, device: u8, node: Option<u32>) -> bool {
        let of_device = self.devices.get(&device).copied();
        of_device.is_some() && node.is_some() && of_device != node
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::{LineId, PoolId, SegmentId, Time};

    use super::*;
    use crate::log::{Log, LogOptions, Todo};

    const SEGMENT_PAGES: u32 = 4096;

    #[test]
    fn what_is_not_known_is_near() {
        let mut near = Near::default();
        near.extent(100, Some(0));
        near.extent(50, None);
        near.extent(100, Some(1));
        near.device(0, Some(0));
        near.device(1, Some(1));
        near.device(2, None);
        let nodes = [0, 99, 100, 149, 150, 249, 250].map(|place| near.node_of(place));
        assert_eq!(nodes, [Some(0), Some(0), None, None, Some(1), Some(1), None]);
        near.extent(8, Some(0));
        let of = |node| near.of_node(node).map(|extent| (extent.start, extent.end)).collect::<Vec<_>>();
        assert_eq!((of(0), of(1), of(2)), (vec![(0, 100), (250, 258)], vec![(150, 250)], vec![]));
        let far = |node| [0, 1, 2, 3].map(|device| near.is_far(device, node));
        assert_eq!(far(Some(0)), [false, true, false, false]);
        assert_eq!(far(Some(1)), [true, false, false, false]);
        assert_eq!(far(None), [false; 4]);
    }

    /// Two devices that always have a segment.
    struct Scene {
        log: Log,
        given: u32,
        lines: u32,
    }

    impl Scene {
        fn new() -> Self {
            let mut log = Log::new(LogOptions {
                group: 0,
                segment_pages: SEGMENT_PAGES,
                sequence_first: 0,
                sequence_end: u64::MAX,
                list_after_us: 1000,
                durable: false,
            });
            log.add_device(0);
            log.add_device(1);
            Self { log, given: 0, lines: 0 }
        }

        /// Places a record; on which device. What else the log wants is given to it at once, and all is listed.
        fn place(&mut self, is_far: impl Fn(u8) -> bool) -> u8 {
            loop {
                while let Some(device) = self.log.wants() {
                    self.log.give(SegmentId::new(device, self.given));
                    self.given += 1;
                }
                while let Some(todo) = self.log.poll(Time(0), false) {
                    if let Todo::Open { segment, .. } = todo {
                        self.log.opened(segment, true);
                    }
                }
                self.lines += 1;
                let placed = self.log.place(PoolId(0), LineId(self.lines), 16, &is_far);
                if let Some(at) = placed {
                    let device = at.segment().device();
                    self.log.abandoned(at, 16);
                    return device;
                }
            }
        }
    }

    #[test]
    fn records_go_to_the_near_device_and_both_fill_alike_in_the_end() {
        let mut scene = Scene::new();
        let mut placed = [0u64; 2];
        for record in 0..10_000 {
            let device = scene.place(|device| device == 1);
            placed[usize::from(device)] += 16;
            let behind = placed[0].saturating_sub(placed[1]);
            assert!(behind <= 5 * u64::from(SEGMENT_PAGES), "record {record}: {placed:?}");
            if record < 900 {
                assert_eq!(device, 0, "record {record}: the other one is far, and not far behind");
            }
        }
        assert!(placed[1] > 0, "its room is of use too: {placed:?}");
    }

    #[test]
    fn memory_of_both_nodes_keeps_each_device_to_its_own() {
        let mut scene = Scene::new();
        for record in 0..4_000 {
            let node = (record % 2) as u8;
            assert_eq!(scene.place(|device| device != node), node, "record {record}");
        }
    }
}
