"""torch's own tensors on the drop-in. A program for an interpreter that has torch and this wheel; `test_tensors.py` runs it."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib

import torch
from mooncake.store import MooncakeDistributedStore

_spec = importlib.util.spec_from_file_location("host", pathlib.Path(__file__).resolve().parents[2] / "python/tests/host.py")
assert _spec is not None and _spec.loader is not None
host_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(host_module)


def main() -> None:
    host = host_module.Host("128MiB")
    try:
        store = MooncakeDistributedStore()
        assert store.setup("me", "P2PHANDSHAKE", 0, 1 << 20, "tcp", "", f"unix:{host.socket}") == 0
        whole(store)
        by_address_and_in_shards(store)
        store.close()
    finally:
        host.end()
    print("all scenes passed")


def whole(store: MooncakeDistributedStore) -> None:
    tensors = [
        torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        torch.arange(24).reshape(4, 6).t(),
        torch.zeros(0, 5, dtype=torch.bfloat16),
        torch.tensor(7),
        torch.ones(3, 3).to(torch.float8_e4m3fn),
        # Not contiguous: what is stored is a copy, which nobody but the put keeps.
        torch.randn(1000, 1000).t(),
    ]
    keys = [f"tensor {n}" for n in range(len(tensors))]
    assert store.batch_put_tensor(keys, tensors) == [0] * len(keys)
    for read, put in zip(store.batch_get_tensor(keys), tensors):
        assert (read.dtype, read.shape) == (put.dtype, put.shape) and torch.equal(read.float(), put.float())
    assert torch.equal(store.get_tensor(keys[1]), tensors[1])


def by_address_and_in_shards(store: MooncakeDistributedStore) -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    assert store.put_tensor("t", tensor) == 0
    memory = (ctypes.c_ubyte * 1000)()
    ptr = ctypes.addressof(memory)
    assert store.register_buffer(ptr, 1000) == 0
    read = store.get_tensor_into("t", ptr, 1000)
    assert read.data_ptr() == ptr + 304 and torch.equal(read, tensor)
    assert store.get_tensor_into("none", ptr, 1000) is None
    assert store.put_tensor_with_tp("s", tensor, tp_size=2) == 0
    assert torch.equal(store.get_tensor_with_tp("s", tp_rank=1, tp_size=2), tensor[1:])
    assert [found.shape[0] for found in store.batch_get_tensor_with_tp(["s", "s"], 0, 2)] == [1, 1]
    assert store.put_tensor_with_tp_from("f", ptr, 304 + 96, tp_size=2) == 0
    assert torch.equal(store.get_tensor_with_tp("f", 0, 2), tensor[:1])
    ctypes.memset(ptr, 0, 10)
    assert store.put_from("no tensor", ptr, 400) == 0 and store.get_tensor("no tensor") is None


if __name__ == "__main__":
    main()
