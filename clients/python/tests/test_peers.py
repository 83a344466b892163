"""Two daemons on loopback that are each other's peers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import lapis_kv
import pytest
from conftest import BLOCK, names, payload
from host import Host, eventually, patiently
from lapis_kv import HitPolicy


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """At addresses that only this process has."""
    pid = os.getpid()
    address = [f"127.{100 + pid // 250 % 100}.{pid % 250 + 1}.{at}:7450" for at in (1, 2)]
    members = f"host-1={address[0]},host-2={address[1]}"
    hosts = [
        Host("64MiB", "--peers-listen", address[at], "--peers-host", f"host-{at + 1}", "--peers-members", members)
        for at in (0, 1)
    ]
    yield hosts
    for host in hosts:
        host.end()


def test_what_one_host_has_the_other_fetches_and_is_offered(hosts):
    namespace = lapis_kv.Namespace("peers")
    with hosts[0].client() as one, hosts[1].client() as two:
        here, there = (patiently(lambda c=client: c.pool(namespace, "kv", BLOCK)) for client in (one, two))
        assert one.put_from(here, names(8), payload(8)).stored == 8
        assert two.match_prefix(there, names(8)) == 0, "nobody was asked"
        eventually("blocks of the other host", lambda: two.fetch_prefix(there, names(10), deadline=10) == 8)
        assert two.match_prefix([(there, HitPolicy.PREFIX)], names(10)) == 8
        into = bytearray(8 * BLOCK)
        assert two.get_into(there, names(8), into).hits == 8 and into == payload(8)

        assert one.put_from(here, names(4, 100), payload(4, 100)).stored == 4
        eventually("the offer to be taken", lambda: offered(one, here) == 4)
        assert two.match_prefix(there, names(4, 100)) == 4
        with pytest.raises(lapis_kv.RefusedError, match="nobody: no other host of this name"):
            one.offer(here, names(4, 100), "nobody")


def offered(client: lapis_kv.Client, pool: lapis_kv.Pool) -> int:
    """Refused as long as the hosts have not found each other."""
    try:
        return client.offer(pool, names(4, 100), "host-2", deadline=10)
    except lapis_kv.RefusedError:
        return 0


def test_alone_a_host_fetches_nothing(client, pool):
    client.put_from(pool, names(3), payload(3))
    assert client.fetch_prefix(pool, names(8)) == 3
    with pytest.raises(lapis_kv.RefusedError, match="host-2"):
        client.offer(pool, names(3), "host-2")
