"""Mistakes in calls raise ValueError or TypeError that say what to do; the daemon's side raises LapisError."""

from __future__ import annotations

import ctypes
import types

import lapis_kv
import numpy
import pytest
from conftest import BLOCK, names, payload
from lapis_kv import Hint, HitPolicy, PutStatus
from test_blocks import Tensor


def test_a_destination_that_cannot_be_written_says_what_to_give_instead(client, pool):
    locked = numpy.zeros(BLOCK, numpy.uint8)
    locked.flags.writeable = False
    for dst in (bytes(BLOCK), memoryview(bytes(BLOCK)), locked):
        with pytest.raises(ValueError, match="dst .* is read-only: give a bytearray"):
            client.get_into(pool, names(1), dst)


def test_memory_that_is_not_contiguous_says_what_to_give_instead(client, pool):
    wide = numpy.zeros(2 * BLOCK, numpy.uint8)
    for dst in (wide[::2], numpy.zeros((64, 64), numpy.uint8).T[:, 1:], memoryview(wide)[::2]):
        with pytest.raises(ValueError, match="dst .* is not contiguous: give numpy.ascontiguousarray"):
            client.get_into(pool, names(1), dst)
    with pytest.raises(ValueError, match=r"src .* is not contiguous"):
        client.put_from(pool, names(1), wide[::2])
    with pytest.raises(ValueError, match=r"not contiguous: give tensor.contiguous\(\)"):
        client.get_into(pool, names(1), Tensor(wide[:BLOCK], contiguous=False))


def test_device_memory_says_what_to_give_instead(client, pool):
    tensor = Tensor(numpy.zeros(BLOCK, numpy.uint8), device="cuda")
    with pytest.raises(ValueError, match=r"dst is a tensor on cuda: .*tensor.cpu\(\)"):
        client.get_into(pool, names(1), tensor)
    array = type("CudaArray", (), {"__cuda_array_interface__": {}})()
    with pytest.raises(ValueError, match="src lies in device memory .*copy it to the CPU"):
        client.put_from(pool, names(1), array)


