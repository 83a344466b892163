"""What keeps the blocks of unlike engines apart."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from lapis_kv.vllm import groups as kv
from lapis_kv.vllm.identity import IdentityError, fields_of, hash_seed_of, revision_of
from lapis_kv.vllm.options import Options, options_of


def weights(folder, byte: int = 1):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    path = folder / "model.safetensors"
    path.write_bytes(bytes([byte]) * (4 << 20))
    for written in (path, folder / "config.json"):
        os.utime(written, (1e9, 1e9))
    return str(folder)


def engine(folder, **changed):
    given = {
        "model": weights(folder), "revision": None, "dtype": "bfloat16", "cache_dtype": "auto", "block_size": 16,
        "algorithm": "sha256", "tp": 1, "layout": "LBHNC", "quantization": None, "page": 4096,
        "layers": ["l0", "l1"], "overrides": {}, "rope": None, "length": 4096, "drafts": None, **changed,
    }
    at = SimpleNamespace(**given)
    spec = SimpleNamespace(block_size=at.block_size, page_size_bytes=at.page)
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=at.model, revision=at.revision, dtype=at.dtype, seed=0, quantization=at.quantization,
            hf_overrides=at.overrides, hf_text_config=SimpleNamespace(rope_parameters=at.rope), max_model_len=at.length,
        ),
        cache_config=SimpleNamespace(
            cache_dtype=at.cache_dtype, block_size=at.block_size, prefix_caching_hash_algo=at.algorithm
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=at.tp, pipeline_parallel_size=1),
        load_config=SimpleNamespace(load_format="auto"),
        lora_config=None, speculative_config=at.drafts,
    )
    caches = SimpleNamespace(
        kv_cache_layout=at.layout, hash_block_size=None,
        kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec, layer_names=at.layers)],
    )
    return config, caches


def fields(folder, options=Options(), **changed):
    config, caches = engine(folder, **changed)
    return fields_of(config, caches, options)


def test_whatever_the_bytes_depend_on_makes_another_namespace(tmp_path):
    same = fields(tmp_path / "a")
    assert fields(tmp_path / "a") == same
    others = [
        {"dtype": "float16"}, {"cache_dtype": "fp8"}, {"block_size": 32}, {"algorithm": "sha256_cbor"}, {"tp": 2},
        {"layout": "BLHNC"}, {"quantization": "awq"}, {"page": 8192}, {"options": Options(salt="b")},
        {"options": Options(revision="mine")}, {"layers": ["l0", "l1", "draft"]}, {"overrides": {"rope_theta": 5e5}},
        {"drafts": SimpleNamespace(method="eagle", model="a")},
    ]
    for other in others:
        assert fields(tmp_path / "a", **other) != same, other
    assert fields(tmp_path / "a", length=8192) == same
    # Keys are rotated by the length of the context.
    long = {"rope": {"rope_type": "longrope"}}
    assert fields(tmp_path / "a", length=8192, **long) != fields(tmp_path / "a", **long)
    with pytest.raises(IdentityError, match="hf_overrides"):
        fields(tmp_path / "a", overrides=lambda config: config)


def test_another_version_of_the_engine_has_a_namespace_of_its_own(tmp_path, monkeypatch):
    same = fields(tmp_path / "a")
    monkeypatch.setattr("vllm.__version__", "0.0.1")
    assert fields(tmp_path / "a") != same


def test_weights_that_were_trained_on_in_place_are_another_revision(tmp_path):
    first = revision_of(weights(tmp_path / "a"), None, "auto", 0)
    with open(tmp_path / "a/model.safetensors", "r+b") as file:
        # Between the samples.
        file.seek((1 << 20) + 4096)
        file.write(b"other")
    assert revision_of(str(tmp_path / "a"), None, "auto", 0) != first
    shutil.copy2(tmp_path / "a/model.safetensors", tmp_path / "b.gguf")
    assert len(revision_of(str(tmp_path / "b.gguf"), None, "auto", 0)) == 64


def test_options_that_are_misspelt_or_senseless_are_refused_by_name():
    assert options_of({"lapis.load": "sync", "lapis.load_seconds": 2, "other.thing": 1}) == Options(load="sync", load_seconds=2)
    for extra, match in [
        ({"lapis.sockets": "/x"}, "lapis.sockets.*known are lapis.socket"), ({"lapis.load": "later"}, "async, sync"),
        ({"lapis.load_seconds": 0}, "lapis.load_seconds"), ({"lapis.save_seconds": "10"}, "lapis.save_seconds"),
        ({"lapis.staged": "false"}, "true or false"), ({"lapis.salt": 7}, "lapis.salt"), ({"lapis.socket": ""}, "lapis.socket"),
    ]:
        with pytest.raises(ValueError, match=match):
            options_of(extra)


def test_other_weights_are_another_revision_wherever_they_differ(tmp_path):
    first = revision_of(weights(tmp_path / "a"), None, "auto", 0)
    assert revision_of(weights(tmp_path / "b"), None, "auto", 0) == first, "the same bytes in another folder"
    assert revision_of(weights(tmp_path / "c", byte=2), None, "auto", 0) != first
    for place in (0, 2 << 20, (4 << 20) - 1):
        folder = tmp_path / str(place)
        weights(folder)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[place] ^= 1
        (folder / "model.safetensors").write_bytes(data)
        assert revision_of(str(folder), None, "auto", 0) != first, place
    assert revision_of("any", None, "dummy", 1) != revision_of("any", None, "dummy", 2)


def test_weights_that_cannot_be_named_and_random_seeds_are_refused_with_the_fix(tmp_path, monkeypatch):
    with pytest.raises(IdentityError, match="lapis.revision"):
        revision_of("nobody/nothing-of-the-kind", None, "auto", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(IdentityError, match="lapis.revision"):
        revision_of(str(tmp_path / "empty"), None, "auto", 0)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(IdentityError, match="PYTHONHASHSEED"):
        hash_seed_of("xxhash")
    assert hash_seed_of("sha256") == "vllm-none-hash"
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    with pytest.raises(IdentityError, match="PYTHONHASHSEED"):
        hash_seed_of("sha256")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert hash_seed_of("xxhash") == "7"


def attention(kind, tokens: int, **more):
    return kind(block_size=tokens, num_kv_heads=1, head_size=32, dtype=torch.float32, **more)


def caches(*specs):
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec, layer_names=["a", "b"]) for spec in specs])


def test_groups_say_what_they_need_and_who_has_it():
    full, window, mla = kv.groups_of(
        caches(
            attention(FullAttentionSpec, 32), attention(SlidingWindowSpec, 16, sliding_window=128), attention(MLAAttentionSpec, 16)
        ),
        16,
    )
    assert (full.hashes, full.window, full.replicated) == (2, None, False)
    assert full.block_bytes == 2 * attention(FullAttentionSpec, 32).page_size_bytes
    # 127 tokens before the next one matter.
    assert (window.window, mla.window, mla.replicated) == (8, None, True)
    assert (len(kv.shards(full, 4)), len(kv.shards(mla, 4))) == (4, 1)
    assert [group.is_lent for group in (full, window, mla)] == [False, True, False]
    hashes = [bytes([at]) * 32 for at in range(8)]
    assert kv.keys_of(hashes, full, 1, 3) == hashes[3] + hashes[5]
    assert kv.keys_of([b"short"], window, 0, 1) == b"short".ljust(32, b"\0")
    with pytest.raises(ValueError, match="whole number of hashes"):
        kv.groups_of(caches(attention(FullAttentionSpec, 24)), 16)


def test_blocks_that_are_zeroed_or_whose_memory_goes_are_lent():
    for zeroed, sleeps in ((True, False), (False, True), (False, False)):
        config = caches(attention(FullAttentionSpec, 16))
        config.needs_kv_cache_zeroing = zeroed
        (full,) = kv.groups_of(config, 16, sleeps)
        assert full.is_lent is (zeroed or sleeps)


def test_a_full_group_that_names_a_window_still_needs_all_its_blocks():
    # So vLLM says it where full and sliding layers share a group.
    (full,) = kv.groups_of(caches(attention(FullAttentionSpec, 16, sliding_window=128)), 16)
    assert full.window is None


def test_groups_whose_blocks_change_under_a_save_are_refused():
    chunked = attention(ChunkedLocalAttentionSpec, 16, attention_chunk_size=64)
    mamba = MambaSpec(block_size=16, shapes=((4,),), dtypes=(torch.float32,))
    for spec in (chunked, mamba):
        with pytest.raises(ValueError, match=type(spec).__name__):
            kv.groups_of(caches(spec), 16)
