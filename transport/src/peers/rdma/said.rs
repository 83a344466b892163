//! What the two sides' RDMA paths say to each other over the control connection: docs/formats.md, "Said by RDMA paths". Pure.
//!
//! Whoever fetches begins a lane, the owner answers with its own end, then tells the regions that can be read on it.

use lapis_arena::table::TableShape;

use crate::code::{CodeError, Reader, Writer};

/// What is of another version is not answered.
const VERSION: u8 = 1;
/// Longest name of a NIC, bytes; cut when sent.
const NIC_BYTES_MAX: usize = 64;
/// Longest reason of a refusal, bytes; cut when sent.
const REASON_BYTES_MAX: usize = 256;
/// Most lanes of a link: pairs of one NIC at either side.
pub const LANES_MAX: usize = 8;
/// Most regions said at once: 5 KiB.
pub const REGIONS_MAX: usize = 256;

const BEGIN: u8 = 1;
const ANSWER: u8 = 2;
const REFUSED: u8 = 3;
const REGIONS: u8 = 4;
const TABLE: u8 = 5;

/// How a GID is meant: two ends of different kinds cannot hear each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GidKind {
    RoceV2Ip4,
    RoceV2Ip6,
    InfiniBand,
    RoceV1,
}

impl GidKind {
    const ALL: [Self; 4] = [Self::RoceV2Ip4, Self::RoceV2Ip6, Self::InfiniBand, Self::RoceV1];
}

/// One half of a pair, as the other half must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Number of the queue pair; 24 bits.
    pub pair: u32,
    /// Number of the first packet that it sends; 24 bits.
    pub packet: u32,
    pub gid: [u8; 16],
    pub kind: GidKind,
    /// On InfiniBand.
    pub lid: u16,
    /// Bytes of a packet: 128 << `mtu`, 1 to 5.
    pub mtu: u8,
    /// How many READs of the other side it answers at once; at least 1.
    pub reads_max: u8,
}

/// Memory of the owner that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSaid {
    /// In units of 4 KiB from the start of the owner's memory, as `Located::slot`.
    pub first: u32,
    /// How many such units.
    pub units: u32,
    pub address: u64,
    pub key: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// By who fetches. `session`: of the lane, larger each time it is begun anew; what is said of a former one is void.
    Begin { lane: u8, session: u32, nic: String, end: End },
    /// By the owner: its end is connected.
    Answer { lane: u8, session: u32, nic: String, end: End },
    /// By the owner, instead.
    Refused { lane: u8, session: u32, reason: String },
    /// By the owner: these too.
    Regions { lane: u8, session: u32, regions: Vec<RegionSaid> },
    /// By the owner: its block table lies there, and no other one. `first` of a region counts from the first line.
    Table { lane: u8, session: u32, shape: TableShape, regions: Vec<RegionSaid> },
}

impl Said {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let mut w = Writer(&mut out);
        let head = |w: &mut Writer<'_>, kind: u8, lane: u8, session: u32| {
            w.u8(kind);
            w.u8(lane);
            w.u32(session);
        };
        match self {
            Self::Begin { lane, session, nic, end } => {
                head(&mut w, BEGIN, *lane, *session);
                w.text(nic, NIC_BYTES_MAX);
                put_end(&mut w, end);
            }
            Self::Answer { lane, session, nic, end } => {
                head(&mut w, ANSWER, *lane, *session);
                w.text(nic, NIC_BYTES_MAX);
                put_end(&mut w, end);
            }
            Self::Refused { lane, session, reason } => {
                head(&mut w, REFUSED, *lane, *session);
                w.text(reason, REASON_BYTES_MAX);
            }
            Self::Regions { lane, session, regions } => {
                head(&mut w, REGIONS, *lane, *session);
                put_regions(&mut w, regions);
            }
            Self::Table { lane, session, shape, regions } => {
                head(&mut w, TABLE, *lane, *session);
                w.u64(shape.instance);
                w.u32(shape.lines);
                shape.secrets.iter().for_each(|secret| w.u64(*secret));
                put_regions(&mut w, regions);
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("version")? {
            VERSION => {}
            value => return Err(CodeError::Value { field: "version", value: value.into() }),
        }
        let (kind, lane, session) = (r.u8("kind")?, r.u8("lane")?, r.u32("session")?);
        if usize::from(lane) >= LANES_MAX {
            return Err(CodeError::Limit { field: "lane", value: lane.into(), max: LANES_MAX as u64 - 1 });
        }
        let said = match kind {
            BEGIN => Self::Begin { lane, session, nic: r.text("nic", NIC_BYTES_MAX)?, end: end(&mut r)? },
            ANSWER => Self::Answer { lane, session, nic: r.text("nic", NIC_BYTES_MAX)?, end: end(&mut r)? },
            REFUSED => Self::Refused { lane, session, reason: r.text("reason", REASON_BYTES_MAX)? },
            REGIONS => Self::Regions { lane, session, regions: regions(&mut r)? },
            TABLE => Self::Table { lane, session, shape: shape(&mut r)?, regions: regions(&mut r)? },
            kind => return Err(CodeError::UnknownKind { kind: kind.into() }),
        };
        r.end()?;
        Ok(said)
    }
}

