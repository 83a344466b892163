"""Blocks to and from the memory of GPUs, over the stand-in for CUDA's driver."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import lapis_kv
import numpy
import pytest
from conftest import BLOCK, names, payload
from cuda import Cuda, stand_in
from host import Host, eventually, patiently
from lapis_kv import PutStatus, Verify, Wait

HALF = BLOCK // 2


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cuda]:
    cuda = Cuda(tmp_path_factory.mktemp("cuda") / "misuses")
    yield cuda
    misuses = cuda.misuses.read_text() if cuda.misuses.exists() else ""
    assert misuses == "", "misuse of the driver"


@pytest.fixture(scope="module")
def gpu_host() -> Iterator[Host]:
    """Whose daemon has memory on the first GPU."""
    host = Host("64MiB", "--hbm-bytes", "16MiB", "--hbm-cuda-library", str(stand_in()))
    yield host
    host.end()


@pytest.fixture
def gpu_client(gpu_host: Host) -> Iterator[lapis_kv.Client]:
    with gpu_host.client(gpus=True) as client:
        yield client


@pytest.fixture
def gpu_pool(gpu_client: lapis_kv.Client, namespace: lapis_kv.Namespace) -> lapis_kv.Pool:
    return patiently(lambda: gpu_client.pool(namespace, "kv", BLOCK, pieces=4))


def puts_on_gpus(host: Host) -> int:
    return int(lapis_kv.status(host.socket)["hbm"]["puts"])


def test_a_gpu_is_opened_ahead_of_its_first_call(cuda, gpu_host, gpu_client, gpu_pool, namespace):
    for device in (0, 1):
        assert gpu_client.open_gpu(device) == gpu_client.open_gpu(device, deadline=0.0) == (64 << 20, 64 << 20)
    # Nothing is left to be waited for.
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(1), payload(1))
    dst = cuda.memory(bytes(BLOCK))
    assert gpu_client.get_device(gpu_pool, names(1), [dst.ptr], 0, device=0, deadline=0.0)
    cuda.synchronize(0)
    assert bytes(dst) == payload(1)
    dst.free()
    with pytest.raises(ValueError, match="device of 65536"):
        gpu_client.open_gpu(65536)
    with pytest.raises(ValueError, match="deadline of -1"):
        gpu_client.open_gpu(0, deadline=-1.0)
    with pytest.raises(TypeError, match="device"):
        gpu_client.open_gpu("0")
    with pytest.raises(lapis_kv.GpuError, match="opening a GPU"):
        gpu_client.open_gpu(7)


@pytest.mark.parametrize("device", [0, 1])
def test_blocks_go_from_a_gpu_to_other_memory_of_it(cuda, gpu_host, gpu_client, gpu_pool, device):
    cuda.use(device)
    stream, before = cuda.stream(), puts_on_gpus(gpu_host)
    src, dst = cuda.memory(payload(6)), cuda.memory(b"\xee" * 7 * BLOCK)
    # By halves, each block's second one first.
    halves = [src.ptr + HALF * (n ^ 1) for n in range(12)]
    put = gpu_client.put_device(gpu_pool, names(6), halves, stream, device=device)
    assert (put.stored, put.statuses) == (6, [PutStatus.STORED] * 6)
    again = gpu_client.put_device(gpu_pool, names(6), numpy.array(halves, numpy.uint64), stream, device=device)
    assert (again.stored, again.existed) == (0, 6)
    eventually("slots on the daemon's GPU", lambda: puts_on_gpus(gpu_host) - before == (6 if device == 0 else 0))
    keys = [*names(3), b"none", *names(3, 3)]
    got = gpu_client.get_device(gpu_pool, keys, [dst.ptr + HALF * n for n in range(14)], stream, device=device)
    cuda.synchronize(stream)
    assert got.is_over() and got.still_valid()
    assert (got.hits, got.prefix, got.nbytes, len(got)) == (6, 3, 6 * BLOCK, 7)
    assert not got and got.misses() == [3] and got.mask == b"\1\1\1\0\1\1\1" and not got[3] and isinstance(got, lapis_kv.Got)
    assert repr(got) == f"<lapis_kv.DeviceGot 6 of 7 keys, {6 * BLOCK} bytes>"
    put_bytes = bytes(src)
    crossed = b"".join(put_bytes[HALF * (n ^ 1) : HALF * (n ^ 1) + HALF] for n in range(12))
    assert bytes(dst) == crossed[: 3 * BLOCK] + b"\xee" * BLOCK + crossed[3 * BLOCK :]
    on_host = bytearray(6 * BLOCK)
    eventually("them in DRAM too", lambda: gpu_client.get_into(gpu_pool, names(6), on_host).hits == 6)
    assert on_host == crossed
    src.free()
    dst.free()


def test_pieces_and_blocks_of_the_host_come_to_the_default_stream(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(2), payload(2))
    dst = cuda.memory(bytes(BLOCK))
    ptrs = [dst.ptr, dst.ptr + HALF]
    got = gpu_client.get_device(gpu_pool, names(2), ptrs, 0, device=0, pieces=(2, 4), verify=Verify.ALWAYS)
    cuda.synchronize(0)
    assert got and got.still_valid() and got.nbytes == BLOCK
    assert bytes(dst) == payload(2)[HALF:BLOCK] + payload(2)[BLOCK + HALF :]
    dst.free()


def test_a_put_on_a_gpu_below_a_parent_needs_it(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    src = cuda.memory(payload(2))
    ptrs = [src.ptr, src.ptr + BLOCK]
    refused = gpu_client.put_device(gpu_pool, names(2), ptrs, 0, device=0, parent=b"nobody")
    assert refused.statuses == [PutStatus.NO_PARENT] * 2
    assert gpu_client.put_device(gpu_pool, names(1), ptrs[:1], 0, device=0).stored == 1
    assert gpu_client.put_device(gpu_pool, names(1, 1), ptrs[1:], 0, device=0, parent=names(1)[0]).stored == 1
    src.free()


def test_other_threads_run_while_a_get_waits(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    dst = cuda.memory(bytes(BLOCK))
    thread = threading.Timer(0.05, lambda: gpu_client.put_from(gpu_pool, [b"later"], payload(1)))
    thread.start()
    got = gpu_client.get_device(gpu_pool, [b"later"], [dst.ptr], 0, device=0, wait=Wait.ABSENT, deadline=30.0)
    thread.join()
    cuda.synchronize(0)
    assert got and bytes(dst) == payload(1)
    dst.free()


def test_a_client_that_asked_for_no_gpus_goes_by_way_of_dram(cuda, gpu_host, namespace):
    cuda.use(0)
    before = puts_on_gpus(gpu_host)
    with gpu_host.client() as client:
        pool = patiently(lambda: client.pool(namespace, "kv", BLOCK))
        src, dst = cuda.memory(payload(1)), cuda.memory(bytes(BLOCK))
        assert client.put_device(pool, names(1), [src.ptr], 0, device=0).stored == 1
        assert client.get_device(pool, names(1), [dst.ptr], 0, device=0)
        cuda.synchronize(0)
        assert bytes(dst) == payload(1) and puts_on_gpus(gpu_host) == before
        src.free()
        dst.free()


PIECES = 4
PIECE = BLOCK // PIECES


def layers(at: int, count: int) -> list[tuple[int, int, list[int]]]:
    """Each piece of all blocks in one go, one piece after the other from `at` on."""
    place = [[at + PIECE * (count * piece + n) for n in range(count)] for piece in range(PIECES)]
    return [(PIECE * piece, PIECE, place[piece]) for piece in range(PIECES)]


def by_layers(blocks: list[bytes]) -> bytes:
    return b"".join(block[PIECE * piece :][:PIECE] for piece in range(PIECES) for block in blocks)


@pytest.mark.parametrize("device", [0, 1])
def test_pieces_go_to_places_of_their_own_and_a_stream_waits_for_each(cuda, gpu_client, gpu_pool, device):
    cuda.use(device)
    stream, engine, data = cuda.stream(), cuda.stream(), payload(3)
    gpu_client.put_from(gpu_pool, names(3), data)
    dst, seen = cuda.memory(b"\xee" * 4 * BLOCK), cuda.memory(bytes(4 * BLOCK))
    keys = [*names(2), b"none", *names(1, 2)]
    load = gpu_client.get_device_pieces(gpu_pool, keys, layers(dst.ptr, 4), stream, device=device)
    for piece in range(PIECES):
        load.wait_piece(piece, engine)
        cuda.copy(engine, seen.ptr + piece * BLOCK, dst.ptr + piece * BLOCK, BLOCK)
    cuda.synchronize(engine)
    assert load.is_over() and load.still_valid() and [load.is_piece_over(n) for n in range(-1, PIECES)] == [True] * 5
    assert (load.pieces, load.hits, load.prefix, load.nbytes, len(load)) == (PIECES, 3, 2, 3 * BLOCK, 4)
    assert not load and load.misses() == [2] and isinstance(load, lapis_kv.Got)
    assert repr(load) == f"<lapis_kv.DeviceLoad 3 of 4 keys in 4 pieces, {3 * BLOCK} bytes>"
    blocks = [data[:BLOCK], data[BLOCK : 2 * BLOCK], b"\xee" * BLOCK, data[2 * BLOCK :]]
    assert bytes(dst) == bytes(seen) == by_layers(blocks)
    dst.free()
    seen.free()


def test_a_stream_of_another_gpu_waits_for_a_piece_too(cuda, gpu_client, gpu_pool):
    cuda.use(1)
    other = cuda.stream()
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(2), payload(2))
    dst = cuda.memory(bytes(2 * BLOCK))
    load = gpu_client.get_device_pieces(gpu_pool, names(2), layers(dst.ptr, 2), cuda.stream(), device=0)
    load.wait_piece(PIECES - 1, other, device=1)
    cuda.use(1)
    cuda.synchronize(other)
    assert load and load.is_piece_over(PIECES - 1)
    cuda.use(0)
    assert bytes(dst) == by_layers([payload(2)[:BLOCK], payload(2)[BLOCK:]])
    dst.free()


def test_a_flag_is_written_behind_its_piece_also_where_nothing_came(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(1), payload(1))
    dst, flags, engine = cuda.memory(b"\xee" * BLOCK), cuda.memory(bytes(4 * PIECES)), cuda.stream()
    for keys, value in ((names(1), 7), ([b"none"], 8)):
        told = [(*piece, (flags.ptr + 4 * n, value)) for n, piece in enumerate(layers(dst.ptr, 1))]
        # A list of addresses may be anything that gives numbers, and the last flag None.
        told[0] = (0, PIECE, numpy.array([dst.ptr], numpy.uint64), told[0][3])
        told[3] = (*told[3][:3], None)
        load = gpu_client.get_device_pieces(gpu_pool, keys, iter(told), cuda.stream(), device=0)
        cuda.wait_word(engine, flags.ptr + 8, value)
        cuda.synchronize(engine)
        load.wait_piece(3, engine)
        cuda.synchronize(engine)
        assert load.hits == (value == 7) and load.is_over() and load.still_valid()
        assert bytes(flags) == b"".join(word.to_bytes(4, "little") for word in (value, value, value, 0))
    assert bytes(dst) == payload(1)
    dst.free()
    flags.free()


def test_a_load_does_not_wait_for_what_another_one_waits_for(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(2), payload(2))
    first, second, flag = cuda.memory(bytes(BLOCK)), cuda.memory(bytes(BLOCK)), cuda.memory(bytes(4))
    # The first is behind what waits for the second, which is on a stream that waits for nothing.
    waits, free = cuda.stream(), cuda.stream()
    cuda.wait_word(waits, flag.ptr, 1)
    behind = gpu_client.get_device_pieces(gpu_pool, names(1), layers(first.ptr, 1), waits, device=0)
    told = (0, BLOCK, [second.ptr], (flag.ptr, 1))
    load = gpu_client.get_device_pieces(gpu_pool, names(1, 1), [told], free, device=0)
    try:
        eventually("the second load", load.is_over)
    finally:
        if not load.is_over():
            cuda.write_word(free, flag.ptr, 1)
        cuda.synchronize(waits)
    eventually("the first load", behind.is_over)
    assert behind.still_valid() and load.still_valid() and bytes(first) + bytes(second) == payload(2)
    for memory in (first, second, flag):
        memory.free()


def test_a_slot_of_memory_that_went_with_its_daemon_is_not_given_back_in_the_place_of_a_new_one(cuda, namespace):
    def flags(hbm: str) -> tuple[str, ...]:
        return ("--hbm-bytes", hbm, "--hbm-cuda-library", str(stand_in()))

    def granted() -> int:
        return int(lapis_kv.status(host.socket)["gpus"][0]["held"]["slots_granted"])

    def put(client: lapis_kv.Client, at: int, stream: int, deadline: float = 30.0) -> int:
        return client.put_device(pools[client], names(1, at), [sources[at].ptr], stream, device=0, deadline=deadline).stored

    cuda.use(0)
    host = Host("64MiB", *flags("16MiB"))
    sources, gates, dst = [cuda.memory(payload(1, at)) for at in range(3)], [cuda.memory(bytes(4)) for _ in range(2)], cuda.memory(bytes(BLOCK))
    slow, free = [cuda.stream() for _ in gates], cuda.stream()
    for stream, gate in zip(slow, gates):
        cuda.wait_word(stream, gate.ptr, 1)
    try:
        with host.client(gpus=True) as one, host.client(gpus=True) as other:
            pools = {client: patiently(lambda client=client: client.pool(namespace, "kv", BLOCK)) for client in (one, other)}
            assert put(one, 0, slow[0], deadline=0.5) == 0 and granted() == 1
            host.kill()
            host._flags = flags("8MiB")
            host.start()
            eventually("both clients", lambda: one.is_connected() and other.is_connected())
            eventually("the daemon's memory", lambda: not lapis_kv.status(host.socket)["adopting"])
            # Its slot has the number that the former one had, or it is none.
            put(one, 1, slow[1], deadline=0.5)
            cuda.write_word(free, gates[0].ptr, 1)
            cuda.synchronize(slow[0])
            time.sleep(0.1)
            # What is written to the slot of the second is nobody else's.
            eventually("a put", lambda: put(other, 2, free))
            cuda.write_word(free, gates[1].ptr, 1)
            cuda.synchronize(slow[1])
            got = other.get_device(pools[other], names(1, 2), [dst.ptr], free, device=0)
            cuda.synchronize(free)
            assert got and got.still_valid() and bytes(dst) == payload(1, 2)
            eventually("all slots", lambda: granted() == 0)
    finally:
        for gate in gates:
            cuda.write_word(free, gate.ptr, 1)
        host.end()
    for memory in (*sources, *gates, dst):
        memory.free()


def test_what_an_engine_captures_is_not_disturbed(cuda, gpu_host, gpu_client, gpu_pool):
    cuda.use(0)
    gpu_client.put_from(gpu_pool, names(1), payload(1))
    dst, gate, stream, graphs = cuda.memory(bytes(BLOCK)), cuda.memory(bytes(4)), cuda.stream(), cuda.stream()
    cuda.wait_word(stream, gate.ptr, 1)
    got = gpu_client.get_device(gpu_pool, names(1), [dst.ptr], stream, device=0)
    cuda.begin_capture(graphs)
    # A thread looks after the copies, another registers memory, and this one asks.
    with gpu_host.client(gpus=True) as other:
        assert other.open_gpu(0) == (64 << 20, 64 << 20)
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            assert not got.is_over() and got.still_valid()
    cuda.end_capture(graphs)
    cuda.write_word(graphs, gate.ptr, 1)
    cuda.synchronize(stream)
    assert got.is_over() and got.still_valid() and bytes(dst) == payload(1)
    dst.free()
    gate.free()


def test_what_is_no_piece_is_told(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    memory = cuda.memory(bytes(BLOCK))
    at = [memory.ptr]

    def load(*pieces):
        return gpu_client.get_device_pieces(gpu_pool, names(1), pieces, 0, device=0)

    for pieces, error, match in [
        ([], ValueError, "pieces 0 to 0"), ([(1, BLOCK, at)], ValueError, f"{BLOCK} bytes at 1 of a block of {BLOCK}"),
        ([(0, 0, at)], ValueError, "0 bytes at 0"), ([(0, 64, [])], ValueError, "0 vectors"),
        ([(0, 64, [0])], ValueError, r"pieces\[0\]\[0\] is 0"), ([(0, 64, at), (0, 64)], TypeError, r"pieces\[1\]"),
        ([[0, 64, at]], TypeError, r"pieces\[0\]: expected a list of pieces"), ([(0, 64, at[0])], TypeError, "list of addresses"),
        ([(0, 64, at, 5)], TypeError, "a flag is"), ([(0, 64, at, (0, 1))], ValueError, "a flag at 0"),
        ([(0, 64, at, (memory.ptr + 1, 1))], ValueError, "multiple of four"), ([("0", 64, at)], TypeError, "whole number"),
        ([(0, 64, at, (memory.ptr, 1 << 32))], ValueError, "expected 0 to 4294967295"),
    ]:
        with pytest.raises(error, match=match):
            load(*pieces)
    with pytest.raises(TypeError, match="pieces: expected a list"):
        gpu_client.get_device_pieces(gpu_pool, names(1), 5, 0, device=0)
    made = load((0, BLOCK, at))
    for wrong in (1, -2):
        for call in (made.is_piece_over, lambda piece: made.wait_piece(piece, 0)):
            with pytest.raises(IndexError, match=f"piece {wrong} of 1"):
                call(wrong)
    with pytest.raises(TypeError, match="stream"):
        made.wait_piece(0, None)
    with pytest.raises(lapis_kv.GpuError):
        made.wait_piece(0, 0, device=7)
    made.wait_piece(0, 0)
    cuda.synchronize(0)
    memory.free()


@pytest.fixture
def gpu_objects(gpu_client: lapis_kv.Client, namespace: lapis_kv.Namespace) -> lapis_kv.Pool:
    return patiently(lambda: gpu_client.pool(namespace, "objects", 1 << 20, kind="object"))


def promotions(host: Host) -> int:
    return int(lapis_kv.status(host.socket)["hbm"]["promotions"])


@pytest.mark.parametrize("device", [0, 1])
def test_objects_go_to_places_of_their_own_in_the_memory_of_a_gpu(cuda, gpu_client, gpu_objects, device):
    cuda.use(device)
    stream, values = cuda.stream(), [payload(1)[:4000], payload(2, 1)[:5001], payload(3, 3)]
    gpu_client.put_objects(gpu_objects, [b"a", b"b", b"c"], values)
    dst = cuda.memory(b"\xee" * 40_000)
    to = [[(dst.ptr, 100), (dst.ptr + 20_000, 4000)], (dst.ptr + 5000, 6000), (dst.ptr + 30_000, 9), (dst.ptr + 12_000, 100)]
    asked = [b"a", "b", b"none", b"c"]
    got = gpu_client.get_objects_device(gpu_objects, asked, to, stream, device=device, deadline=30.0)
    cuda.synchronize(stream)
    assert got.is_over() and got.still_valid() and repr(got) == "<lapis_kv.DeviceObjects 2 of 4 objects>"
    assert (got.found, got.parts) == ([4000, 5001, None, -3 * BLOCK], [])
    expected = bytearray(b"\xee" * 40_000)
    expected[:100], expected[20_000:23_900], expected[5000:10_001] = values[0][:100], values[0][100:], values[1]
    assert bytes(dst) == expected, "those bytes, and no other"

    # Ranges: the second one reaches beyond the end.
    ranges, offsets = [[(dst.ptr, 10), (dst.ptr + 50, 11)], [(dst.ptr + 100, 4)]], [[3990, 3990], [7]]
    got = gpu_client.get_objects_device(gpu_objects, asked[:2], ranges, stream, device=device, offsets=offsets)
    cuda.synchronize(stream)
    expected[:10], expected[100:104] = values[0][3990:], values[1][7:11]
    assert got.found == [4000, 5001] and got.still_valid() and bytes(dst) == expected
    dst.free()


def test_an_object_that_is_read_again_comes_from_the_gpu(cuda, gpu_host, gpu_client, gpu_objects):
    cuda.use(0)
    value, before = payload(5), promotions(gpu_host)
    gpu_client.put_object(gpu_objects, b"hot", value)
    dst = cuda.memory(bytes(len(value)))

    def read() -> bytes:
        got = gpu_client.get_objects_device(gpu_objects, [b"hot"], [(dst.ptr, len(value))], 0, device=0, deadline=30.0)
        cuda.synchronize(0)
        assert got.found == [len(value)] and got.still_valid()
        return bytes(dst)

    eventually("a copy on the GPU", lambda: read() == value and promotions(gpu_host) > before)
    # What lies in DRAM is not looked at any more, but for the name.
    eventually("the copy's end", lambda: lapis_kv.status(gpu_host.socket)["gpus"][0]["held"]["blocks"] > 0)
    [view] = gpu_client.view(gpu_objects, [b"hot"])
    in_dram = numpy.frombuffer(view, numpy.uint8)
    ctypes.memset(in_dram.ctypes.data, 0xEE, len(value))
    assert read() == value
    ctypes.memmove(in_dram.ctypes.data, value, len(value))
    del in_dram
    view.release()
    assert gpu_client.remove_object(gpu_objects, b"hot")
    got = gpu_client.get_objects_device(gpu_objects, [b"hot"], [(dst.ptr, len(value))], 0, device=0)
    assert got.found == [None]
    cuda.synchronize(0)
    dst.free()


def test_an_object_under_the_key_of_another_name_is_not_that_one(cuda, gpu_client, gpu_objects):
    cuda.use(0)
    name = b"n" * 40
    gpu_client.put_object(gpu_objects, lapis_kv.key(name), b"12345678")
    dst = cuda.memory(bytes(8))
    got = gpu_client.get_objects_device(gpu_objects, [name, lapis_kv.key(name)], [(dst.ptr, 8)] * 2, 0, device=0, deadline=30.0)
    cuda.synchronize(0)
    assert got.found == [None, 8] and bytes(dst) == b"12345678"
    dst.free()


def test_an_object_of_several_parts_is_told_of(cuda, host, namespace):
    cuda.use(0)
    with host.client(gpus=True) as client:
        pool = patiently(lambda: client.pool(namespace, "objects", 128 << 20, kind="object"))
        client.put_objects(pool, [b"long", b"short"], [bytes(65 << 20), b"12"])
        dst = cuda.memory(bytes(8))
        to = [(dst.ptr, 65 << 20), (dst.ptr, 8)]
        got = client.get_objects_device(pool, [b"long", b"short"], to, 0, device=0, deadline=30.0)
        cuda.synchronize(0)
        assert (got.found, got.parts) == ([None, 2], [0]) and bytes(dst) == b"12" + bytes(6)
        dst.free()


def test_what_is_no_place_for_objects_is_told(cuda, gpu_client, gpu_objects, gpu_pool):
    def get(places, asked=(b"k",), pool=gpu_objects, **more):
        return gpu_client.get_objects_device(pool, list(asked), places, 0, device=0, **more)

    for places, error, match in [
        ([], ValueError, "0 objects of memory for 1 names"), ([(0, 1)], ValueError, r"dst\[0\] has an address of 0"),
        ([(4096,)], TypeError, "expected a pair"), ([4096], TypeError, "expected a pair"), ([(-1, 1)], TypeError, "expected a pair"),
    ]:
        with pytest.raises(error, match=match):
            get(places)
    with pytest.raises(ValueError, match="offsets: expected one for each place"):
        get([[(4096, 1)]], offsets=[[0, 1]])
    with pytest.raises(ValueError, match="no object pool"):
        get([(4096, 1)], pool=gpu_pool)
    with pytest.raises(ValueError, match="0"):
        get([(4096, 1)], asked=[b""])


def test_mistakes_are_told(cuda, gpu_client, gpu_pool, namespace):
    cuda.use(0)
    memory = cuda.memory(bytes(2 * BLOCK))
    for call in (gpu_client.get_device, gpu_client.put_device):
        with pytest.raises(ValueError, match="3 vectors for 2 blocks"):
            call(gpu_pool, names(2), [memory.ptr] * 3, 0, device=0)
        with pytest.raises(ValueError, match="0 vectors for 1 blocks"):
            call(gpu_pool, names(1), [], 0, device=0)
        with pytest.raises(ValueError, match="hold 4095 bytes, expected 4096"):
            call(gpu_pool, names(1), [memory.ptr] * 3, 0, device=0)
        with pytest.raises(ValueError, match=r"\[1\] is 0"):
            call(gpu_pool, names(2), [memory.ptr, 0], 0, device=0)
        with pytest.raises(ValueError, match="of -1: expected 0"):
            call(gpu_pool, names(1), [-1], 0, device=0)
        with pytest.raises(ValueError, match="device of 65536"):
            call(gpu_pool, names(1), [memory.ptr], 0, device=65536)
        for wrong in (memory.ptr, ["1"], [1.0]):
            with pytest.raises(TypeError):
                call(gpu_pool, names(1), wrong, 0, device=0)
        with pytest.raises(TypeError, match="stream"):
            call(gpu_pool, names(1), [memory.ptr], None, device=0)
        with pytest.raises(TypeError, match="device"):
            call(gpu_pool, names(1), [memory.ptr], 0)
        with pytest.raises(lapis_kv.GpuError, match="opening a GPU"):
            call(gpu_pool, names(1), [memory.ptr], 0, device=7)
    objects = patiently(lambda: gpu_client.pool(namespace, "objects", 1 << 20, kind="object"))
    with pytest.raises(ValueError, match="no chain pool"):
        gpu_client.get_device(objects, names(1), [memory.ptr], 0, device=0)
    with pytest.raises(lapis_kv.GpuError, match="beside it") as raised:
        lapis_kv.load_cuda("/nowhere/libcuda.so")
    assert not raised.value.is_transient
    memory.free()


def test_a_forked_child_touches_no_driver(cuda, gpu_client, gpu_pool):
    cuda.use(0)
    dst = cuda.memory(bytes(BLOCK))
    gpu_client.put_from(gpu_pool, names(1), payload(1))
    got = gpu_client.get_device(gpu_pool, names(1), [dst.ptr], 0, device=0)
    load = gpu_client.get_device_pieces(gpu_pool, [b"none"], [(0, BLOCK, [dst.ptr])], 0, device=0)
    if (child := os.fork()) == 0:
        told = 0
        on_piece = [lambda: load.wait_piece(0, 0), lambda: load.is_piece_over(0), lambda: gpu_client.open_gpu(0)]
        for call in (got.is_over, got.still_valid, load.is_over, load.still_valid, *on_piece):
            try:
                call()
            except lapis_kv.ForkedError:
                told += 1
        del got, load
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    cuda.synchronize(0)
    assert got.is_over() and got.still_valid() and bytes(dst) == payload(1)
    dst.free()


_WITHOUT_A_DRIVER = """
import ctypes, sys, lapis_kv
for name in ("libcuda.so", "libcuda.so.1"):
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    sys.exit(print("a driver is here"))
client = lapis_kv.Client(sys.argv[1], gpus=True)
pool = client.pool(lapis_kv.Namespace("no driver"), "kv", 4096)
for call in (client.get_device, client.put_device):
    try:
        call(pool, [b"k"], [4096], 0, device=0)
    except lapis_kv.GpuError as error:
        print(error.is_transient, error)
print(client.put_from(pool, [b"k"], bytes(4096)).stored)
"""


def test_without_a_driver_the_error_says_what_to_do(host: Host):
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_DRIVER, host.socket], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    if ran.stdout == "a driver is here\n":
        pytest.skip("NVIDIA's driver is installed here: what is said without it is not seen")
    *said, stored = ran.stdout.splitlines()
    assert len(said) == 2 and stored == "1"
    assert all(line.startswith("False loading CUDA's driver: ") and "install NVIDIA's driver" in line for line in said)
