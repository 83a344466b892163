"""Scenes of the tests: a daemon for all, one for those that harm it, a client and pools with names of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import lapis_kv
import pytest
from host import Host, patiently

BLOCK = 4096
_numbers = itertools.count()


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """For tests that leave it as it is."""
    host = Host("256MiB")
    yield host
    host.end()


@pytest.fixture
def own_host() -> Iterator[Host]:
    """For tests that kill it or fill it."""
    host = Host("32MiB")
    yield host
    host.end()


@pytest.fixture
def client(host: Host) -> Iterator[lapis_kv.Client]:
    with host.client(name="pytest") as client:
        yield client


@pytest.fixture
def namespace() -> lapis_kv.Namespace:
    """One that no other test has."""
    return lapis_kv.Namespace("test", salt=str(next(_numbers)))


@pytest.fixture
def pool(client: lapis_kv.Client, namespace: lapis_kv.Namespace) -> lapis_kv.Pool:
    return patiently(lambda: client.pool(namespace, "kv", BLOCK))


@pytest.fixture
def objects(client: lapis_kv.Client, namespace: lapis_kv.Namespace) -> lapis_kv.Pool:
    return patiently(lambda: client.pool(namespace, "objects", 200 << 20, kind="object"))


def names(count: int, first: int = 0) -> list[bytes]:
    return [b"block %d" % n for n in range(first, first + count)]


def payload(count: int, first: int = 0) -> bytes:
    """Bytes of so many blocks, different for each."""
    return b"".join(bytes([(n * 7 + 1) % 256]) * (BLOCK - 8) + n.to_bytes(8, "little") for n in range(first, first + count))
