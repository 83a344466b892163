"""Threads, coroutines, forks, and daemons that die, stand still and come back."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback

import lapis_kv
import numpy
import pytest
from conftest import BLOCK, names, payload
from host import Host, eventually
from lapis_kv import PutStatus, Wait, aio


def _python_steps(while_running: threading.Thread) -> int:
    """How often pure Python gets its turn while a thread runs."""
    steps = 0
    while while_running.is_alive():
        steps += 1
        time.sleep(0)
    return steps


def test_other_threads_go_on_while_a_call_waits_or_copies(client, namespace, pool):
    waits = threading.Thread(
        target=client.get_into,
        args=(pool, [b"never"], bytearray(BLOCK)),
        kwargs={"wait": Wait.ABSENT, "deadline": 0.3},
    )
    waits.start()
    assert _python_steps(waits) > 100
    # One copy takes several milliseconds: the other thread sees dst between its start and its end.
    big = client.pool(namespace, "big", 64 << 20)
    assert client.put_from(big, [b"big"], numpy.ones(64 << 20, numpy.uint8), deadline=30.0).stored == 1
    old = sys.getswitchinterval()
    sys.setswitchinterval(10.0)  # Nobody is interrupted: who goes on meanwhile was let go.
    try:
        for _ in range(20):
            dst = numpy.zeros(64 << 20, numpy.uint8)
            copies = threading.Thread(target=client.get_into, args=(big, [b"big"], dst))
            copies.start()
            if _python_steps(copies) > 2:
                break
        else:
            pytest.fail("no other thread went on")
    finally:
        sys.setswitchinterval(old)


def test_memory_stays_exported_while_a_call_uses_it(client, pool):
    dst = bytearray(BLOCK)
    waits = threading.Thread(
        target=client.get_into, args=(pool, [b"never"], dst), kwargs={"wait": Wait.ABSENT, "deadline": 0.5}
    )
    waits.start()

    def cannot_grow() -> bool:
        try:
            dst.append(0)
            dst.pop()
        except BufferError:
            return True
        return False

    eventually("the call", cannot_grow)
    waits.join()
    dst.append(0)


def test_many_threads_use_one_client(client, pool):
    wrong = []

    def use(thread: int) -> None:
        for n in range(20):
            first = thread * 1000 + n * 10
            client.put_from(pool, names(4, first), payload(4, first))
            dst = bytearray(4 * BLOCK)
            if client.get_into(pool, names(4, first), dst).hits != 4 or dst != payload(4, first):
                wrong.append(first)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_coroutines_put_and_get_beside_each_other(host, client, namespace, pool):
    with host.client() as other:
        place = other.pool(namespace, "kv", BLOCK)

        async def hand_over(n: int) -> bool:
            dst = bytearray(BLOCK)
            get = asyncio.create_task(client.aget_into(pool, names(1, n), dst, wait=Wait.ABSENT, deadline=60.0))
            await asyncio.sleep(0)
            put = await other.aput_from(place, names(1, n), payload(1, n))
            return put.stored == 1 and (await get).hits == 1 and dst == payload(1, n)

        async def all_of_them() -> list[bool]:
            return await asyncio.gather(*(hand_over(n) for n in range(50)))

        began = time.monotonic()
        assert all(asyncio.run(all_of_them()))
        assert time.monotonic() - began < 50, "answers were waited for until deadlines"


def test_coroutines_of_several_loops_share_one_client(client, pool):
    results = []

    async def use(first: int) -> None:
        for n in range(first, first + 30):
            put = client.aput_from(pool, names(1, n), payload(1, n), deadline=300.0)
            results.append((await asyncio.wait_for(put, 20)).stored)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(use(n * 100))) for n in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == [1] * 90, "a loop was not told of its answers"


def test_a_loop_that_ends_leaves_the_bell_to_the_others(client, pool):
    bell, waits, end = aio._bell(client), threading.Event(), threading.Event()

    async def first() -> None:
        get = asyncio.create_task(client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=300.0))
        while len(bell._waiting) < 1:
            await asyncio.sleep(0)
        waits.set()
        await asyncio.to_thread(end.wait)
        get.cancel()
        await asyncio.wait([get])

    async def second() -> lapis_kv.Got:
        get = asyncio.create_task(client.aget_into(pool, [b"later"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=300.0))
        while len(bell._waiting) < 2:
            await asyncio.sleep(0)
        end.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(client.put_from, pool, [b"later"], payload(1))
        return await asyncio.wait_for(get, 20)

    thread = threading.Thread(target=lambda: asyncio.run(first()))
    thread.start()
    try:
        assert waits.wait(20)
        assert asyncio.run(second()).hits == 1
    finally:
        end.set()
        thread.join()


def test_the_descriptor_is_quiet_after_a_bell_and_watched_only_while_somebody_waits(client, pool):
    async def use() -> None:
        loop, fd = asyncio.get_running_loop(), client.fileno()
        get = asyncio.create_task(
            client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0)
        )
        assert (await client.aput_from(pool, names(1), payload(1))).stored == 1
        until = time.monotonic() + 20
        while select.select([fd], [], [], 0)[0]:
            assert time.monotonic() < until, "nobody makes the descriptor quiet: the loop spins"
            await asyncio.sleep(0)
        get.cancel()
        await asyncio.wait([get])
        assert loop.remove_reader(fd) is False, "a descriptor is watched for nobody"

    asyncio.run(use())


def test_a_cancelled_get_gives_its_memory_back(client, pool):
    dst = bytearray(BLOCK)

    async def cancel() -> None:
        get = asyncio.create_task(client.aget_into(pool, [b"cancelled"], dst, wait=Wait.ABSENT, deadline=60.0))
        await asyncio.sleep(0.02)
        with pytest.raises(BufferError):
            dst.append(0)
        get.cancel()
        with pytest.raises(asyncio.CancelledError):
            await get
        dst.append(0)

    asyncio.run(cancel())
    client.put_from(pool, [b"cancelled"], payload(1))
    assert bytes(dst) == bytes(BLOCK + 1), "a call that was given up wrote"


def test_a_cancellation_is_heard_whenever_it_comes(client, pool):
    async def cancel(turns: int) -> None:
        get = asyncio.create_task(
            client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0)
        )
        while not aio._bell(client)._waiting:
            await asyncio.sleep(0)
        # A bell for somebody else, and so many turns of the loop later the end.
        aio.closed(client)
        for _ in range(turns):
            await asyncio.sleep(0)
        get.cancel()
        done, _ = await asyncio.wait([get], timeout=20)
        assert done and get.cancelled(), f"the cancellation was lost {turns} turns after a bell"

    for turns in range(8):
        asyncio.run(cancel(turns))


@pytest.fixture
def hears_ctrl_c():
    """Also where the checks run in the background of a shell, which has its jobs ignore it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_a_call_that_waits(client, pool, objects):
    def ring() -> None:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    for call in (
        lambda: client.get_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0),
        lambda: client.get_object(objects, "never", wait=Wait.ABSENT, deadline=60.0),
        lambda: client.get_object(objects, "never", take=True, wait=Wait.ABSENT, deadline=60.0),
    ):
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ring()
            call()
        assert time.monotonic() - began < 20, "it was heard when the wait was over"
    assert client.put_from(pool, names(1), payload(1)).stored == 1