fn put_end(w: &mut Writer<'_>, end: &End) {
    w.u32(end.pair);
    w.u32(end.packet);
    w.bytes(&end.gid);
    w.u8(GidKind::ALL.iter().position(|kind| *kind == end.kind).expect("one of all") as u8);
    w.u16(end.lid);
    w.u8(end.mtu);
    w.u8(end.reads_max);
}

fn end(r: &mut Reader<'_>) -> Result<End, CodeError> {
    let (pair, packet) = (number(r, "pair")?, number(r, "packet")?);
    let gid = r.bytes(16, "gid")?.try_into().expect("so many were taken");
    let kind = r.u8("kind")?;
    let kind = *GidKind::ALL.get(usize::from(kind)).ok_or(CodeError::Value { field: "kind", value: kind.into() })?;
    let (lid, mtu, reads_max) = (r.u16("lid")?, r.u8("mtu")?, r.u8("reads_max")?);
    if !(1..=5).contains(&mtu) {
        return Err(CodeError::Value { field: "mtu", value: mtu.into() });
    }
    if reads_max == 0 {
        return Err(CodeError::Value { field: "reads_max", value: 0 });
    }
    Ok(End { pair, packet, gid, kind, lid, mtu, reads_max })
}

/// One of 24 bits.
fn number(r: &mut Reader<'_>, field: &'static str) -> Result<u32, CodeError> {
    match r.u32(field)? {
        value if value >> 24 == 0 => Ok(value),
        value => Err(CodeError::Limit { field, value: value.into(), max: (1 << 24) - 1 }),
    }
}

fn put_regions(w: &mut Writer<'_>, regions: &[RegionSaid]) {
    w.count(regions.len(), REGIONS_MAX);
    for region in regions {
        w.u32(region.first);
        w.u32(region.units);
        w.u64(region.address);
        w.u32(region.key);
    }
}

fn regions(r: &mut Reader<'_>) -> Result<Vec<RegionSaid>, CodeError> {
    let count = r.count("regions", REGIONS_MAX)?;
    (0..count).map(|_| region(r)).collect()
}

fn shape(r: &mut Reader<'_>) -> Result<TableShape, CodeError> {
    let (instance, lines) = (r.u64("instance")?, r.u32("lines")?);
    let shape = TableShape { instance, lines, secrets: [r.u64("secret")?, r.u64("secret")?, r.u64("secret")?] };
    if !shape.is_possible() {
        return Err(CodeError::Value { field: "lines", value: lines.into() });
    }
    Ok(shape)
}

