"""Objects in batches: put, found, and read to memory of the caller."""

from __future__ import annotations

import ctypes

import numpy
import pytest
from lapis_kv import PutStatus


@pytest.fixture
def objects(client, namespace):
    return client.pool(namespace, "batches", 1 << 20, kind="object")


def test_a_batch_is_put_found_and_read_with_an_answer_for_each(client, objects):
    data = [b"one" * 1000, bytearray(b"two"), [b"th", numpy.frombuffer(b"ree", numpy.uint8)], b""]
    whole = [b"one" * 1000, b"two", b"three", b""]
    names = ["a", b"b", "c", "d"]
    put = client.put_objects(objects, [*names, "e"], [*data, bytes((1 << 20) + 1)])
    assert (put.stored, put[4]) == (4, PutStatus.TOO_LARGE)
    assert client.get_objects(objects, ["none", *names]) == [None, *whole]
    assert client.find_objects(objects, ["a", "none", "d"]) == [(3000, True), None, (0, True)]
    assert client.put_objects(objects, names, data).existed == 4


def test_objects_go_to_buffers_and_addresses_whole_or_in_ranges(client, objects):
    client.put_objects(objects, ["a", "b"], [bytes(range(100)), bytes(range(100, 200))])
    one, two = bytearray(60), (ctypes.c_ubyte * 50)()
    place = (ctypes.addressof(two), 50)
    assert client.get_objects_into(objects, ["a", "none", "b"], [[one, place], bytearray(9), bytearray(99)]) == [100, None, -100]
    assert bytes(one) + bytes(two)[:40] == bytes(range(100))
    got = client.get_objects_into(objects, ["b", "a"], [[memoryview(one)[:2], place], []], offsets=[[98, 51], []])
    assert got == [100, 100] and bytes(one)[:3] == bytes([198, 199, 2])
    assert bytes(two)[:40] == bytes(range(60, 100)), "those beyond the end stay as they are"
    assert client.put_objects(objects, ["c"], [(ctypes.addressof(two), 10)]).stored == 1
    assert client.get_object(objects, "c") == bytes(range(60, 70))


def test_mistakes_in_a_batch_are_named(client, objects):
    for names, dst, offsets, message in [
        (["a"], [], None, "0 objects of memory for 1 names"),
        (["a"], [bytes(3)], None, "read-only"),
        (["a"], [(0, 5)], None, "no memory"),
        (["a"], [bytearray(3)], [[]], "one for each place"),
        ([], [], None, "0 keys"),
        (["x" * 1025], [bytearray(3)], None, "1025 bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            client.get_objects_into(objects, names, dst, offsets=offsets)
    for wrong in [(1, -1), (1, 2, 3), "text"]:
        with pytest.raises(TypeError):
            client.put_objects(objects, ["a"], [wrong])
    with pytest.raises(TypeError, match="name"):
        client.find_objects(objects, [1])
