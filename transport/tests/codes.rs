//! Frames and messages as bytes: what is encoded is decoded the same, and no bytes make the decoders panic.

use lapis_config::{
    ClientId, Fingerprint, GpuId, Hint, HitPolicy, Key, PoolId, PoolKind, PoolShape, Refusal, SlotId, Wait,
};
use lapis_transport::{
    frame::{COMMIT_ITEMS_MAX, CodeError, CommitItem, Completion, ParentRef, PutResult, Request, ReserveResult},
    hello::{
        CallDefaults, Geometry, GpuExtents, HelloError, LAYOUT_MAJOR, LAYOUT_MINOR, Resume, STATUS_BYTES_MAX, ToClient,
        ToDaemon,
    },
    ring::frame_words,
};
use proptest::{collection::vec, prelude::*};

fn key() -> impl Strategy<Value = Key> {
    any::<[u64; 4]>().prop_map(Key)
}

fn pool() -> impl Strategy<Value = PoolId> {
    any::<u16>().prop_map(PoolId)
}

fn slot() -> impl Strategy<Value = SlotId> {
    any::<u32>().prop_map(SlotId)
}

fn gpu() -> impl Strategy<Value = GpuId> {
    (0u8..64).prop_map(GpuId)
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop::sample::select(Refusal::ALL.to_vec())
}

fn parent() -> impl Strategy<Value = ParentRef> {
    prop_oneof![Just(ParentRef::None), Just(ParentRef::Previous), key().prop_map(ParentRef::Key)]
}

fn item() -> impl Strategy<Value = CommitItem> {
    (slot(), key(), parent(), any::<u32>(), any::<u64>()).prop_map(|(slot, key, parent, bytes, sum)| CommitItem {
        slot,
        key,
        parent,
        bytes,
        sum,
    })
}

fn items() -> impl Strategy<Value = Vec<CommitItem>> {
    vec(item(), 0..20).prop_map(|mut items| {
        if let Some(first) = items.first_mut().filter(|first| first.parent == ParentRef::Previous) {
            first.parent = ParentRef::None;
        }
        items
    })
}

fn policy() -> impl Strategy<Value = HitPolicy> {
    prop_oneof![Just(HitPolicy::Prefix), any::<u32>().prop_map(HitPolicy::Trailing), Just(HitPolicy::Any)]
}

