"""A real daemon for tests and benches: `lapis hold` and `lapis serve` in a temporary folder."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lapis_kv

ROOT = pathlib.Path(__file__).resolve().parents[3]
PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.001
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def binary() -> pathlib.Path:
    return pathlib.Path(os.environ.get("LAPIS_BINARY", ROOT / "target/release/lapis"))


def eventually(what: str, look: Callable[[], Any]) -> Any:
    """What `look` gives as soon as it is true."""
    until = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < until, f"waited {PATIENCE_S} s for {what}"
        time.sleep(_LOOK_EVERY_S)
    return seen


def patiently(call: Callable[[], Any]) -> Any:
    """Calls again what a busy machine was too slow for: the welcome and the opening of a pool have a second each."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except lapis_kv.LapisError as error:
            if not error.is_transient or time.monotonic() > until:
                raise


class Host:
    """The pair. Killed and removed by `end`, and by the kernel when this process ends."""

    def __init__(self, dram: str = "64MiB", *flags: str) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lapis-py-"))
        self.socket = self.folder / "lapis.sock"
        self._dram, self._flags = dram, flags
        self._daemon: subprocess.Popen[bytes] | None = None
        self._holder = self._spawn("hold", self.folder / "hold.sock")
        eventually("the holder", lambda: _listens(self.folder / "hold.sock"))
        self.start()

    def start(self) -> None:
        """Starts the daemon; returns when it answers."""
        self._daemon = self._spawn(
            "serve",
            *("--server-socket", self.socket),
            *("--dram-bytes", self._dram),
            *("--hold-socket", self.folder / "hold.sock"),
            *("--metrics-listen", "off"),
            # A busy machine is no failure: calls that test a deadline name theirs.
            *("--client-get-deadline", "30s"),
            *("--client-put-deadline", "60s"),
            *self._flags,
        )
        eventually("the daemon", lambda: self._is_up())

    def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None

    def pause(self) -> None:
        """The daemon stands still from now on."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        for process in (self._daemon, self._holder):
            if process is not None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, **options: object) -> lapis_kv.Client:
        return patiently(lambda: lapis_kv.Client(self.socket, **options))

    def _is_up(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, (self.folder / "serve.log").read_text()
        try:
            return bool(lapis_kv.status(self.socket))
        except lapis_kv.LapisError:
            return False

    def _spawn(self, command: str, *arguments: object) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAPIS_")}
        with open(self.folder / f"{command}.log", "ab") as log:
            return subprocess.Popen(
                [binary(), command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                process_group=0,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )


def _listens(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
