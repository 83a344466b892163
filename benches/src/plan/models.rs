//! KV bytes of models that are much used, from the shapes that their configurations publish. Any other model: layers x
//! 2 x KV heads x head dimension x bytes of a value.

use anyhow::{Context, Result};

/// KV values have 16 bits.
const VALUE_BYTES: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub struct Model {
    name: &'static str,
    layers: u64,
    /// Keys and values of all heads, of one token in one layer; with latent attention, what is cached instead.
    values: u64,
}

const MODELS: [Model; 9] = [
    Model { name: "llama-3.1-8b", layers: 32, values: 2 * 8 * 128 },
    Model { name: "llama-3.1-70b", layers: 80, values: 2 * 8 * 128 },
    Model { name: "llama-3.3-70b", layers: 80, values: 2 * 8 * 128 },
    Model { name: "llama-3.1-405b", layers: 126, values: 2 * 8 * 128 },
    Model { name: "mistral-7b", layers: 32, values: 2 * 8 * 128 },
    Model { name: "qwen2.5-7b", layers: 28, values: 2 * 4 * 128 },
    Model { name: "qwen2.5-32b", layers: 64, values: 2 * 8 * 128 },
    Model { name: "qwen2.5-72b", layers: 80, values: 2 * 8 * 128 },
    Model { name: "deepseek-v3", layers: 61, values: 512 + 64 },
];

impl Model {
    pub fn find(name: &str) -> Result<Self> {
        let known = || MODELS.map(|model| model.name).join(", ");
        let found = MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name));
        found.copied().with_context(|| {
            format!("--model {name} is none that is known ({}): give --bytes-per-token with it, like 320KB", known())
        })
    }

    pub fn bytes_per_token(&self) -> u64 {
        self.layers * self.values * VALUE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_token_come_from_the_shape() {
        let of = |name| Model::find(name).expect("a known model").bytes_per_token();
        assert_eq!((of("llama-3.1-70b"), of("LLaMA-3.1-8B"), of("deepseek-v3")), (320 << 10, 128 << 10, 70_272));
        let error = Model::find("gpt-2").expect_err("unknown").to_string();
        assert!(error.contains("llama-3.1-70b") && error.contains("--bytes-per-token"), "{error}");
    }
}