def test_a_handler_of_a_signal_may_use_the_client_that_waits(client, pool):
    def handle(*_signal: object) -> None:
        assert client.get_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=0.2).hits == 0
        assert client.put_from(pool, [b"later"], payload(1)).stored == 1

    old = signal.signal(signal.SIGUSR1, handle)
    try:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        assert client.get_into(pool, [b"later"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=5.0).hits == 1
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_an_interpreter_ends_with_views_tickets_and_threads_under_way(host):
    program = f"""
import lapis_kv, numpy, sys, threading
client = lapis_kv.Client({str(host.socket)!r})
pool = client.pool(lapis_kv.Namespace("ends"), "kv", {BLOCK})
client.put_from(pool, [b"a"], bytes({BLOCK}))
view = client.view(pool, [b"a"])[0]
kept = memoryview(view), numpy.frombuffer(view, numpy.uint8)
wait = dict(wait=lapis_kv.Wait.ABSENT, deadline=60.0)
ticket = client.begin_get(pool, [b"never"], bytearray({BLOCK}), **wait)
turns = threading.Semaphore(0)

def loop():
    while True:
        client.get_into(pool, [b"a"], bytearray({BLOCK}))
        turns.release()

threading.Thread(target=client.get_into, args=(pool, [b"never"], bytearray({BLOCK})), kwargs=wait, daemon=True).start()
threading.Thread(target=loop, daemon=True).start()
turns.acquire()
sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_coroutine_ends_at_its_deadline_and_with_its_client(host, namespace):
    client = host.client()
    pool = client.pool(namespace, "kv", BLOCK)

    async def late() -> lapis_kv.Got:
        return await client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=0.05)

    assert asyncio.run(late()).hits == 0

    async def closed() -> None:
        get = asyncio.create_task(client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(client.close)
        with pytest.raises(lapis_kv.ClosedError):
            await asyncio.wait_for(get, 20)

    asyncio.run(closed())


def test_a_ticket_gives_its_result_once(client, pool):
    client.put_from(pool, names(1), payload(1))
    dst = bytearray(BLOCK)
    ticket = client.begin_get(pool, names(1), dst)
    assert ticket.poll().hits == 1 and dst == payload(1)
    assert ticket.poll() is None and ticket.poll_in() is None
    ticket = client.begin_get(pool, [b"never"], dst, wait=Wait.ABSENT, deadline=60.0)
    assert ticket.poll() is None and 0 < ticket.poll_in() <= 60
    ticket.close()
    assert ticket.poll() is None
    dst.append(0)


def _in_a_child(work) -> None:
    """Runs it in a forked child; a failure there is one here."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_forked_child_every_call_says_what_to_do(host, client, namespace, pool, objects):
    client.put_from(pool, names(1), payload(1))
    view = client.view(pool, names(1))[0]
    ticket = client.begin_get(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0)

    def child() -> None:
        for call in (
            lambda: client.exists(pool, names(1)),
            lambda: client.match_prefix(pool, names(1)),
            lambda: client.get_into(pool, names(1), bytearray(BLOCK)),
            lambda: client.put_from(pool, names(1), payload(1)),
            lambda: client.view(pool, names(1)),
            lambda: client.begin_get(pool, names(1), bytearray(BLOCK)),
            lambda: asyncio.run(client.aget_into(pool, names(1), bytearray(BLOCK))),
            lambda: client.put_object(objects, "n", b""),
            lambda: client.get_tensor(objects, "n"),
            lambda: client.prefetch(pool, names(1)),
            lambda: client.remove(pool, names(1)),
            lambda: client.purge(pool),
            lambda: client.pool(namespace, "other", BLOCK),
            client.stats,
            client.is_connected,
            client.fileno,
            client.close,
            view.still_valid,
            view.release,
            lambda: memoryview(view),
            ticket.poll,
            ticket.poll_in,
        ):
            with pytest.raises(lapis_kv.ForkedError, match="make a lapis_kv.Client of its own in the child"):
                call()
        ticket.close()
        with host.client() as own:
            assert own.get_into(own.pool(namespace, "kv", BLOCK), names(1), bytearray(BLOCK)).hits == 1

    _in_a_child(child)
    assert ticket.poll() is None and ticket.poll_in() > 0, "the child ended the parent's call"
    ticket.close()
    assert view.still_valid() and client.get_into(pool, names(1), bytearray(BLOCK)).hits == 1


def test_while_the_daemon_is_dead_hits_go_on_and_all_else_is_answered(own_host: Host):
    with own_host.client() as client:
        pool = client.pool(lapis_kv.Namespace("killed"), "kv", BLOCK)
        objects = client.pool(lapis_kv.Namespace("killed"), "objects", 1 << 20, kind="object")
        client.put_from(pool, names(4), payload(4))
        client.put_object(objects, "there", b"data")
        own_host.kill()
        eventually("the hang-up", lambda: not client.is_connected())
        began, dst = time.monotonic(), bytearray(6 * BLOCK)
        assert client.get_into(pool, names(6), dst).hits == 4 and dst[: 4 * BLOCK] == payload(4)
        assert client.get_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=60.0).hits == 0
        put = client.put_from(pool, names(1, 9), payload(1, 9))
        assert put[0] == PutStatus.GONE and put[0].is_transient
        assert client.put_object(objects, "new", b"data") == PutStatus.GONE
        assert client.get_object(objects, "there") == b"data"
        assert client.get_object(objects, "new", wait=Wait.ABSENT, deadline=60.0) is None
        assert client.prefetch(pool, names(1)) is False and client.hint(pool, names(1), lapis_kv.Hint.ENDED) is False
        with pytest.raises(lapis_kv.GoneError) as error:
            client.remove(pool, names(1))
        assert error.value.is_transient

        async def coroutine() -> lapis_kv.Put:
            return await client.aput_from(pool, names(1, 9), payload(1, 9), deadline=60.0)

        assert asyncio.run(coroutine())[0] == PutStatus.GONE
        assert time.monotonic() - began < 20, "somebody waited for a dead daemon"
        own_host.start()
        eventually("the return", client.is_connected)
        eventually("a put", lambda: client.put_from(pool, names(1, 9), payload(1, 9)).stored)
        assert client.get_into(pool, names(4), bytearray(4 * BLOCK)).hits == 4, "memory was kept"


