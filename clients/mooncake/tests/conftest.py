"""Scenes of the tests: the hosts of the Python client's tests, and stores on them."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from lapis_mooncake import codes

_PYTHON = pathlib.Path(__file__).resolve().parents[2] / "python/tests"
for _name in ("host", "cuda"):
    _spec = importlib.util.spec_from_file_location(_name, _PYTHON / f"{_name}.py")
    assert _spec is not None and _spec.loader is not None
    sys.modules[_name] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)

import host as pair  # noqa: E402
from mooncake.store import MooncakeDistributedStore  # noqa: E402

_numbers = itertools.count()


class Host(pair.Host):
    """The pair of the Python client's tests, which can also lose its memory, or ask for less patience.

    Mooncake's calls name no deadline, so that the daemon's default is theirs.
    """

    def __init__(self, dram: str, *flags: str, put_deadline: str | None = None) -> None:
        self._put_deadline = put_deadline
        super().__init__(dram, *flags)

    def _spawn(self, command: str, *arguments: object) -> subprocess.Popen[bytes]:
        words = list(arguments)
        if self._put_deadline is not None and "--client-put-deadline" in words:
            words[words.index("--client-put-deadline") + 1] = self._put_deadline
        return super()._spawn(command, *words)

    def lose_memory(self) -> None:
        """SIGKILL of the holder, and a new one with nothing to hold."""
        self._holder.kill()
        self._holder.wait()
        (self.folder / "hold.sock").unlink(missing_ok=True)
        self._holder = self._spawn("hold", self.folder / "hold.sock")
        pair.eventually("the holder", lambda: pair._listens(self.folder / "hold.sock"))


class Block:
    """Host memory by address, registered with a store or not."""

    def __init__(self, size: int, fill: bytes = b"") -> None:
        self.array = (ctypes.c_ubyte * size)()
        self.ptr, self.size = ctypes.addressof(self.array), size
        self.array[: len(fill)] = fill

    def __bytes__(self) -> bytes:
        return bytes(self.array)


@pytest.fixture(autouse=True)
def warned(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What a process warns of once, it warns of once a test."""
    said: set[str] = set()
    monkeypatch.setattr(codes, "_said", said)
    return said


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
def impatient_host() -> Iterator[Host]:
    """For tests of puts that wait in vain."""
    host = Host("32MiB", put_deadline="1s")
    yield host
    host.end()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., MooncakeDistributedStore]]:
    """Makes stores that are closed in the end; a tenant each, unless one is given."""
    monkeypatch.delenv("LAPIS_SOCKET", raising=False)
    stores = []

    def open_store(host: Host, tenant: str | None = None) -> MooncakeDistributedStore:
        store = MooncakeDistributedStore()
        tenant = tenant or f"test {next(_numbers)}"
        assert store.setup("me", "P2PHANDSHAKE", 1 << 20, 1 << 20, "tcp", "", f"unix:{host.socket}", tenant_id=tenant) == 0
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(host: Host, opened: Callable[..., MooncakeDistributedStore]) -> MooncakeDistributedStore:
    return opened(host)


@pytest.fixture
def block(store: MooncakeDistributedStore) -> Callable[..., Block]:
    """Registered memory."""

    def make(size: int, fill: bytes = b"") -> Block:
        made = Block(size, fill)
        assert store.register_buffer(made.ptr, size) == 0
        return made

    return make
