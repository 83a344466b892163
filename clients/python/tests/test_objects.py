"""Objects and tensors by name, and their hand-over between processes."""

from __future__ import annotations

import multiprocessing
import random
import struct
import sys
import threading
import types
from collections.abc import Iterator

import lapis_kv
import numpy
import pytest
from host import Host
from lapis_kv import PutStatus, Wait
from test_blocks import Tensor

TENSORS = 1000


def test_objects_have_any_length_and_come_in_memory_of_their_own(client, objects):
    for name, data in [("empty", b""), (b"one", b"1"), (b"x" * 1024, bytes(range(256)) * 4096)]:
        assert client.put_object(objects, name, data) == PutStatus.STORED
        assert client.put_object(objects, name, b"other") == PutStatus.EXISTS
        assert client.get_object(objects, name) == data
    memory = client.get_object(objects, b"one")
    assert not memory.readonly
    memory[0] = 0
    assert client.get_object(objects, b"one") == b"1"
    assert client.get_object(objects, "none") is None
    assert client.remove_object(objects, b"one") is True and client.remove_object(objects, b"one") is False


def test_an_object_of_several_buffers_is_all_of_them_in_order(client, objects):
    parts = [b"head", numpy.arange(1000, dtype=numpy.uint16), bytearray(b""), memoryview(b"tail")]
    assert client.put_object(objects, "parts", parts) == PutStatus.STORED
    assert client.get_object(objects, "parts") == b"".join(bytes(part) for part in parts)


def test_an_object_longer_than_a_slot_comes_whole_and_leaves_whole(client, objects):
    data = numpy.random.default_rng(1).integers(0, 256, (64 << 20) + 12345, numpy.uint8)
    assert client.put_object(objects, "long", [data[:5], data[5:]], deadline=60.0) == PutStatus.STORED
    taken = client.get_object(objects, "long", take=True, deadline=60.0)
    assert taken is not None and numpy.array_equal(numpy.frombuffer(taken, numpy.uint8), data)
    assert client.get_object(objects, "long") is None


def test_of_several_takers_one_gets_it(host, client, namespace, objects):
    got = []

    def take() -> None:
        with host.client() as other:
            pool = other.pool(namespace, "objects", 200 << 20, kind="object")
            got.append(other.get_object(pool, "once", take=True, wait=Wait.ABSENT, deadline=1.0))

    takers = [threading.Thread(target=take) for _ in range(4)]
    [taker.start() for taker in takers]
    assert client.put_object(objects, "once", b"data") == PutStatus.STORED
    [taker.join() for taker in takers]
    assert sorted(one is None for one in got) == [False, True, True, True]
    assert client.get_object(objects, "once") is None


def test_a_waiting_get_of_an_object_ends_at_its_deadline(client, objects):
    assert client.get_object(objects, "never", wait=Wait.ABSENT, deadline=0.02) is None
    assert client.get_object(objects, "never", take=True, wait=Wait.ABSENT, deadline=0.02) is None


def test_arrays_come_back_with_type_and_shape(client, objects):
    arrays = [
        numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 4),
        numpy.array(7, numpy.int64),
        numpy.zeros((0, 5), numpy.float16),
        numpy.array([[True, False]]),
        numpy.arange(5, dtype=numpy.complex128),
        numpy.arange(6, dtype=numpy.uint8).reshape((1,) * 20 + (6,)),
    ]
    for n, array in enumerate(arrays):
        assert client.put_tensor(objects, f"array {n}", array) == PutStatus.STORED
        read = client.get_tensor(objects, f"array {n}")
        assert (read.dtype, read.shape) == (array.dtype, array.shape) and numpy.array_equal(read, array)
        assert read.flags.writeable and read.flags.aligned
    assert client.get_tensor(objects, "array none") is None


def test_types_that_numpy_does_not_have_go_by_name(client, objects):
    bits = numpy.arange(10, dtype=numpy.uint16).reshape(5, 2)
    assert client.put_tensor(objects, "bf16", bits, dtype="bfloat16") == PutStatus.STORED
    read = client.get_tensor(objects, "bf16")
    assert lapis_kv.dtype_name(read) == "bfloat16" and read.dtype == numpy.uint16 and numpy.array_equal(read, bits)
    assert client.put_tensor(objects, "bf16 again", read) == PutStatus.STORED
    assert lapis_kv.dtype_name(client.get_tensor(objects, "bf16 again")) == "bfloat16"
    client.put_tensor(objects, "fp8", bits.view(numpy.uint8), dtype="float8_e4m3fn")
    assert lapis_kv.dtype_name(client.get_tensor(objects, "fp8")) == "float8_e4m3fn"


