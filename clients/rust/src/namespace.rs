//! What the bytes of a namespace mean, as a fingerprint: unlike namespaces never share a block. Pure.
//!
//! This is a format: the encoding is versioned and the tests hold a known value.

use lapis_config::Fingerprint;

/// All that the bytes of a block depend on and its key does not say.
///
/// Leave nothing at its default that may differ between two engines: what differs only in a field left out would be
/// taken for the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    model: String,
    revision: String,
    dtype: String,
    layout: String,
    tokens_per_block: u32,
    hash_algorithm: String,
    hash_seed: String,
    salt: String,
    extra: Vec<(String, String)>,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: impl Into<String>) -> Self {
            self.$name = $name.into();
            self
        }
    };
}

impl Namespace {
    /// Starts with the model's name.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    field! {
        /// Of the weights: a commit or a digest.
        revision
    }
    field! {
        /// The logical type of an element; kinds of fp8 differ.
        dtype
    }
    field! {
        /// The engine's order of layers, K and V, heads and tokens within a block.
        layout
    }
    field! {
        /// By which the keys are made.
        hash_algorithm
    }
    field! {
        /// The hash's seed or first parent.
        hash_seed
    }
    field! {
        /// Keeps apart what must not be shared though all else is equal: a customer, an experiment.
        salt
    }

    #[must_use]
    pub fn tokens_per_block(mut self, tokens: u32) -> Self {
        self.tokens_per_block = tokens;
        self
    }

    /// Something else that shapes the bytes (LoRA policy, group spec). The order of calls does not matter; of two
    /// values for one name both count.
    #[must_use]
    pub fn extra(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extra.push((name.into(), value.into()));
        self
    }

    /// BLAKE3 over version and fields, each with its length before it.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_derive_key("lapis 2026 namespace 1");
        let mut put = |field: &str| {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        };
        let tokens = self.tokens_per_block.to_string();
        for field in [&self.model, &self.revision, &self.dtype, &self.layout, &tokens] {
            put(field);
        }
        for field in [&self.hash_algorithm, &self.hash_seed, &self.salt] {
            put(field);
        }
        let mut extra: Vec<_> = self.extra.iter().collect();
        extra.sort();
        for (name, value) in extra {
            put(name);
            put(value);
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Namespace {
        Namespace::new("llama")
            .revision("a1")
            .dtype("bf16")
            .layout("LBHNC")
            .tokens_per_block(16)
            .hash_algorithm("sha256")
    }

    #[test]
    fn every_field_counts_and_none_runs_into_the_next() {
        let others = [
            llama().revision("a2"),
            llama().dtype("fp8"),
            llama().layout("BLHNC"),
            llama().tokens_per_block(32),
            llama().hash_algorithm("xxhash"),
            llama().hash_seed("7"),
            llama().salt("7"),
            llama().extra("lora", "none"),
            Namespace::new("llam").revision("aa1").dtype("bf16").layout("LBHNC").tokens_per_block(16),
        ];
        for other in others {
            assert_ne!(other.fingerprint(), llama().fingerprint(), "{other:?}");
        }
    }

    #[test]
    fn the_order_of_extras_does_not_matter() {
        let (ab, ba) = (llama().extra("a", "1").extra("b", "2"), llama().extra("b", "2").extra("a", "1"));
        assert_eq!(ab.fingerprint(), ba.fingerprint());
    }

    #[test]
    fn the_fingerprint_is_the_same_in_every_build() {
        let start: String = llama().fingerprint().0[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(start, "fb96a22a67d03911");
    }
}