/// Neither its units nor its bytes go past the end of what their numbers can name.
fn region(r: &mut Reader<'_>) -> Result<RegionSaid, CodeError> {
    let region =
        RegionSaid { first: r.u32("first")?, units: r.u32("units")?, address: r.u64("address")?, key: r.u32("key")? };
    let bytes = u64::from(region.units) * lapis_config::UNIT_BYTES;
    if region.first.checked_add(region.units).is_none() || region.address.checked_add(bytes).is_none() {
        return Err(CodeError::Value { field: "units", value: region.units.into() });
    }
    Ok(region)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peers::message::PATH_BYTES_MAX;

    fn an_end() -> End {
        End { pair: 17, packet: 0xff_ffff, gid: [3; 16], kind: GidKind::RoceV2Ip4, lid: 9, mtu: 5, reads_max: 16 }
    }

    fn a_shape() -> TableShape {
        TableShape { instance: 9, lines: 1 << 20, secrets: [1, u64::MAX, 3] }
    }

    fn samples() -> Vec<Said> {
        let region = RegionSaid { first: 3, units: 1 << 18, address: 0x7f00_0000_0000, key: 0x1234 };
        vec![
            Said::Begin { lane: 0, session: 1, nic: "mlx5_0".into(), end: an_end() },
            Said::Answer {
                lane: 7,
                session: u32::MAX,
                nic: "rxe1".into(),
                end: End { kind: GidKind::InfiniBand, ..an_end() },
            },
            Said::Refused { lane: 1, session: 2, reason: "no NIC of its kind".into() },
            Said::Regions { lane: 1, session: 2, regions: vec![region; REGIONS_MAX] },
            Said::Table { lane: 1, session: 2, shape: a_shape(), regions: vec![region; REGIONS_MAX] },
        ]
    }

    #[test]
    fn all_that_is_said_comes_as_it_was_meant_and_fits_a_message() {
        for said in samples() {
            let bytes = said.encode();
            // One byte is the composite's, which says whose it is.
            assert!(bytes.len() < PATH_BYTES_MAX, "{} bytes", bytes.len());
            assert_eq!(Said::decode(&bytes), Ok(said));
        }
    }

    #[test]
    fn what_was_cut_or_goes_on_is_not_believed() {
        for said in samples() {
            let mut bytes = said.encode();
            for end in 0..bytes.len() {
                assert!(Said::decode(&bytes[..end]).is_err(), "{said:?} up to {end}");
            }
            bytes.push(0);
            assert_eq!(Said::decode(&bytes), Err(CodeError::Long { bytes: 1 }));
        }
    }

    #[test]
    fn numbers_that_no_nic_can_have_are_refused_by_name() {
        let refused = |change: fn(&mut End)| {
            let mut end = an_end();
            change(&mut end);
            let said = Said::Begin { lane: 0, session: 1, nic: String::new(), end };
            format!("{}", Said::decode(&said.encode()).expect_err("refused"))
        };
        assert!(refused(|end| end.pair = 1 << 24).contains("`pair` is 16777216, the limit is 16777215"));
        assert!(refused(|end| end.packet = u32::MAX).contains("`packet`"));
        assert!(refused(|end| end.mtu = 0).contains("`mtu` is 0"));
        assert!(refused(|end| end.mtu = 6).contains("`mtu` is 6"));
        assert!(refused(|end| end.reads_max = 0).contains("`reads_max` is 0"));
        let lane = Said::Refused { lane: 8, session: 0, reason: String::new() };
        assert!(Said::decode(&lane.encode()).expect_err("refused").to_string().contains("`lane` is 8, the limit is 7"));
        let long = |region| Said::decode(&Said::Regions { lane: 0, session: 0, regions: vec![region] }.encode());
        let good = RegionSaid { first: u32::MAX - 1, units: 1, address: u64::MAX - 4096, key: 0 };
        assert!(long(good).is_ok());
        assert!(long(RegionSaid { units: 2, ..good }).is_err(), "past the last unit");
        assert!(long(RegionSaid { address: u64::MAX - 4095, ..good }).is_err(), "past the last address");
        for lines in [0, 127, u32::MAX] {
            let shape = TableShape { lines, ..a_shape() };
            let said = Said::Table { lane: 0, session: 0, shape, regions: Vec::new() };
            let refused = Said::decode(&said.encode()).expect_err("no table has so many lines").to_string();
            assert!(refused.contains("`lines`"), "{refused}");
        }
    }

    #[test]
    fn another_version_is_not_understood() {
        let mut bytes = samples()[0].encode();
        bytes[0] = 2;
        assert_eq!(Said::decode(&bytes), Err(CodeError::Value { field: "version", value: 2 }));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..200), honest in any::<bool>()) {
            if honest && bytes.len() > 2 {
                (bytes[0], bytes[1], bytes[2]) = (VERSION, bytes[1] % 6, bytes[2] % 8);
            }
            if let Ok(said) = Said::decode(&bytes) {
                prop_assert_eq!(Said::decode(&said.encode()), Ok(said));
            }
        }
    }
}
