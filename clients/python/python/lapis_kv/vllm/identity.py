"""What the bytes of a vLLM block depend on and its hash does not say: the namespace of its pools.

Two engines share blocks only if all of this is equal. Whatever is unlike gives another namespace: a miss, never a wrong
block.
"""

import hashlib
import json
import os
from pathlib import Path

import vllm

# Bytes read of each file of weights, at its begin, middle and end. Training that leaves those as they were shows in the
# file's time.
_SAMPLE_BYTES = 1 << 20
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class IdentityError(ValueError):
    """The engine's configuration does not say what its blocks depend on. The text says what to set."""


def revision_of(model: str, revision: str | None, load_format: str, seed: int) -> str:
    """Names the weights: a commit where the model is from a hub, else a digest of what the files hold and when they were
    written. Copies that do not keep the time are other weights.

    Raises IdentityError where neither is to be had.
    """
    if str(load_format) == "dummy":
        return f"dummy weights, seed {seed}"
    folder = Path(model)
    if folder.is_dir():
        return _digest(folder, [path for pattern in _WEIGHTS for path in folder.glob(pattern)])
    if folder.is_file():
        return _digest(folder, [folder])
    commit = _commit(model, revision)
    if commit is None:
        raise IdentityError(
            f"the weights of {model!r} are in no folder and no hub cache that could name their commit: set "
            "kv_connector_extra_config['lapis.revision'] to a name of these weights"
        )
    return commit


def _digest(folder: Path, files: list) -> str:
    digest = hashlib.sha256()
    if not files:
        raise IdentityError(
            f"{folder} holds no weights ({', '.join(_WEIGHTS)}): set kv_connector_extra_config['lapis.revision'] to a "
            "name of the weights that are used"
        )
    for path in [*sorted(set(files)), folder / "config.json"]:
        if not path.exists():
            continue
        size, written = path.stat().st_size, path.stat().st_mtime_ns
        digest.update(f"{path.name}\0{size}\0{written}\0".encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2 - _SAMPLE_BYTES // 2), max(0, size - _SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _commit(model: str, revision: str | None) -> str | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    # .../snapshots/<commit>/config.json
    return Path(found).parent.name if isinstance(found, str) else None


def hash_seed_of(algorithm: str) -> str:
    """The seed of the engine's block hashes.

    Raises IdentityError if it is random: no other process, nor this one after a restart, would find a block again.
    """
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None and seed != "random":
        return seed
    if algorithm.startswith("xxhash") or seed == "random":
        raise IdentityError(
            f"block hashes ({algorithm}) have a random seed in each process: set PYTHONHASHSEED to a number, the same for "
            "all engines that share blocks, or choose --prefix-caching-hash-algo sha256"
        )
    from vllm.v1.core import kv_cache_utils

    fixed = getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None)
    if fixed is None:
        raise IdentityError(
            "this version of vLLM seeds its block hashes at random: set PYTHONHASHSEED to a number, the same for all "
            "engines that share blocks"
        )
    return fixed


def hash_bytes(vllm_config) -> int:
    """Bytes of a block hash."""
    return 16 if str(vllm_config.cache_config.prefix_caching_hash_algo).startswith("xxhash") else 32


def _overrides(model) -> str:
    """What the engine was told about the model beside its configuration file.

    Raises IdentityError for a function: what it does is not to be seen.
    """
    given = getattr(model, "hf_overrides", None) or {}
    if callable(given):
        raise IdentityError(
            "hf_overrides is a function, whose effect on the blocks cannot be named: give hf_overrides as a dictionary"
        )
    return json.dumps(given, sort_keys=True, default=str)


def _rope(model) -> str:
    """The length of the context, where the rotation of the keys depends on it."""
    config = getattr(model, "hf_text_config", None)
    rope = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or "")
    return str(model.max_model_len) if any(kind in rope for kind in ("longrope", "dynamic", "'su'")) else ""


def _drafts(speculative) -> str:
    """The draft model, whose layers are in the groups too."""
    if speculative is None:
        return "none"
    return " ".join(str(getattr(speculative, name, None)) for name in ("method", "model", "revision"))


def fields_of(vllm_config, kv_cache_config, options) -> dict:
    """All fields of the namespace, as `lapis_kv.Namespace` takes them."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    algorithm = str(cache.prefix_caching_hash_algo)
    revision = options.revision or revision_of(
        model.model, model.revision, vllm_config.load_config.load_format, model.seed
    )
    groups = [
        (type(group.kv_cache_spec).__name__, group.kv_cache_spec.block_size, group.kv_cache_spec.page_size_bytes)
        for group in kv_cache_config.kv_cache_groups
    ]
    layers = "\0".join(name for group in kv_cache_config.kv_cache_groups for name in group.layer_names)
    lora = getattr(vllm_config, "lora_config", None)
    return {
        "model": str(model.model),
        "revision": str(revision),
        "dtype": f"{model.dtype} {cache.cache_dtype} {getattr(cache, 'kv_cache_dtype_skip_layers', [])}",
        "layout": f"{kv_cache_config.kv_cache_layout} {groups}",
        "tokens_per_block": hash_block_tokens(vllm_config, kv_cache_config),
        "hash_algorithm": algorithm,
        "hash_seed": hash_seed_of(algorithm),
        "salt": options.salt,
        "extra": {
            "parallel": f"tp{parallel.tensor_parallel_size} pp{parallel.pipeline_parallel_size} "
            f"pcp{getattr(parallel, 'prefill_context_parallel_size', 1)} "
            f"dcp{getattr(parallel, 'decode_context_parallel_size', 1)}",
            "quantization": str(model.quantization),
            "lora": "none" if lora is None else "by block hash",
            "layers": hashlib.sha256(layers.encode()).hexdigest(),
            "overrides": _overrides(model),
            "rope": _rope(model),
            "drafts": _drafts(getattr(vllm_config, "speculative_config", None)),
            # What is within a block may change with the engine.
            "engine": f"vllm {vllm.__version__}",
        },
    }


def hash_block_tokens(vllm_config, kv_cache_config) -> int:
    """Tokens that one block hash stands for."""
    return int(getattr(kv_cache_config, "hash_block_size", None) or vllm_config.cache_config.block_size)
