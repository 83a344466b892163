"""Blocks: put, found, matched, read and viewed, from memory of every kind."""

from __future__ import annotations

import array
import ctypes
import mmap
import threading

import lapis_kv
import numpy
import pytest
from conftest import BLOCK, names, payload
from host import Host, eventually
from lapis_kv import Hint, HitPolicy, PutStatus, Verify, Wait


class Tensor:
    """What a torch tensor looks like from outside."""

    def __init__(self, data: numpy.ndarray, device: str = "cpu", contiguous: bool = True) -> None:
        self._data, self._contiguous = data, contiguous
        self.device = type("device", (), {"type": device})()
        self.shape, self.dtype = data.shape, f"torch.{data.dtype.name}"

    def data_ptr(self) -> int:
        return self._data.ctypes.data

    def numel(self) -> int:
        return self._data.size

    def element_size(self) -> int:
        return self._data.itemsize

    def is_contiguous(self) -> bool:
        return self._contiguous

    def is_conj(self) -> bool:
        return False


def test_what_is_put_is_found_and_read(client, pool):
    put = client.put_from(pool, names(4), payload(4))
    assert (put.stored, put.existed, put.refused, len(put), bool(put)) == (4, 0, 0, 4, True)
    assert put.statuses == [PutStatus.STORED] * 4 and put[-1] == PutStatus.STORED
    dst = bytearray(6 * BLOCK)
    got = client.get_into(pool, names(6), dst)
    assert (got.hits, got.prefix, got.nbytes, len(got)) == (4, 4, 4 * BLOCK, 6)
    assert [got[i] for i in range(6)] == [True] * 4 + [False] * 2 and got.misses() == [4, 5]
    assert got.mask == b"\1\1\1\1\0\0" and not got
    assert dst[: 4 * BLOCK] == payload(4)
    again = client.put_from(pool, names(5), payload(5), deadline=5.0)
    assert (again.stored, again.existed) == (1, 4) and again[0] == PutStatus.EXISTS and again[0].is_there
    with pytest.raises(IndexError):
        got[6]