def test_a_coroutine_that_waits_when_the_daemon_dies_is_told(own_host: Host):
    with own_host.client() as client:
        pool = client.pool(lapis_kv.Namespace("dies"), "kv", BLOCK)

        async def wait() -> lapis_kv.Got:
            get = asyncio.create_task(
                client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=600.0)
            )
            await asyncio.sleep(0.02)
            await asyncio.to_thread(own_host.kill)
            return await asyncio.wait_for(get, 30)

        assert asyncio.run(wait()).hits == 0


def test_a_daemon_that_stands_still_costs_no_more_than_the_deadline(own_host: Host):
    with own_host.client() as client:
        pool = client.pool(lapis_kv.Namespace("still"), "kv", BLOCK)
        client.put_from(pool, names(1), payload(1))
        client.purge(pool)
        own_host.pause()
        began = time.monotonic()
        put = client.put_from(pool, names(4000), payload(4000), deadline=0.2)
        assert put.refusals == {"LATE": 4000}
        with pytest.raises(lapis_kv.LateError, match="no answer of the daemon within") as error:
            client.remove(pool, names(1), deadline=0.05)
        assert error.value.is_transient

        async def coroutines() -> tuple[lapis_kv.Got, lapis_kv.Put]:
            get = client.aget_into(pool, [b"never"], bytearray(BLOCK), wait=Wait.ABSENT, deadline=0.2)
            put = client.aput_from(pool, names(4000), payload(4000), deadline=0.2)
            return await asyncio.wait_for(asyncio.gather(get, put), 20)

        got, put = asyncio.run(coroutines())
        assert got.hits == 0 and put.refusals == {"LATE": 4000}
        assert time.monotonic() - began < 10
