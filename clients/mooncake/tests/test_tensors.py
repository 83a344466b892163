"""Tensors in Mooncake's format, with a stand-in for torch's; torch's own where there is torch: see `torch_tensors.py`."""

from __future__ import annotations

import os
import pathlib
import subprocess

import numpy
import pytest
from mooncake.store import ReplicateConfig, _serialize_tensor, _tensor_metadata_size

INVALID, NOT_SUPPORTED = -600, -1012
HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("TORCH_PYTHON")
PACKAGES = HERE.parents[2] / "target/mooncake/connectors"
# The first 40 bytes that Mooncake 0.3.13.post1 writes before a float32 tensor of shape (2, 3, 4).
HEAD = bytes.fromhex("4e4f4f4d010030010000000003000000000000000000000030010000000000006000000000000000")


class Tensor:
    """As much of a torch tensor as is looked at."""

    def __init__(self, array: numpy.ndarray, dtype: str | None = None, device: str = "cpu") -> None:
        self._array = numpy.ascontiguousarray(array)
        self.shape, self.dtype, self.device = array.shape, f"torch.{dtype or array.dtype}", device

    def contiguous(self) -> Tensor:
        return self

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def numel(self) -> int:
        return self._array.size

    def element_size(self) -> int:
        return self._array.itemsize

    def chunk(self, count: int, dim: int) -> list[Tensor]:
        return [Tensor(part) for part in numpy.array_split(self._array, count, axis=dim)]


ARRAY = numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 4)


def test_a_tensor_is_an_object_of_mooncakes_form(store):
    assert store.put_tensor("t", Tensor(ARRAY)) == 0
    data = store.get("t")
    assert data[:40] == HEAD and data[304:] == ARRAY.tobytes() and _tensor_metadata_size() == 304
    assert numpy.frombuffer(data[40:168], numpy.int64).tolist() == [2, 3, 4, -1, -1, -1, -1, -1] * 2
    metadata, address, size, _owner = _serialize_tensor(tensor := Tensor(ARRAY))
    assert (metadata, address, size) == (data[:304], tensor.data_ptr(), 96)


def test_every_put_of_tensors_stores_them(store, block):
    tensor, config = Tensor(ARRAY), ReplicateConfig()
    store.put_tensor("t", tensor)
    whole = store.get("t")
    assert store.pub_tensor("pub", tensor, config) == store.upsert_tensor("t", tensor) == 0
    assert store.upsert_pub_tensor("t", tensor, config) == store.put_tensor_with_parallelism("par", tensor) == 0
    for call in (store.batch_put_tensor, store.batch_pub_tensor, store.batch_upsert_tensor, store.batch_upsert_pub_tensor):
        assert call(["x", "y"], [tensor, tensor]) == [0, 0] and call(["x"], []) == [INVALID]
        assert store.get_batch(["x", "y"]) == [whole] * 2
    source = block(len(whole), whole)
    for call in (store.batch_put_tensor_from, store.batch_upsert_tensor_from, store.batch_put_tensor_with_parallelism_from):
        assert call(["f"], [source.ptr], [source.size]) == [0]
        assert store.get("f") == whole and store.remove("f") == 0
    assert store.put_tensor_from("f", source.ptr, 100) == INVALID, "less than its metadata"
    assert store.batch_put_tensor_with_parallelism(["z"], [tensor]) == [0]
    assert store.get_batch(["pub", "par", "z"]) == [whole] * 3


def test_shards_go_under_keys_of_their_ranks(store):
    assert store.put_tensor_with_tp("t", Tensor(ARRAY), tp_size=2, split_dim=2) == 0
    assert store.is_exist("t") == 0
    halves = [store.get(f"t_tp_{rank}")[304:] for rank in range(2)]
    assert halves == [ARRAY[:, :, :2].tobytes(), ARRAY[:, :, 2:].tobytes()]
    assert store.batch_put_tensor_with_tp(["u"], [Tensor(ARRAY)]) == [0] and store.is_exist("u") == 1
    assert store.pub_tensor_with_tp("v", Tensor(ARRAY), ReplicateConfig(), 0, 3, 1) == 0 and store.is_exist("v_tp_2") == 1


def test_what_is_no_tensor_on_the_host_is_refused(store, caplog):
    nine = Tensor(ARRAY.reshape((1,) * 6 + ARRAY.shape))
    for wrong in (ARRAY, b"bytes", None, Tensor(ARRAY, "complex64"), nine, Tensor(ARRAY, device="cuda:0")):
        assert store.put_tensor("t", wrong) == INVALID
    assert "tensor on cuda:0" in caplog.text and store.is_exist("t") == 0
    assert store.put_tensor_with_parallelism("t", Tensor(ARRAY), object()) == NOT_SUPPORTED
    assert store.batch_get_tensor_into_cuda(["t"], [None]) == [NOT_SUPPORTED]
    with pytest.raises(ValueError, match="unsupported tensor"):
        _serialize_tensor(ARRAY)
    assert store.get_tensor("none") is None and store.batch_get_tensor(["none"]) == [None]


@pytest.mark.skipif(PYTHON is None, reason="TORCH_PYTHON names no interpreter with torch (that of vLLM's environment)")
def test_torch_tensors_come_back_as_they_were():
    assert PYTHON is not None
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [PYTHON, HERE / "torch_tensors.py"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0 and "all scenes passed" in ran.stdout, ran.stdout[-2000:] + ran.stderr[-4000:]
