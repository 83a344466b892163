"""Tickets for coroutines.

One descriptor tells of all tickets of a client, and whoever makes it quiet may take it from another loop: so each client
has one bell, and every loop that watches it wakes all that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from . import _lapis

_bells: weakref.WeakKeyDictionary[_lapis.Client, _Bell] = weakref.WeakKeyDictionary()
_bells_lock = threading.Lock()


async def finish(client: _lapis.Client, ticket: _lapis.Ticket) -> Any:
    """Polls a ticket until it has its result; closes it in any case."""
    try:
        # What is in memory needs no waiting.
        result = ticket.poll()
        if result is None:
            with _bell(client).watched(client) as rung:
                while (result := ticket.poll()) is None:
                    client.is_connected()  # Raises if it was closed: then nobody rings any more.
                    # Not wait_for: before Python 3.12 a cancellation gets lost if the event came just then.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(ticket.poll_in()):
                            await rung.wait()
                    rung.clear()
        return result
    finally:
        ticket.close()


def closed(client: _lapis.Client) -> None:
    """Wakes all that wait for tickets of a client that was closed."""
    _bell(client).ring()


def _bell(client: _lapis.Client) -> _Bell:
    with _bells_lock:
        return _bells.setdefault(client, _Bell())


class _Bell:
    """Who waits for the descriptor of one client: events, each of one loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.Event, asyncio.AbstractEventLoop]] = []

    @contextlib.contextmanager
    def watched(self, client: _lapis.Client) -> Iterator[asyncio.Event]:
        """An event that is set whenever tickets may have got on. The descriptor lives at least as long as a ticket."""
        loop, fd, event = asyncio.get_running_loop(), client.fileno(), asyncio.Event()
        if self._enter(loop, event) == 1:
            loop.add_reader(fd, self._readable, weakref.ref(client), fd)
        try:
            yield event
        finally:
            if self._leave(loop, event) == 0:
                loop.remove_reader(fd)

    def ring(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for event, loop in waiting:
            with contextlib.suppress(RuntimeError):  # The loop was closed.
                loop.call_soon_threadsafe(event.set)

    def _readable(self, client: weakref.ref[_lapis.Client], fd: int) -> None:
        owner = client()
        try:
            if owner is not None:
                owner.acknowledge()
        except _lapis.ClosedError:
            owner = None
        if owner is None:
            # Nobody can make it quiet any more.
            asyncio.get_running_loop().remove_reader(fd)
        self.ring()

    def _enter(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> int:
        with self._lock:
            self._waiting.append((event, loop))
            return self._count(loop)

    def _leave(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> int:
        with self._lock:
            self._waiting.remove((event, loop))
            return self._count(loop)

    def _count(self, loop: asyncio.AbstractEventLoop) -> int:
        return sum(1 for _, other in self._waiting if other is loop)