def test_memory_of_every_kind_is_read_and_written(client, pool):
    mapped = mmap.mmap(-1, BLOCK)
    kinds = [
        bytearray(BLOCK),
        memoryview(bytearray(BLOCK)),
        numpy.zeros(BLOCK, numpy.uint8),
        numpy.zeros((8, BLOCK // 64), numpy.float64),
        array.array("I", bytes(BLOCK)),
        (ctypes.c_char * BLOCK)(),
        mapped,
        Tensor(numpy.zeros(BLOCK // 4, numpy.float32)),
    ]
    for n, dst in enumerate(kinds):
        name, bytes_put = [b"kind %d" % n], payload(1, n)
        src = Tensor(numpy.frombuffer(bytes_put, numpy.uint16)) if n % 2 else bytes_put
        assert client.put_from(pool, name, src).stored == 1
        assert client.get_into(pool, name, dst).hits == 1
        read = dst._data.tobytes() if isinstance(dst, Tensor) else bytes(memoryview(dst).cast("B"))
        assert read == bytes_put, type(dst)


def test_lists_of_buffers_are_vectors_the_same_number_for_each_block(client, pool):
    data = payload(2)
    parts = [data[:100], numpy.frombuffer(data[100:BLOCK], numpy.uint8), data[BLOCK : BLOCK + 4000], data[BLOCK + 4000 :]]
    assert client.put_from(pool, names(2), parts).stored == 2
    dst = [bytearray(BLOCK // 2) for _ in range(4)]
    assert client.get_into(pool, names(2), tuple(dst)).hits == 2
    assert b"".join(dst) == data
    with pytest.raises(ValueError, match="3 vectors for 2 blocks"):
        client.get_into(pool, names(2), dst[:3])
    with pytest.raises(ValueError, match="block 1 hold 2049 bytes, expected 4096"):
        client.get_into(pool, names(2), [*dst[:2], bytearray(2048), bytearray(1)])


def test_pieces_of_blocks_are_read_alone(client, namespace):
    pool = client.pool(namespace, "pieces", BLOCK, pieces=4)
    client.put_from(pool, names(2), payload(2))
    dst = bytearray(2 * BLOCK // 4)
    assert client.get_into(pool, names(2), dst, pieces=(3, 4), verify=Verify.ALWAYS).hits == 2
    assert dst == payload(2)[3072:4096] + payload(2)[4096 + 3072 :]
    with pytest.raises(ValueError, match="pieces 3 to 5 of a block that has 4"):
        client.get_into(pool, names(2), dst, pieces=(3, 5))


def test_one_buffer_of_keys_is_the_same_as_their_names(client, pool):
    packed = lapis_kv.pack_keys(names(40))
    assert len(packed) == 40 * lapis_kv.KEY_BYTES and packed[:32] == lapis_kv.key(b"block 0")
    client.put_from(pool, packed, payload(40))
    shifted = memoryview(b"\0" + packed)[1:]
    for keys in (packed, bytearray(packed), shifted, numpy.frombuffer(packed, "S32"), names(40), tuple(names(40))):
        assert client.exists(pool, keys).count == 40, type(keys)
    assert lapis_kv.key(b"x" * 32) == b"x" * 32
    assert len(lapis_kv.key(b"a name that is longer than thirty-two bytes")) == 32


def test_presence_is_told_by_count_prefix_bits_and_mask(client, pool):
    client.put_from(pool, names(2), payload(2))
    client.put_from(pool, names(1, 9), payload(1, 9))
    present = client.exists(pool, names(10))
    assert (present.count, present.prefix, len(present), bool(present)) == (3, 2, 10, False)
    assert present.bits == bytes([0b11, 0b10]) and present.mask == b"\1\1" + bytes(7) + b"\1"
    bits = numpy.unpackbits(numpy.frombuffer(present.bits, numpy.uint8), bitorder="little", count=10)
    assert bits.tobytes() == present.mask
    assert present[9] and present[-1] and not present[5]
    assert client.exists(pool, names(2)) and not client.exists(pool, [b"none"])


def test_a_prefix_is_matched_under_every_pools_policy(client, namespace, pool):
    windows = client.pool(namespace, "windows", BLOCK)
    client.put_from(pool, names(6), payload(6))
    client.put_from(windows, names(2, 2), payload(2, 2))
    assert client.match_prefix(pool, names(8)) == 6
    assert client.match_prefix([(pool, HitPolicy.PREFIX), (windows, HitPolicy.trailing(2))], names(8)) == 4
    assert client.match_prefix([(windows, HitPolicy.ANY)], names(8)) == 2
    assert HitPolicy.trailing(2) == HitPolicy.trailing(2) != HitPolicy.trailing(3)
    with pytest.raises(TypeError, match="list of pairs"):
        client.match_prefix([pool], names(8))


def test_a_put_below_a_parent_needs_it(client, pool):
    assert client.put_from(pool, names(1), payload(1)).stored == 1
    assert client.put_from(pool, names(1, 1), payload(1, 1), parent=names(1)[0]).stored == 1
    refused = client.put_from(pool, names(1, 2), payload(1, 2), parent=b"nobody")
    assert (refused.refused, refused.refusals, refused[0]) == (1, {"NO_PARENT": 1}, PutStatus.NO_PARENT)
    assert refused[0].is_refused and not refused[0].is_transient and "parent" in refused[0].message
    assert refused[0].name == "NO_PARENT" and not refused


def test_a_waiting_get_ends_at_its_deadline_or_with_the_block(host, client, namespace, pool):
    dst = bytearray(BLOCK)
    assert client.get_into(pool, [b"later"], dst, wait=Wait.ABSENT, deadline=0.02).hits == 0
    with host.client() as other:
        place = other.pool(namespace, "kv", BLOCK)
        thread = threading.Timer(0.05, lambda: other.put_from(place, [b"later"], payload(1)))
        thread.start()
        assert client.get_into(pool, [b"later"], dst, wait=Wait.ABSENT, deadline=30.0).hits == 1
        thread.join()
    assert dst == payload(1)


def test_blocks_are_removed_hinted_fetched_and_purged(client, pool):
    client.put_from(pool, names(8), payload(8))
    assert client.remove(pool, names(2, 6), deadline=5.0) == 2
    assert client.prefetch(pool, names(4)) is True
    for hint in (Hint.ENDED, Hint.WILL_RETURN, Hint.pinned(1.5), Hint.priority(200)):
        assert client.hint(pool, names(4), hint) is True
    assert repr(Hint.pinned(1.5)) == "Hint.pinned(1.5)"
    assert client.purge(pool) == 6
    assert client.exists(pool, names(8)).count == 0


def test_views_are_read_only_memory_that_stays_pinned_while_alive(own_host: Host):
    with own_host.client() as client:
        pool = client.pool(lapis_kv.Namespace("views"), "kv", BLOCK)
        client.put_from(pool, names(3), payload(3))
        with client.view(pool, names(4)) as views:
            assert (views.hits, views.prefix, len(views), views[3]) == (3, 3, 4, None)
            view = views[1]
            with memoryview(view) as memory:
                assert memory.readonly and memory == payload(1, 1) and view.nbytes == BLOCK
                assert not numpy.frombuffer(view, numpy.uint8).flags.writeable
                with pytest.raises(BufferError, match="1 memoryviews"):
                    view.release()
            assert view.still_valid()
        assert not view.still_valid() and view.nbytes == 0
        with pytest.raises(BufferError, match="released"):
            memoryview(view)
        # Pinned over the removal of its block and much that comes after; released with its last memoryview.
        memory = memoryview(client.view(pool, names(1))[0])
        assert client.remove(pool, names(1)) == 3
        for first in range(100, 9000, 1000):
            client.put_from(pool, names(1000, first), payload(1000, first))
        assert memory == payload(1)
        memory.release()


def test_views_can_be_read_after_their_client_was_closed(host, namespace):
    client = host.client()
    pool = client.pool(namespace, "kv", BLOCK)
    client.put_from(pool, names(1), payload(1))
    view = client.view(pool, names(1))[0]
    client.close()
    assert memoryview(view) == payload(1)


def test_counts_and_status_are_dicts(host, client, pool):
    client.put_from(pool, names(2), payload(2))
    client.get_into(pool, names(3), bytearray(3 * BLOCK))
    stats = client.stats()
    assert (stats["blocks_stored"], stats["blocks_hit"], stats["blocks_asked"], stats["bytes_hit"]) == (2, 2, 3, 2 * BLOCK)
    status = lapis_kv.status(host.socket, deadline=5.0)
    assert any(one["name"] == "pytest" for one in status["clients"])
    assert client.is_connected() and str(client.path) == str(host.socket)


def test_a_namespace_has_the_fingerprint_of_every_other_build(client, namespace):
    llama = lapis_kv.Namespace(
        "llama", revision="a1", dtype="bf16", layout="LBHNC", tokens_per_block=16, hash_algorithm="sha256"
    )
    assert llama.fingerprint[:8].hex() == "fb96a22a67d03911"
    assert llama != lapis_kv.Namespace("llama") and hash(llama) == hash(llama) and llama.model == "llama"
    one = lapis_kv.Namespace("m", extra={"a": "1", "b": "2"})
    assert one == lapis_kv.Namespace("m", extra={"b": "2", "a": "1"}) != lapis_kv.Namespace("m")
    by_bytes = client.pool(namespace.fingerprint, "kv", BLOCK)
    assert by_bytes.fingerprint == namespace.fingerprint and by_bytes.kind == "chain" and by_bytes.pieces == 1


def test_a_client_without_permission_is_refused_by_values(host, namespace, client, pool):
    client.put_from(pool, names(1), payload(1))
    with host.client(may_put=False) as reader:
        pool = reader.pool(namespace, "kv", BLOCK)
        put = reader.put_from(pool, names(2), payload(2))
        assert put.statuses == [PutStatus.EXISTS, PutStatus.READ_ONLY]
        assert reader.get_into(pool, names(1), bytearray(BLOCK)).hits == 1


def test_a_pool_that_is_full_of_pins_refuses_by_values(own_host: Host):
    with own_host.client() as client:
        pool = client.pool(lapis_kv.Namespace("full"), "kv", 1 << 20)
        block = bytes(1 << 20)
        views = []
        for n in range(64):
            put = client.put_from(pool, names(1, n), block, deadline=0.3)
            if put.refused:
                break
            views.append(client.view(pool, names(1, n)))
        assert put.refused and put[0].is_transient, put.statuses
        for pinned in views:
            pinned.release()
        eventually("room", lambda: client.put_from(pool, names(1, n), block, deadline=0.3).stored)