def test_what_is_no_tensor_is_refused_with_what_would_be(client, objects):
    for tensor, match in [
        (b"bytes", "expected a numpy array or a torch tensor"),
        (numpy.zeros(3, "S5"), "elements of 5 bytes"),
        (numpy.zeros(3, [("a", "f4")]), "expected one of .*float32"),
        (numpy.zeros(3, ">f4"), "foreign byte order"),
    ]:
        with pytest.raises(TypeError, match=match):
            client.put_tensor(objects, "wrong", tensor)
    with pytest.raises(TypeError, match="'bfloat16' with elements of 4 bytes"):
        client.put_tensor(objects, "wrong", numpy.zeros(3, numpy.float32), dtype="bfloat16")
    with pytest.raises(ValueError, match="not contiguous"):
        client.put_tensor(objects, "wrong", numpy.zeros((4, 4))[:, 1])
    client.put_tensor(objects, "tensor", numpy.zeros((2, 3), numpy.float32))
    sound = bytes(client.get_object(objects, "tensor"))
    head = struct.Struct("<8sIBB2x16s")
    magic, start, framework, dimensions, dtype = head.unpack_from(sound)
    for n, data in enumerate(
        [
            b"",
            b"lapis-t1",
            b"lapis-t2" + sound[8:],
            sound[:-1],
            sound + b"x",
            sound[:64] + sound[60:],
            # Each is sound but for one field.
            *(
                head.pack(*fields) + sound[head.size :]
                for fields in (
                    (magic, 2**31, framework, dimensions, dtype),
                    (magic, 2**31, framework, 255, dtype),
                    (magic, start, 2, dimensions, dtype),
                    (magic, start, framework, 255, dtype),
                    (magic, start, framework, 1, dtype),
                    (magic, start, framework, dimensions, b"float31"),
                    (magic, start, framework, dimensions, b"\xff" * 16),
                )
            ),
            head.pack(magic, start, framework, dimensions, b"float31") + sound[head.size : start],
            # Its elements start at no multiple of 64.
            head.pack(magic, start + 1, framework, dimensions, dtype) + sound[head.size : start] + b"x" + sound[start:],
        ]
    ):
        client.put_object(objects, f"no tensor {n}", data)
        for take in (False, True):
            with pytest.raises(ValueError, match="is no tensor: read it with get_object"):
                client.get_tensor(objects, f"no tensor {n}", take=take)
            assert bytes(client.get_object(objects, f"no tensor {n}")) == bytes(data), "it is there still"
    with pytest.raises(ValueError, match='framework "torch": torch is not imported'):
        client.get_tensor(objects, "none", framework="torch")


class OfTorch(numpy.ndarray):
    """What a stand-in for torch made."""


def test_torch_tensors_come_back_as_such_where_torch_is_imported(client, objects, monkeypatch):
    data = numpy.arange(12, dtype=numpy.uint16).reshape(3, 4)
    tensor = Tensor(data)
    tensor.dtype = "torch.bfloat16"
    assert client.put_tensor(objects, "tensor", tensor) == PutStatus.STORED
    assert isinstance(client.get_tensor(objects, "tensor"), numpy.ndarray), "torch is not here"
    torch = types.ModuleType("torch")
    torch.bfloat16 = "bfloat16"
    torch.frombuffer = lambda data, dtype, offset: numpy.frombuffer(data, numpy.uint16, offset=offset).view(OfTorch)
    monkeypatch.setitem(sys.modules, "torch", torch)
    read = client.get_tensor(objects, "tensor")
    assert isinstance(read, OfTorch) and read.shape == (3, 4) and numpy.array_equal(read, data)
    assert not isinstance(client.get_tensor(objects, "tensor", framework="numpy"), OfTorch)
    assert lapis_kv.dtype_name(client.get_tensor(objects, "tensor", framework="numpy")) == "bfloat16"


def _tensor(n: int) -> numpy.ndarray:
    random_of = random.Random(n)
    shape = [random_of.randint(1, 8) for _ in range(random_of.randint(0, 4))]
    kind = random_of.choice(["float16", "float32", "float64", "int8", "uint16", "int64", "complex64"])
    return numpy.random.default_rng(n).integers(0, 100, shape).astype(kind)


def _open(socket: object) -> tuple[lapis_kv.Client, lapis_kv.Pool]:
    client = lapis_kv.Client(socket)
    return client, client.pool(lapis_kv.Namespace("hand-over"), "tensors", 8 << 20, kind="object")


def _give(socket: object) -> None:
    client, pool = _open(socket)
    with client:
        for n in range(TENSORS):
            assert client.put_tensor(pool, f"tensor {n}", _tensor(n), deadline=60.0) == PutStatus.STORED


@pytest.fixture
def roomy_host() -> Iterator[Host]:
    """Slots of each size come in slabs of 64 MiB: with fewer slabs than sizes, what nobody has read yet is evicted."""
    host = Host("1GiB")
    yield host
    host.end()


def test_a_thousand_tensors_go_from_one_process_to_another_in_order_and_complete(roomy_host: Host):
    client, pool = _open(roomy_host.socket)
    giver = multiprocessing.get_context("spawn").Process(target=_give, args=(roomy_host.socket,))
    giver.start()
    with client:
        for n in range(TENSORS):
            read = client.get_tensor(pool, f"tensor {n}", take=True, wait=Wait.ABSENT, deadline=60.0)
            assert read is not None, f"tensor {n} did not come"
            expected = _tensor(n)
            assert (read.dtype, read.shape) == (expected.dtype, expected.shape) and numpy.array_equal(read, expected), n
            assert client.get_object(pool, f"tensor {n}") is None, f"tensor {n} is there twice"
        giver.join()
        assert giver.exitcode == 0
        assert client.purge(pool) == 0, "something is left"
