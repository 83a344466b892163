"""A tiny Llama of seeded weights. Its logits depend on what is in the KV cache, so that a wrong byte shows in its tokens."""

import json
from pathlib import Path

LAYERS, HIDDEN, HEADS, HEAD, VOCABULARY = 2, 64, 2, 32, 512


def make(folder: Path, window: int | None = None) -> Path:
    """`window`: the second layer sees so many tokens, so that it has a group of blocks of its own."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    }
    if window:
        config |= {"sliding_window": window, "layer_types": ["full_attention", "sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    seed = torch.Generator().manual_seed(7)

    def random(rows: int, columns: int, scale: float):
        return (torch.randn(rows, columns, generator=seed) * scale).contiguous()

    weights = {
        "model.embed_tokens.weight": random(VOCABULARY, HIDDEN, 1.0),
        "lm_head.weight": random(VOCABULARY, HIDDEN, 1.0),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    width = HEADS * HEAD
    shapes = {
        "self_attn.q_proj": (width, HIDDEN), "self_attn.k_proj": (width, HIDDEN), "self_attn.v_proj": (width, HIDDEN),
        "self_attn.o_proj": (HIDDEN, width), "mlp.gate_proj": (2 * HIDDEN, HIDDEN), "mlp.up_proj": (2 * HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, 2 * HIDDEN),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = random(rows, columns, 1.5 * columns**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
