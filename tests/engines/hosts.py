"""A daemon and its holder, and engines over them, for one test."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lapis_kv

HERE = Path(__file__).resolve().parent
BINARY = Path(os.environ.get("LAPIS_BINARY", HERE.parents[1] / "target/release/lapis"))
MIB = 1 << 20
# A first request of an engine on two busy cores.
PATIENCE = 240.0
# A line of a link; see lapis_kv/vllm/link.py.
LINK = re.compile(
    r"(?P<what>no KV cache from Lapis yet|KV cache from Lapis at|no daemon of Lapis any more|Lapis does not answer)"
    r".*[(, ](?P<name>vllm (scheduler|worker \d+))\)"
)
# Of the daemon: from the end of a block's write to its line.
LIST_AFTER = 0.02


class Host:
    """`lapis hold` and `lapis serve`, with an SSD file."""

    def __init__(self, folder: Path, ssd: bool = True):
        self.folder, self.ssd = folder, ssd
        self.socket, self.log = folder / "lapis.sock", folder / "daemon.log"
        self.holder = self.daemon = None

    def start(self, wait: bool = True):
        hold = self.folder / "hold.sock"
        if self.holder is None:
            hold.unlink(missing_ok=True)
            self.holder = self._run("hold", str(hold))
            _until(hold.exists, "the holder's socket")
        flags = ["--server-socket", self.socket, "--hold-socket", hold, "--dram-bytes", f"{64 * MIB}B", "--metrics-listen", "off"]
        if self.ssd:
            flags += ["--ssd-paths", self.folder / "lapis.ssd", "--ssd-bytes", f"{512 * MIB}B"]
            flags += ["--ssd-list-after", f"{int(LIST_AFTER * 1000)}ms", "--ssd-write-back-ahead", f"{64 * MIB}B"]
        self.daemon = self._run("serve", *map(str, flags))
        if wait:
            _until(lambda: self.status() is not None, "the daemon")
        return self

    def _run(self, *command):
        with open(self.log, "a") as log:
            return subprocess.Popen([BINARY, *command], stdout=log, stderr=log)

    def status(self):
        told = subprocess.run(
            [BINARY, "status", "--json", "--socket", self.socket], capture_output=True, text=True, check=False
        )
        return json.loads(told.stdout) if told.returncode == 0 else None

    @contextlib.contextmanager
    def stopped(self, seconds: float | None = None):
        """A daemon that hangs, meanwhile; no longer than so many seconds."""
        daemon = self.daemon
        goes_on = threading.Timer(seconds or threading.TIMEOUT_MAX, daemon.send_signal, [signal.SIGCONT])
        daemon.send_signal(signal.SIGSTOP)
        if seconds is not None:
            goes_on.start()
        try:
            yield
        finally:
            goes_on.cancel()
            daemon.send_signal(signal.SIGCONT)

    def kill(self, holder: bool = False):
        """`kill -9` of the daemon, and of the holder of its memory."""
        for name in ["daemon"] + ["holder"] * holder:
            process = getattr(self, name)
            if process is not None:
                process.kill()
                process.wait()
            setattr(self, name, None)

    def renew(self, clients: int = 0):
        """An empty daemon at the same socket, once so many clients have found it."""
        self.kill(holder=True)
        (self.folder / "lapis.ssd").unlink(missing_ok=True)
        return self.start().met(clients)

    def met(self, clients: int):
        _until(lambda: len(self.status()["clients"]) >= clients, f"{clients} clients of the daemon")
        return self

    def serves_ssd(self):
        """What is on SSD is found behind a start: until then its blocks are misses, and its counts 0."""
        _until(lambda: self.status()["ssd"]["state"] == "serving", "the SSD tier")
        return self

    def written_ahead(self) -> int:
        """How many blocks there are, once all of them are on SSD as well and their lines too: a kill loses none.

        What goes there ahead of need is looked through whenever the daemon has done so much: small blocks give it to do.
        """
        blocks, seen, since, at = self.status()["ssd"]["blocks_dram_only"], None, time.monotonic(), 0
        with lapis_kv.Client(self.socket, name="filler") as client:
            pool = client.pool(lapis_kv.Namespace("filler"), "filler", 4096)

            def at_rest():
                nonlocal seen, since, at
                ssd = self.status()["ssd"]
                if ssd["blocks_both"] <= blocks:
                    at += 1
                    client.put_from(pool, at.to_bytes(32), bytes(4096))
                now = (ssd["blocks_both"], ssd["device_written_bytes"])
                if now != seen:
                    seen, since = now, time.monotonic()
                return ssd["blocks_both"] > blocks and time.monotonic() - since > 10 * LIST_AFTER

            _until(at_rest, "all blocks to be on SSD", pause=0.002)
        return blocks

    def close(self):
        self.kill(holder=True)


class Engine:
    """One vLLM; see engine.py. It is awaited at the first order, so that several start at once."""

    def __init__(self, model: Path, transfer: dict | None = None, tp: int = 1, fault: Path | None = None, env=None, **more):
        options = json.dumps({"model": str(model), "transfer": transfer, "tp": tp, **more})
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        env = {**(env or os.environ), "PYTHONPATH": path, "LAPIS_TEST_FAULT": str(fault or "/nonexistent")}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "engine.py", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True,
        )
        self.log, self._answers = [], []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self._is_ready, self._links = False, 1 + tp

    def ready(self):
        if not self._is_ready:
            assert self._answer() == "ready"
            self._is_ready = True
        return self

    def linked(self):
        """Once it and all its ranks have a daemon that answers, as their last lines say.

        On a busy machine the first attempt may be late; and a link asks every 2 s whether its daemon is there, so that one of
        them, or all, or none of them has seen that the daemon was another one for a while.
        """
        self.ready()
        _until(lambda: list(self._said_last().values()) == [True] * self._links, "all links of the engine")
        return self

    def _said_last(self) -> dict[str, bool]:
        """Whether each link that has said anything said last that all is well."""
        with self._changed:
            said = [LINK.search(line) for line in self.log]
        return {found["name"]: found["what"].startswith("KV cache") for found in said if found}

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                if line.startswith("@"):
                    self._answers.append(json.loads(line[1:]))
                else:
                    self.log.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._answers.append(None)
            self._changed.notify_all()

    def _answer(self, within: float = PATIENCE):
        with self._changed:
            came = self._changed.wait_for(lambda: self._answers, within)
            answer = self._answers.pop(0) if came else None
        if answer is None:
            raise AssertionError("no answer of the engine:\n" + "\n".join(self.log[-80:]))
        return answer

    def _do(self, within: float = PATIENCE, **order):
        self.ready()
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer(within)

    def generate(self, prompts, within: float = PATIENCE):
        return self._do(within, do="generate", prompts=prompts)

    def forget(self):
        """Forgets the engine's own blocks, once those of finished requests are saved: what hits then comes from Lapis."""
        _until(lambda: self._do(do="reset"), "the engine's blocks to be free")

    def forget_all(self):
        """And those in Lapis, as after a change of the weights."""
        _until(lambda: self._do(do="reset", lapis=True), "the engine's blocks to be free")

    def metrics(self) -> dict:
        """Counters of vLLM that are Lapis's, by name."""
        return self._do(do="metrics")

    def lines(self, text: str) -> list[str]:
        """What it has logged with this text."""
        with self._changed:
            return [line for line in self.log if text in line]

    def said(self, text: str, times: int = 1):
        """Waits until it has logged this so many times."""
        _until(lambda: len(self.lines(text)) >= times, f"{text!r} of the engine")

    def close(self):
        # Shown where a test failed.
        print(*self.lines("apis"), sep="\n")
        # With its core and workers; an orderly end of vLLM takes 5 s.
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def connector(host, name: str = "LapisConnector", policy: str = "recompute", **extra) -> dict:
    module = "lapis_kv.vllm.connector" if name == "LapisConnector" else "faulty"
    return {
        "kv_connector": name, "kv_connector_module_path": module, "kv_role": "kv_both", "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {"lapis.socket": str(host.socket), **{f"lapis.{key}": value for key, value in extra.items()}},
    }


def prompts() -> list[list[int]]:
    """Two prompts that share five blocks of 32 tokens."""
    first = [(at * 37 + 11) % 500 + 3 for at in range(200)]
    return [first, first[:160] + [(at * 53 + 7) % 500 + 3 for at in range(60)]]


def _until(holds, what: str, within: float = 60.0, pause: float = 0.05):
    until = time.monotonic() + within
    while not holds():
        assert time.monotonic() < until, f"waited {within} s for {what}"
        time.sleep(pause)
