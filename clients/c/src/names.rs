//! Names: keys, and the fingerprint of what the bytes of a namespace mean.

use std::{
    ffi::{c_char, c_int, c_void},
    mem::{MaybeUninit, offset_of},
};

use lapis_client::{Key, Namespace};

use crate::{
    error::CallError,
    guard,
    raw::{self, Growing},
};

/// A block's key: the engine's hash, zero-padded. A buffer of 32-byte hashes is a list of keys; any alignment will do,
/// 8 bytes spare a copy.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_key_t {
    pub bytes: [u8; 32],
}

/// What the bytes of a namespace mean, from lapis_fingerprint(). Unlike fingerprints never share a block.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_fingerprint_t {
    pub bytes: [u8; 32],
}

/// One more thing that shapes the bytes of a block (LoRA policy, group spec). Both are UTF-8 and not null.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_extra_t {
    pub name: *const c_char,
    pub value: *const c_char,
}

/// All that the bytes of a block depend on and its key does not say. Texts are UTF-8; null is the empty text. What
/// differs only in a field left out is taken for the same.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_namespace_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    pub model: *const c_char,
    /// Of the weights: a commit or a digest.
    pub revision: *const c_char,
    /// The logical type of an element; kinds of fp8 differ.
    pub dtype: *const c_char,
    /// The engine's order of layers, K and V, heads and tokens within a block.
    pub layout: *const c_char,
    /// At most 2^32 - 1.
    pub tokens_per_block: u64,
    /// By which the keys are made.
    pub hash_algorithm: *const c_char,
    /// The hash's seed or first parent.
    pub hash_seed: *const c_char,
    /// Keeps apart what must not be shared though all else is equal: a customer, an experiment.
    pub salt: *const c_char,
    /// Their order does not matter; of two values for one name both count. May be null where there are none.
    pub extras: *const lapis_extra_t,
    pub extras_count: usize,
}

// SAFETY: numbers and raw pointers, the size first.
unsafe impl Growing for lapis_namespace_t {
    const BYTES_MIN: usize = offset_of!(Self, extras_count) + size_of::<usize>();
}
const _: () = assert!(size_of::<lapis_namespace_t>() == 88, "a layout that programs are compiled with");

/// The key of an engine's hash of 1 to 32 bytes, zero-padded; longer names are hashed with BLAKE3. The key of an object
/// is that of its name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_key(
    bytes: *const c_void,
    bytes_count: usize,
    key: Option<&mut MaybeUninit<lapis_key_t>>,
) -> c_int {
    guard::status(|| {
        let key = raw::place(key, "key")?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { raw::bytes(bytes, bytes_count, "bytes") }?;
        if bytes.is_empty() {
            return Err(CallError::Value { argument: "bytes_count", found: 0, expected: "at least 1" });
        }
        key.write(lapis_key_t { bytes: Key::new(bytes).to_bytes() });
        Ok(())
    })
}

/// The fingerprint of a namespace; the same in every release and language.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_fingerprint(
    meaning: *const lapis_namespace_t,
    fingerprint: Option<&mut MaybeUninit<lapis_fingerprint_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(fingerprint, "fingerprint")?;
        // SAFETY: the caller's promise.
        let of = unsafe { namespace(meaning) }?;
        place.write(lapis_fingerprint_t { bytes: of.fingerprint().0 });
        Ok(())
    })
}

/// # Safety
/// As for [`raw::growing`], and every text and list in it is good.
unsafe fn namespace(from: *const lapis_namespace_t) -> Result<Namespace, CallError> {
    // SAFETY: the caller's promise.
    let from = unsafe { raw::growing(from, "namespace") }?;
    // SAFETY: the caller's promise.
    let text = |text, argument| unsafe { raw::text_or_empty(text, argument) };
    let tokens = u32::try_from(from.tokens_per_block).map_err(|_| CallError::Value {
        argument: "namespace.tokens_per_block",
        found: from.tokens_per_block,
        expected: "at most 2^32 - 1",
    })?;
    let mut namespace = Namespace::new(text(from.model, "namespace.model")?)
        .revision(text(from.revision, "namespace.revision")?)
        .dtype(text(from.dtype, "namespace.dtype")?)
        .layout(text(from.layout, "namespace.layout")?)
        .tokens_per_block(tokens)
        .hash_algorithm(text(from.hash_algorithm, "namespace.hash_algorithm")?)
        .hash_seed(text(from.hash_seed, "namespace.hash_seed")?)
        .salt(text(from.salt, "namespace.salt")?);
    if from.extras_count > 0 {
        // SAFETY: the caller's promise.
        for extra in unsafe { raw::list(from.extras, from.extras_count, "namespace.extras") }? {
            // SAFETY: the caller's promise.
            let text = |text, argument| unsafe { raw::text(text, argument) };
            let (name, value) =
                (text(extra.name, "namespace.extras.name")?, text(extra.value, "namespace.extras.value")?);
            namespace = namespace.extra(name, value);
        }
    }
    Ok(namespace)
}