fn hint() -> impl Strategy<Value = Hint> {
    prop_oneof![
        Just(Hint::Ended),
        Just(Hint::WillReturn),
        any::<u32>().prop_map(|ttl_ms| Hint::Pinned { ttl_ms }),
        any::<u8>().prop_map(Hint::Priority),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let keys = || vec(key(), 0..40);
    let (token, number) = (any::<u64>(), any::<u32>());
    let wait = prop::sample::select(vec![Wait::Present, Wait::Filling, Wait::Absent]);
    prop_oneof![
        (token, pool(), items()).prop_map(|(token, pool, items)| Request::Commit { token, pool, items }),
        (token, gpu(), pool(), items()).prop_map(|(token, gpu, pool, items)| Request::CommitOnGpu {
            token,
            gpu,
            pool,
            items
        }),
        (token, gpu(), pool(), parent(), keys()).prop_map(|(token, gpu, pool, parent, keys)| Request::ReserveOnGpu {
            token,
            gpu,
            pool,
            parent,
            keys
        }),
        (gpu(), vec(slot(), 0..40)).prop_map(|(gpu, slots)| Request::AbortOnGpu { gpu, slots }),
        (token, pool(), number, any::<u32>(), any::<u64>()).prop_map(
            |(token, pool, slot_bytes, count, deadline_us)| {
                Request::Refill { token, pool, slot_bytes, count, deadline_us }
            }
        ),
        (token, pool(), number, parent(), any::<u64>(), keys()).prop_map(
            |(token, pool, slot_bytes, parent, deadline_us, keys)| Request::Reserve {
                token,
                pool,
                slot_bytes,
                parent,
                deadline_us,
                keys
            }
        ),
        vec(slot(), 0..40).prop_map(|slots| Request::Abort { slots }),
        (token, vec((pool(), policy()), 0..9), wait, any::<u64>(), keys())
            .prop_map(|(token, asks, wait, deadline_us, keys)| Request::Get { token, asks, wait, deadline_us, keys }),
        token.prop_map(|token| Request::Release { token }),
        (pool(), keys()).prop_map(|(pool, keys)| Request::Prefetch { pool, keys }),
        (pool(), hint(), keys()).prop_map(|(pool, hint, keys)| Request::HintKeys { pool, hint, keys }),
        (token, pool(), keys()).prop_map(|(token, pool, keys)| Request::Remove { token, pool, keys }),
        (token, pool()).prop_map(|(token, pool)| Request::Purge { token, pool }),
        (token, "[a-z.-]{0,40}", vec((pool(), policy()), 0..9), any::<u64>(), keys()).prop_map(
            |(token, peer, asks, deadline_us, keys)| Request::GetFrom {
                token,
                peer,
                asks,
                wait: Wait::Absent,
                deadline_us,
                keys
            }
        ),
        (token, "[a-z.-]{0,40}", pool(), any::<u64>(), keys())
            .prop_map(|(token, peer, pool, deadline_us, keys)| Request::Offer { token, peer, pool, deadline_us, keys }),
    ]
}

fn completion() -> impl Strategy<Value = Completion> {
    let token = any::<u64>();
    let put = prop_oneof![Just(PutResult::Stored), Just(PutResult::Exists), refusal().prop_map(PutResult::Refused)];
    let reserve = prop_oneof![
        slot().prop_map(ReserveResult::Slot),
        Just(ReserveResult::Exists),
        refusal().prop_map(ReserveResult::Refused)
    ];
    prop_oneof![
        (token, vec(put, 0..40)).prop_map(|(token, results)| Completion::Committed { token, results }),
        (token, pool(), any::<u32>(), vec(slot(), 0..40))
            .prop_map(|(token, pool, slot_bytes, slots)| Completion::Granted { token, pool, slot_bytes, slots }),
        (token, vec(reserve, 0..40)).prop_map(|(token, results)| Completion::Reserved { token, results }),
        (token, any::<u32>()).prop_map(|(token, hit)| Completion::Got { token, hit }),
        (token, any::<u64>()).prop_map(|(token, blocks)| Completion::Removed { token, blocks }),
        (token, refusal()).prop_map(|(token, reason)| Completion::Refused { token, reason }),
    ]
}

fn to_daemon() -> impl Strategy<Value = ToDaemon> {
    let resume = (any::<u64>(), any::<u32>(), any::<u64>(), vec(slot(), 0..20), vec((gpu(), slot()), 0..20)).prop_map(
        |(table_id, client, secret, writing, writing_on_gpus)| Resume {
            table_id,
            client: ClientId(client),
            secret,
            writing,
            writing_on_gpus,
        },
    );
    let kind = prop::sample::select(vec![PoolKind::Chain, PoolKind::Object]);
    let shape = (any::<[u8; 32]>(), "[a-z/é]{0,20}", kind, any::<u64>(), any::<u16>()).prop_map(
        |(namespace, label, kind, block_bytes, pieces)| PoolShape {
            namespace: Fingerprint(namespace),
            label,
            kind,
            block_bytes,
            pieces,
        },
    );
    prop_oneof![
        (prop::option::of(resume), ".{0,60}", any::<[bool; 3]>()).prop_map(
            |(mut resume, name, [may_put, writes_by_dma, gpus])| {
                resume.iter_mut().filter(|_| !gpus).for_each(|resume| resume.writing_on_gpus.clear());
                ToDaemon::Hello { resume, name, may_put, writes_by_dma, gpus }
            }
        ),
        (any::<u64>(), shape).prop_map(|(token, shape)| ToDaemon::OpenPool { token, shape }),
        Just(ToDaemon::Bye),
        Just(ToDaemon::Status),
    ]
}

fn gpu_extents() -> impl Strategy<Value = GpuExtents> {
    let handle = any::<[u8; 32]>().prop_map(|half| {
        let mut whole = [0; 64];
        whole[32..].copy_from_slice(&half);
        whole
    });
    prop_oneof![
        vec(any::<u64>(), 0..=64).prop_map(GpuExtents::Descriptors),
        vec((any::<u64>(), handle), 0..=64).prop_map(GpuExtents::Handles),
    ]
}

fn to_client() -> impl Strategy<Value = ToClient> {
    let geometry = (any::<u64>(), any::<u64>(), any::<u32>(), vec(any::<u64>(), 0..=256))
        .prop_map(|(table_id, instance, lines, extents_bytes)| Geometry { table_id, instance, lines, extents_bytes });
    let flags = (any::<bool>(), any::<bool>());
    prop_oneof![
        (any::<u32>(), any::<u64>(), geometry, flags, any::<u64>()).prop_map(
            |(client, secret, geometry, (may_put, resumed), magazine_bytes_max)| ToClient::Welcome {
                client: ClientId(client),
                secret,
                geometry,
                may_put,
                resumed,
                magazine_bytes_max,
                defaults: CallDefaults {
                    put_us: magazine_bytes_max >> 3,
                    verify_always: !resumed,
                    ..CallDefaults::default()
                },
            }
        ),
        (any::<u32>(), vec(any::<u64>(), 0..=64))
            .prop_map(|(first, extents_bytes)| ToClient::Extents { first, extents_bytes }),
        (0u32..=64).prop_map(|gpus| ToClient::Devices { gpus }),
        (gpu(), any::<u16>(), any::<bool>(), any::<[u8; 16]>(), gpu_extents())
            .prop_map(|(gpu, index, last, uuid, extents)| ToClient::Gpu { gpu, index, last, uuid, extents }),
        (any::<u64>(), pool(), any::<u32>()).prop_map(|(token, pool, slot_bytes)| ToClient::Pool {
            token,
            pool,
            slot_bytes
        }),
        (any::<u64>(), ".{0,200}").prop_map(|(token, reason)| ToClient::Refused { token, reason }),
        (".{0,200}", any::<bool>()).prop_map(|(json, last)| ToClient::Status { json, last }),
    ]
}

proptest! {
    #[test]
    fn a_request_comes_back_from_its_bytes(request in request()) {
        let mut bytes = Vec::new();
        let kind = request.encode(&mut bytes);
        prop_assert_eq!(Request::decode(kind, &bytes), Ok(request));
    }

    #[test]
    fn a_completion_comes_back_from_its_bytes(completion in completion()) {
        let mut bytes = Vec::new();
        let kind = completion.encode(&mut bytes);
        prop_assert_eq!(Completion::decode(kind, &bytes), Ok(completion));
    }

    #[test]
    fn a_message_to_the_daemon_comes_back_from_its_bytes(message in to_daemon()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(ToDaemon::decode(&bytes), Ok(message));
    }

    #[test]
    fn a_message_to_a_client_comes_back_from_its_bytes(message in to_client()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(ToClient::decode(&bytes), Ok(message));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(kind in 0u32..90, bytes in vec(any::<u8>(), 0..300)) {
        let _ = (Request::decode(kind, &bytes), Completion::decode(kind, &bytes));
        let _ = (ToDaemon::decode(&bytes), ToClient::decode(&bytes));
    }

    #[test]
    fn a_cut_or_a_longer_frame_is_refused(request in request(), extra in 1usize..9) {
        let mut bytes = Vec::new();
        let kind = request.encode(&mut bytes);
        for cut in 0..bytes.len() {
            prop_assert!(Request::decode(kind, &bytes[..cut]).is_err());
        }
        bytes.extend(std::iter::repeat_n(0, extra));
        prop_assert_eq!(Request::decode(kind, &bytes), Err(CodeError::Long { bytes: extra }));
    }
}

#[test]
fn the_largest_get_fits_the_request_ring() {
    let get = Request::Get {
        token: 1,
        asks: vec![(PoolId(1), HitPolicy::Prefix); 256],
        wait: Wait::Absent,
        deadline_us: 9,
        keys: vec![Key::default(); 8192],
    };
    let mut bytes = Vec::new();
    let kind = get.encode(&mut bytes);
    assert!(frame_words(bytes.len()) * 8 < lapis_transport::control::RING_BYTES);
    assert_eq!(Request::decode(kind, &bytes), Ok(get));
}

#[test]
fn counts_beyond_their_limits_are_refused_by_name() {
    let mut bytes = Vec::new();
    let kind = Request::Prefetch { pool: PoolId(3), keys: vec![] }.encode(&mut bytes);
    bytes[4..8].copy_from_slice(&8193u32.to_le_bytes());
    let limit = CodeError::Limit { field: "keys", value: 8193, max: 8192 };
    assert_eq!(Request::decode(kind, &bytes), Err(limit));

    let kind = Request::Commit { token: 0, pool: PoolId(3), items: vec![] }.encode(&mut bytes);
    bytes[12..16].copy_from_slice(&257u32.to_le_bytes());
    let limit = CodeError::Limit { field: "items", value: 257, max: COMMIT_ITEMS_MAX as u64 };
    assert_eq!(Request::decode(kind, &bytes), Err(limit));
}

#[test]
fn the_first_item_of_a_commit_cannot_name_the_one_before_it() {
    let item = CommitItem { slot: SlotId(1), key: Key::default(), parent: ParentRef::None, bytes: 1, sum: 2 };
    let mut bytes = Vec::new();
    let kind = Request::Commit { token: 0, pool: PoolId(3), items: vec![item] }.encode(&mut bytes);
    bytes[16 + 48] = 1;
    assert!(matches!(Request::decode(kind, &bytes), Err(CodeError::Value { field: "parent of the first item", .. })));
}

#[test]
fn another_major_version_is_refused_with_both_versions() {
    let mut bytes = Vec::new();
    ToDaemon::Status.encode(&mut bytes);
    bytes[4..6].copy_from_slice(&(LAYOUT_MAJOR + 1).to_le_bytes());
    let error = ToDaemon::decode(&bytes).expect_err("another major version");
    assert_eq!(error, HelloError::Version { major: LAYOUT_MAJOR + 1, minor: LAYOUT_MINOR });
    let text = error.to_string();
    assert!(text.contains(&format!("{}.{LAYOUT_MINOR}", LAYOUT_MAJOR + 1)), "{text}");
    assert!(text.contains(&format!("{LAYOUT_MAJOR}.{LAYOUT_MINOR}")), "{text}");
}

#[test]
fn a_refusal_of_another_major_version_is_understood() {
    let refused = ToClient::Refused { token: 0, reason: "layout 1.0 is served here".into() };
    let mut bytes = Vec::new();
    refused.encode(&mut bytes);
    bytes[4..6].copy_from_slice(&(LAYOUT_MAJOR + 7).to_le_bytes());
    assert_eq!(ToClient::decode(&bytes), Ok(refused));
    ToClient::Pool { token: 0, pool: PoolId(0), slot_bytes: 0 }.encode(&mut bytes);
    bytes[4..6].copy_from_slice(&(LAYOUT_MAJOR + 7).to_le_bytes());
    assert!(matches!(ToClient::decode(&bytes), Err(HelloError::Version { .. })));
}

#[test]
fn an_unknown_kind_is_refused_by_its_number() {
    let mut bytes = Vec::new();
    ToDaemon::Bye.encode(&mut bytes);
    bytes[8..12].copy_from_slice(&4711u32.to_le_bytes());
    let error = ToDaemon::decode(&bytes).expect_err("no such kind");
    assert_eq!(error, HelloError::Body { kind: 4711, source: CodeError::UnknownKind { kind: 4711 } });
    assert!(error.to_string().contains("4711"), "{error}");
}

#[test]
fn long_texts_are_cut_between_characters_and_status_comes_in_parts() {
    let mut bytes = Vec::new();
    ToClient::Refused { token: 7, reason: "é".repeat(2000) }.encode(&mut bytes);
    assert_eq!(ToClient::decode(&bytes), Ok(ToClient::Refused { token: 7, reason: "é".repeat(512) }));

    let json = "é1".repeat(STATUS_BYTES_MAX);
    let (mut whole, mut lasts) = (String::new(), Vec::new());
    for message in ToClient::status(&json) {
        message.encode(&mut bytes);
        let Ok(ToClient::Status { json, last }) = ToClient::decode(&bytes) else { panic!("a status message") };
        whole.push_str(&json);
        lasts.push(last);
    }
    assert_eq!(whole, json);
    assert_eq!(lasts.iter().filter(|last| **last).count(), 1);
    assert_eq!(lasts.last(), Some(&true));
    assert_eq!(ToClient::status(""), vec![ToClient::Status { json: String::new(), last: true }]);
}