def test_references_to_python_objects_are_never_copied(client, pool):
    client.put_from(pool, names(1), payload(1))
    records = [("number", "f8"), ("object", "O")]
    hidden = [("date", "M8[s]"), ("object", "O")]
    for memory in (
        numpy.zeros(BLOCK // 8, object),
        memoryview(numpy.zeros(BLOCK // 8, object)),
        (ctypes.py_object * (BLOCK // 8))(),
        numpy.zeros(BLOCK // 16, records),
        numpy.zeros(BLOCK // 16, hidden),
    ):
        with pytest.raises(ValueError, match="dst .* holds references to Python objects: only plain bytes"):
            client.get_into(pool, names(1), memory)
        with pytest.raises(ValueError, match="src .* holds references"):
            client.put_from(pool, names(1), [memory])
    # What only has the letter in a field's name, or a type that the buffer protocol cannot tell, is plain.
    for memory in (numpy.zeros(BLOCK // 16, [("O", "f8"), ("xO", "f8")]), numpy.zeros(BLOCK // 8, "M8[s]")):
        assert client.get_into(pool, names(1), memory).hits == 1 and memory.tobytes() == payload(1)


def test_a_tensor_without_memory_is_none(client, pool):
    tensor = Tensor(numpy.zeros(BLOCK, numpy.uint8))
    tensor.data_ptr = lambda: 0
    with pytest.raises(ValueError, match="dst is a tensor of 4096 elements without memory"):
        client.get_into(pool, names(1), tensor)
    tensor = Tensor(numpy.zeros(BLOCK, numpy.uint8))
    tensor.numel = lambda: 2**63
    with pytest.raises(ValueError, match="without memory"):
        client.get_into(pool, names(1), tensor)
    whole = numpy.zeros(BLOCK, numpy.uint8)
    for start, length, is_there in [(0, BLOCK, True), (0, BLOCK - 1, False), (BLOCK, BLOCK, False), (0, 0, False)]:
        storage = types.SimpleNamespace(data_ptr=lambda at=whole.ctypes.data - start: at, nbytes=lambda n=length: n)
        tensor = Tensor(whole)
        tensor.untyped_storage = lambda storage=storage: storage
        if is_there:
            assert client.put_from(pool, names(1), tensor).stored == 1
        else:
            with pytest.raises(ValueError, match="storage was freed or cut"):
                client.get_into(pool, names(1), tensor)
    tensor = Tensor(numpy.zeros(BLOCK, numpy.uint8))
    tensor.is_neg = lambda: True
    with pytest.raises(ValueError, match="negated view"):
        client.put_from(pool, names(1), tensor)


def test_a_deadline_may_be_longer_than_time_itself(client, pool, objects):
    client.put_from(pool, names(1), payload(1))
    for deadline in (1e10, 1e19):
        assert client.get_into(pool, names(2), bytearray(2 * BLOCK), deadline=deadline).hits == 1
        assert client.put_from(pool, names(1), payload(1), deadline=deadline).existed == 1
        assert client.put_from(pool, [b"%e" % deadline], payload(1), deadline=deadline).stored == 1
        assert client.begin_get(pool, names(1), bytearray(BLOCK), deadline=deadline).poll().hits == 1
        assert client.get_object(objects, "none", deadline=deadline) is None
        assert client.remove(pool, [b"none"], deadline=deadline) == 0
        assert lapis_kv.status(client.path, deadline=deadline)


def test_other_objects_are_no_memory(client, pool):
    for src in ("text", 7, None, object(), {}):
        with pytest.raises(TypeError, match="expected bytes-like memory"):
            client.put_from(pool, names(1), src)
    with pytest.raises(TypeError, match="expected bytes-like memory"):
        client.put_from(pool, names(1), [bytes(BLOCK), None])


def test_keys_that_are_none_say_what_is_expected(client, pool):
    for keys, kind, match in [
        (b"short", ValueError, "5 bytes of keys, expected a multiple of 32 .*names go in a list"),
        (b"", ValueError, "0 keys in one call, expected 1 to 8192"),
        ([], ValueError, "0 keys"),
        (bytes(32 * 8193), ValueError, "8193 keys"),
        (["text"], TypeError, "a key is a str: encode it"),
        ([b"a", b""], ValueError, "a key has 0 bytes: expected at least 1"),
        (7, TypeError, "keys is of type int: expected bytes-like memory of 32 bytes a key"),
        ([7], TypeError, "a key is of type int: expected bytes"),
    ]:
        with pytest.raises(kind, match=match):
            client.exists(pool, keys)


def test_numbers_out_of_range_are_refused(client, pool, namespace):
    for deadline in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="deadline of .* seconds"):
            client.get_into(pool, names(1), bytearray(BLOCK), deadline=deadline)
    with pytest.raises(ValueError, match="a buffer of 10 bytes for 1 blocks, expected 4096"):
        client.put_from(pool, names(1), bytes(10))
    with pytest.raises(ValueError, match='kind "tree"'):
        client.pool(namespace, "x", BLOCK, kind="tree")
    with pytest.raises(TypeError, match="32 bytes of a fingerprint"):
        client.pool(b"short", "x", BLOCK)
    for call in (
        lambda: client.pool(namespace, "x", -1),
        lambda: client.pool(namespace, "x", 2**64),
        lambda: client.pool(namespace, "x", BLOCK, pieces=65536),
        lambda: client.get_into(pool, names(1), bytearray(BLOCK), pieces=(-1, 1)),
        lambda: HitPolicy.trailing(-1),
        lambda: Hint.priority(256),
        lambda: lapis_kv.Namespace("x", tokens_per_block=-1),
    ):
        with pytest.raises(ValueError, match=r"(block_bytes|pieces|n|level|tokens_per_block) of \S+: expected 0 to \d+$"):
            call()
    with pytest.raises(TypeError, match="block_bytes: expected a whole number, not 1.5"):
        client.pool(namespace, "x", 1.5)
    with pytest.raises(TypeError, match=r"pieces: expected a pair \(first, end\)"):
        client.get_into(pool, names(1), bytearray(BLOCK), pieces=3)
    with pytest.raises(ValueError, match="pools: expected a Pool, or at least one pair"):
        client.match_prefix([], names(1))
    with pytest.raises(TypeError, match="extra: expected a dict of str to str"):
        lapis_kv.Namespace("x", extra=["a"])
    with pytest.raises(ValueError, match="49 days"):
        lapis_kv.Hint.pinned(1e9)
    with pytest.raises(ValueError, match="at most 48"):
        client.pool(namespace, "x" * 49, BLOCK)


def test_pools_are_for_calls_of_their_kind_and_of_their_client(host, client, pool, objects, namespace):
    with pytest.raises(ValueError, match="is no chain pool"):
        client.get_into(objects, names(1), bytearray(BLOCK))
    with pytest.raises(ValueError, match="is no object pool"):
        client.put_object(pool, b"name", b"data")
    with host.client() as other, pytest.raises(ValueError, match="opened by another client"):
        other.exists(pool, names(1))


def test_nobody_at_the_socket_is_a_transient_error(tmp_path):
    with pytest.raises(lapis_kv.ConnectError) as error:
        lapis_kv.Client(tmp_path / "none.sock")
    assert error.value.is_transient and "none.sock" in str(error.value)
    assert issubclass(lapis_kv.ConnectError, lapis_kv.LapisError) and not lapis_kv.LapisError.is_transient
    with pytest.raises(lapis_kv.ConnectError):
        lapis_kv.status(tmp_path / "none.sock")


def test_what_the_daemon_refuses_is_an_error_with_its_reason(client, namespace):
    with pytest.raises(lapis_kv.RefusedError, match="the daemon refused: ") as error:
        client.pool(namespace, "x", 0)
    assert not error.value.is_transient


def test_a_closed_client_says_so(host, namespace):
    with host.client() as client:
        pool = client.pool(namespace, "kv", BLOCK)
    client.close()
    for call in (
        lambda: client.exists(pool, names(1)),
        lambda: client.get_into(pool, names(1), bytearray(BLOCK)),
        lambda: client.put_from(pool, names(1), payload(1)),
        client.is_connected,
        client.stats,
        client.fileno,
    ):
        with pytest.raises(lapis_kv.ClosedError, match="was closed"):
            call()


def test_more_views_than_there_may_be_are_a_transient_error(client, pool):
    client.put_from(pool, names(2), payload(2))
    held = [client.view(pool, names(2)) for _ in range(4096)]
    with pytest.raises(lapis_kv.ViewsError, match="1 views asked of this client while it holds 8192") as error:
        client.view(pool, names(1))
    assert error.value.is_transient
    held.pop().release()
    assert client.view(pool, names(1)).hits == 1


def test_an_object_that_is_too_large_is_refused_by_value(client, namespace):
    small = client.pool(namespace, "small", 1000, kind="object")
    assert client.put_object(small, "n", bytes(1001)) == PutStatus.TOO_LARGE
    with pytest.raises(ValueError, match="a name of 1025 bytes"):
        client.put_object(small, bytes(1025), b"")
    with pytest.raises(TypeError, match="name is of type int: expected bytes or str"):
        client.get_object(small, 7)
    with pytest.raises(ValueError, match="a name of 0 bytes"):
        client.put_object(small, "", b"")
    with pytest.raises(TypeError, match="data is of type str: expected bytes-like memory"):
        client.put_object(small, "n", "text")
