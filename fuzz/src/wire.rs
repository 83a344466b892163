//! Frames, messages of the daemon's socket and of the holder's.

use lapis_config::{
    ClientId, Fingerprint, GpuId, Hint, HitPolicy, Key, PoolId, PoolKind, PoolShape, Refusal, SlotId, Wait,
};
use lapis_transport::{
    frame::{CommitItem, Completion, ParentRef, PutResult, Request, ReserveResult},
    hello::{CallDefaults, Geometry, GpuExtents, Resume, ToClient, ToDaemon},
    hold::message::{Answer, Ask},
    peers::rdma::said::{End, GidKind, RegionSaid, Said},
};

/// A kind (4 bytes) and a payload: what decodes is the same after one more round trip.
pub fn frame(bytes: &[u8]) {
    let Some((kind, payload)) = bytes.split_first_chunk::<4>() else { return };
    let (kind, mut again) = (u32::from_le_bytes(*kind), Vec::new());
    if let Ok(request) = Request::decode(kind, payload) {
        assert_eq!(request.encode(&mut again), kind);
        assert_eq!(again.len(), payload.len());
        assert_eq!(Request::decode(kind, &again), Ok(request));
    }
    if let Ok(completion) = Completion::decode(kind, payload) {
        assert_eq!(completion.encode(&mut again), kind);
        assert_eq!(again.len(), payload.len());
        assert_eq!(Completion::decode(kind, &again), Ok(completion));
    }
}

/// A datagram of the socket, in both directions.
pub fn hello(bytes: &[u8]) {
    let mut again = Vec::new();
    if let Ok(message) = ToDaemon::decode(bytes) {
        message.encode(&mut again);
        assert_eq!(ToDaemon::decode(&again), Ok(message));
    }
    if let Ok(message) = ToClient::decode(bytes) {
        message.encode(&mut again);
        assert_eq!(ToClient::decode(&again), Ok(message));
    }
}

/// A datagram of the holder's socket, in both directions.
pub fn hold(bytes: &[u8]) {
    let mut again = Vec::new();
    if let Ok((token, ask)) = Ask::decode(bytes) {
        ask.encode(token, &mut again);
        assert_eq!(Ask::decode(&again), Ok((token, ask)));
    }
    if let Ok((token, answer)) = Answer::decode(bytes) {
        answer.encode(token, &mut again);
        assert_eq!(Answer::decode(&again), Ok((token, answer)));
    }
}

/// What the RDMA paths of two hosts say to each other.
pub fn rdma(bytes: &[u8]) {
    if let Ok(said) = Said::decode(bytes) {
        assert_eq!(Said::decode(&said.encode()), Ok(said));
    }
}

pub fn rdma_said() -> Vec<Vec<u8>> {
    let end =
        End { pair: 17, packet: 0xff_ffff, gid: [3; 16], kind: GidKind::RoceV2Ip4, lid: 0, mtu: 5, reads_max: 16 };
    let region = RegionSaid { first: 3, units: 1 << 18, address: 0x7f00_0000_0000, key: 0x1234 };
    let (lane, session, nic) = (1, 7, || "mlx5_0".to_owned());
    let said = [
        Said::Begin { lane, session, nic: nic(), end },
        Said::Answer { lane, session, nic: nic(), end },
        Said::Refused { lane, session, reason: "no NIC here has an address like that of mlx5_0".into() },
        Said::Regions { lane, session, regions: vec![region; 3] },
    ];
    said.iter().map(Said::encode).collect()
}

