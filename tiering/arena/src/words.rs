//! The words of a protocol, wherever they lie: mapped memory in life, a vector in unit tests, loom's atomics in models.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use crate::Mapping;

/// An array of atomic words of type `V`. `fence` belongs to it so that a model can see (or leave out) fences.
pub trait Words<V = u64> {
    /// How many words there are.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// # Panics
    /// If `i` is not below `len()`; the same for `store`.
    fn load(&self, i: usize, order: Ordering) -> V;
    fn store(&self, i: usize, value: V, order: Ordering);
    fn fence(&self, order: Ordering);
    /// A hint that word `i` is wanted soon; any `i` is allowed.
    #[inline]
    fn prefetch(&self, i: usize) {
        let _ = i;
    }
}

macro_rules! through_pointer {
    ($pointer:ty) => {
        impl<V, W: Words<V> + ?Sized> Words<V> for $pointer {
            #[inline]
            fn len(&self) -> usize {
                (**self).len()
            }
            #[inline]
            fn load(&self, i: usize, order: Ordering) -> V {
                (**self).load(i, order)
            }
            #[inline]
            fn store(&self, i: usize, value: V, order: Ordering) {
                (**self).store(i, value, order);
            }
            #[inline]
            fn fence(&self, order: Ordering) {
                (**self).fence(order);
            }
            #[inline]
            fn prefetch(&self, i: usize) {
                (**self).prefetch(i);
            }
        }
    };
}
through_pointer!(&W);
through_pointer!(Arc<W>);

macro_rules! vector_of_atomics {
    ($atomic:ty, $value:ty) => {
        impl Words<$value> for Vec<$atomic> {
            fn len(&self) -> usize {
                self.as_slice().len()
            }
            fn load(&self, i: usize, order: Ordering) -> $value {
                self[i].load(order)
            }
            fn store(&self, i: usize, value: $value, order: Ordering) {
                self[i].store(value, order);
            }
            fn fence(&self, order: Ordering) {
                fence(order);
            }
        }
    };
}
vector_of_atomics!(AtomicU64, u64);
vector_of_atomics!(AtomicU32, u32);

/// A vector of `count` zero words, for tests.
pub fn zeroed(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

macro_rules! mapped {
    ($(#[$doc:meta])* $name:ident, $atomic:ty, $value:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            mapping: Mapping,
            base: std::ptr::NonNull<u8>,
            count: usize,
            writable: bool,
        }

        // SAFETY: `base` points into `mapping`, which is itself Send and Sync, and is only used for atomic access.
        unsafe impl Send for $name {}
        // SAFETY: as for Send.
        unsafe impl Sync for $name {}

        impl $name {
            /// `count` words from `offset` bytes on.
            ///
            /// # Panics
            /// If they leave the mapping or `offset` is not a multiple of a word's size.
            pub fn new(mapping: &Mapping, offset: usize, count: usize) -> Self {
                let bytes = count.checked_mul(size_of::<$value>()).expect("the size of words fits");
                assert!(offset.is_multiple_of(align_of::<$atomic>()), "words at unaligned offset {offset}");
                let base = mapping.range(offset, bytes);
                Self { mapping: mapping.clone(), base, count, writable: mapping.is_writable() }
            }

            pub fn mapping(&self) -> &Mapping {
                &self.mapping
            }

            #[inline]
            fn at(&self, i: usize) -> &$atomic {
                assert!(i < self.count, "word {i} of {}", self.count);
                // SAFETY: `new` checked that `count` aligned words from `base` lie in the mapping, which lives as long
                // as `self`; all access of ours is atomic, and other processes keep to the same word sizes.
                unsafe { <$atomic>::from_ptr(self.base.as_ptr().cast::<$value>().add(i)) }
            }
        }

        impl Words<$value> for $name {
            #[inline]
            fn len(&self) -> usize {
                self.count
            }
            #[inline]
            fn load(&self, i: usize, order: Ordering) -> $value {
                self.at(i).load(order)
            }
            #[inline]
            fn store(&self, i: usize, value: $value, order: Ordering) {
                assert!(self.writable, "a store into read-only memory");
                self.at(i).store(value, order);
            }
            #[inline]
            fn fence(&self, order: Ordering) {
                fence(order);
            }
            #[inline]
            fn prefetch(&self, i: usize) {
                crate::map::prefetch_address(self.base.as_ptr().wrapping_add(i * size_of::<$value>()));
            }
        }
    };
}
mapped! {
    /// 64-bit words of a mapping.
    MappedWords, AtomicU64, u64
}
mapped! {
    /// 32-bit words of a mapping: hazard pages. A word is only ever accessed in one size.
    MappedHalves, AtomicU32, u32
}
