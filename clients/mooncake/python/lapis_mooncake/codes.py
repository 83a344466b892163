"""The numbers that Mooncake's calls answer (its troubleshooting/error-code page), and what of Lapis answers which."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final

import lapis_kv
from lapis_kv import PutStatus

log: Final = logging.getLogger("mooncake.store")

OK: Final = 0
INTERNAL_ERROR: Final = -1
NO_AVAILABLE_HANDLE: Final = -200
WRITE_FAIL: Final = -500
INVALID_PARAMS: Final = -600
ILLEGAL_CLIENT: Final = -601
OBJECT_NOT_FOUND: Final = -704
OBJECT_ALREADY_EXISTS: Final = -705
LEASE_EXPIRED: Final = -707
TRANSFER_FAIL: Final = -800
RPC_FAIL: Final = -900
RPC_TIMEOUT: Final = -901
UNAVAILABLE_IN_CURRENT_STATUS: Final = -1010
NOT_SUPPORTED: Final = -1012
FILE_NOT_FOUND: Final = -1100

# -200 is the one code on which connectors back off, so it stands for all that passes by storing less: a daemon that is too
# busy to answer, too.
_OF_PUT: Final = {
    PutStatus.STORED: OK,
    PutStatus.EXISTS: OK,
    PutStatus.ALL_PINNED: NO_AVAILABLE_HANDLE,
    PutStatus.NO_EXTENT_FITS: NO_AVAILABLE_HANDLE,
    PutStatus.NO_LINE: NO_AVAILABLE_HANDLE,
    PutStatus.LIMIT: NO_AVAILABLE_HANDLE,
    PutStatus.COLD: NO_AVAILABLE_HANDLE,
    PutStatus.TOO_LARGE: INVALID_PARAMS,
    PutStatus.NO_POOL: RPC_FAIL,
    PutStatus.READ_ONLY: ILLEGAL_CLIENT,
    PutStatus.NOT_GRANTED: WRITE_FAIL,
    PutStatus.NO_PARENT: WRITE_FAIL,
    PutStatus.NOT_READY: UNAVAILABLE_IN_CURRENT_STATUS,
    PutStatus.DRAINING: UNAVAILABLE_IN_CURRENT_STATUS,
    PutStatus.GONE: RPC_FAIL,
    PutStatus.LATE: NO_AVAILABLE_HANDLE,
}

_said: set[str] = set()
_said_lock = threading.Lock()


class Waited(int):
    """A code of a put that waited for room until its deadline, in vain: so would the next one."""


def of_put(status: PutStatus) -> int:
    """A put of a key that is there is a success, as it is in Mooncake's client."""
    code = _OF_PUT.get(status, WRITE_FAIL)
    return Waited(code) if status in (PutStatus.ALL_PINNED, PutStatus.LATE) else code


def of_batch(puts: Iterable[Callable[[], int]]) -> list[int]:
    """What puts answer, one after the other. Once one waited in vain, those after it are not tried: a batch waits once."""
    results: list[int] = []
    for put in puts:
        results.append(results[-1] if results and isinstance(results[-1], Waited) else put())
    return [int(code) for code in results]


def of_error(error: Exception) -> int:
    """What a call answers instead of raising: connectors look at numbers."""
    match error:
        case lapis_kv.GoneError() | lapis_kv.ConnectError():
            once("gone", "the Lapis daemon does not answer (%s): calls answer misses and %d until it is back", error, RPC_FAIL)
            return RPC_FAIL
        case lapis_kv.LateError():
            once("late", "the Lapis daemon is slow to answer (%s)", error)
            return RPC_TIMEOUT
        case lapis_kv.ForkedError():
            once("forked", "%s", error)
            return ILLEGAL_CLIENT
        case lapis_kv.ClosedError():
            return INVALID_PARAMS
        case ValueError():
            log.error("%s", error)
            return INVALID_PARAMS
        case lapis_kv.ViewsError():
            return NO_AVAILABLE_HANDLE
    log.warning("lapis: %s", error)
    return INTERNAL_ERROR


def once(topic: str, message: str, *args: object) -> None:
    """A warning that a process gives one time for each topic."""
    with _said_lock:
        if topic in _said:
            return
        _said.add(topic)
    log.warning(message, *args)