/// Every request and completion.
pub fn frames() -> Vec<Vec<u8>> {
    let (token, pool, deadline_us) = (9, PoolId(3), 50_000);
    let keys = || vec![Key::new(b"first"), Key::new(b"second")];
    let slots = || vec![SlotId(16), SlotId(32)];
    let item = |parent| CommitItem { slot: SlotId(16), key: Key::new(b"k"), parent, bytes: 65536, sum: 5 };
    let items = [ParentRef::None, ParentRef::Previous, ParentRef::Key(Key::new(b"p"))].map(item).to_vec();
    let requests = [
        Request::Commit { token, pool, items },
        Request::Refill { token, pool, slot_bytes: 65536, count: 8, deadline_us },
        Request::Reserve { token, pool, slot_bytes: 4096, parent: ParentRef::None, deadline_us, keys: keys() },
        Request::Abort { slots: slots() },
        Request::Get {
            token,
            asks: vec![(pool, HitPolicy::Prefix), (pool, HitPolicy::Trailing(4))],
            wait: Wait::Filling,
            deadline_us,
            keys: keys(),
        },
        Request::Release { token },
        Request::Prefetch { pool, keys: keys() },
        Request::HintKeys { pool, hint: Hint::Priority(3), keys: keys() },
        Request::Remove { token, pool, keys: keys() },
        Request::Purge { token, pool },
        Request::GetFrom {
            token,
            peer: "host-b".into(),
            asks: vec![(pool, HitPolicy::Any)],
            wait: Wait::Absent,
            deadline_us,
            keys: keys(),
        },
        Request::Offer { token, peer: "host-b".into(), pool, deadline_us, keys: keys() },
        Request::ReserveOnGpu { token, gpu: GpuId(1), pool, parent: ParentRef::Key(Key([9; 4])), keys: keys() },
        Request::CommitOnGpu { token, gpu: GpuId(1), pool, items: vec![item(ParentRef::None)] },
        Request::AbortOnGpu { gpu: GpuId(63), slots: slots() },
    ];
    let completions = [
        Completion::Committed { token, results: vec![PutResult::Stored, PutResult::Exists] },
        Completion::Granted { token, pool, slot_bytes: 65536, slots: slots() },
        Completion::Reserved { token, results: vec![ReserveResult::Slot(SlotId(7)), ReserveResult::Exists] },
        Completion::Got { token, hit: 2 },
        Completion::Removed { token, blocks: 2 },
        Completion::Refused { token, reason: Refusal::AllPinned },
    ];
    let mut payload = Vec::new();
    let framed = |kind: u32, payload: &[u8]| [&kind.to_le_bytes(), payload].concat();
    let mut frames = Vec::new();
    for request in &requests {
        let kind = request.encode(&mut payload);
        frames.push(framed(kind, &payload));
    }
    for completion in &completions {
        let kind = completion.encode(&mut payload);
        frames.push(framed(kind, &payload));
    }
    frames
}

/// Every message of the socket.
pub fn messages() -> Vec<Vec<u8>> {
    let writing_on_gpus = vec![(GpuId(5), SlotId(6))];
    let resume = Resume { table_id: 1, client: ClientId(2), secret: 3, writing: vec![SlotId(4)], writing_on_gpus };
    let shape = PoolShape {
        namespace: Fingerprint([7; 32]),
        label: "k/rank0".into(),
        kind: PoolKind::Chain,
        block_bytes: 65536,
        pieces: 2,
    };
    let geometry = Geometry { table_id: 1, instance: 2, lines: 3, extents_bytes: vec![1 << 30, 1 << 30] };
    let to_daemon = [
        ToDaemon::Hello {
            resume: Some(resume),
            name: "engine".into(),
            may_put: true,
            writes_by_dma: false,
            gpus: true,
        },
        ToDaemon::OpenPool { token: 1, shape },
        ToDaemon::Bye,
        ToDaemon::Status,
    ];
    let to_client = [
        ToClient::Welcome {
            client: ClientId(2),
            secret: 3,
            geometry,
            may_put: true,
            resumed: true,
            magazine_bytes_max: 1 << 20,
            defaults: CallDefaults::default(),
        },
        ToClient::Extents { first: 0, extents_bytes: vec![1 << 30] },
        ToClient::Devices { gpus: 2 },
        ToClient::Gpu {
            gpu: GpuId(0),
            index: 3,
            last: false,
            uuid: [7; 16],
            extents: GpuExtents::Descriptors(vec![16 << 30]),
        },
        ToClient::Gpu {
            gpu: GpuId(1),
            index: 0,
            last: true,
            uuid: [8; 16],
            extents: GpuExtents::Handles(vec![(2 << 20, [9; 64])]),
        },
        ToClient::Pool { token: 1, pool: PoolId(3), slot_bytes: 65536 },
        ToClient::Refused { token: 0, reason: "no".into() },
        ToClient::Status { json: "{}".into(), last: true },
    ];
    let mut payload = Vec::new();
    let mut messages = Vec::new();
    for message in &to_daemon {
        message.encode(&mut payload);
        messages.push(payload.clone());
    }
    for message in &to_client {
        message.encode(&mut payload);
        messages.push(payload.clone());
    }
    messages
}

/// Every message of the holder's socket.
pub fn hold_messages() -> Vec<Vec<u8>> {
    let name = || "default.arena.0".to_owned();
    let asks = [Ask::Take { first: 64 }, Ask::Keep { name: name() }, Ask::Forget { name: name() }];
    let answers = [
        Answer::Batch { total: 65, names: vec![name(), "default.table".into()] },
        Answer::Batch { total: 0, names: Vec::new() },
        Answer::Done,
        Answer::Refused { reason: "no".into() },
        Answer::Held { pid: 77 },
    ];
    let mut messages = Vec::new();
    for (token, ask) in asks.iter().enumerate() {
        let mut out = Vec::new();
        ask.encode(token as u32, &mut out);
        messages.push(out);
    }
    for (token, answer) in answers.iter().enumerate() {
        let mut out = Vec::new();
        answer.encode(token as u32, &mut out);
        messages.push(out);
    }
    messages
}
