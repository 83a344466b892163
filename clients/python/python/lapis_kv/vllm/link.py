"""The client of an engine that goes on without a daemon: none, or a hung one, is no cache and one warning."""

import logging
import os
import threading

import lapis_kv

# Below vLLM's own logger: its form, its level.
logger = logging.getLogger("vllm.lapis")

# Between attempts to connect: twice as long each time. A daemon may be late only because an engine's start keeps all cores busy.
_RETRY_SECONDS = 0.5
_RETRY_SECONDS_MAX = 5.0
# How often a daemon is asked whether it answers, and how long it may take: longer than a busy host needs.
_PING_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
DEFAULT_SOCKET = "/run/lapis/lapis.sock"


def socket_of(given: str | None) -> str:
    return str(given or os.environ.get("LAPIS_SOCKET") or DEFAULT_SOCKET)


class Link:
    """Connects in the background, again and again until it succeeds; from then on the client keeps itself connected, and a
    thread of the link sees whether the daemon still answers.

    `opened(client)` makes what the caller wants of it, its pools say; until it has returned there is no client. One link of
    an engine warns (`warns`): the others of it speak of the same daemon. `gpus`: blocks are wanted on a GPU of CUDA.
    """

    def __init__(self, path: str, name: str, opened, warns: bool = True, gpus: bool = False):
        self._path, self._name, self._opened = path, name, opened
        self._level = logging.WARNING if warns else logging.INFO
        self._gpus, self._serves_gpus = gpus, False
        self._client, self._made = None, None
        self._hangs, self._trouble = False, None
        self._stop = threading.Event()
        self._try()
        self._thread = threading.Thread(target=self._run, name="lapis-link", daemon=True)
        self._thread.start()

    def _try(self):
        client = None
        try:
            client = lapis_kv.Client(self._path, name=self._name, gpus=self._gpus)
            self._made = self._opened(client)
            if self._gpus:
                self._heard(lapis_kv.status(self._path, deadline=_ANSWER_SECONDS))
        except Exception as error:
            if client is not None:
                client.close()
            # What no waiting mends is said at any rate, and by each.
            transient = isinstance(error, lapis_kv.LapisError) and error.is_transient
            level = self._level if transient else logging.WARNING
            self._say("no KV cache from Lapis yet, the engine goes on without", error, level)
            return
        self._client = client
        self._trouble = None
        self._say_well()

    def _run(self):
        pause = _RETRY_SECONDS
        while not self._stop.wait(pause if self._client is None else _PING_SECONDS):
            if self._client is None:
                pause = min(2 * pause, _RETRY_SECONDS_MAX)
                self._try()
            else:
                self._ping()

    def _ping(self):
        try:
            self._heard(lapis_kv.status(self._path, deadline=_ANSWER_SECONDS))
        except lapis_kv.LapisError as error:
            # Without a daemon what is in memory is there still; one that hangs holds up whoever asks it.
            self._hangs = isinstance(error, lapis_kv.LateError)
            what = "Lapis does not answer, the engine goes on without" if self._hangs else "no daemon of Lapis any more"
            self._say(what, error, self._level)
            return
        self._hangs = False
        if self._trouble is not None:
            self._trouble = None
            self._say_well()

    def _heard(self, status):
        self._serves_gpus = self._gpus and any(gpu["state"] == "well" for gpu in status.get("gpus", ()))

    def _say(self, what: str, error, level: int):
        """Once, until all is well again or something else is wrong."""
        if self._trouble != what:
            self._trouble = what
            logger.log(level, "%s: %s (%s, %s)", what, error, self._path, self._name)

    def _say_well(self):
        logger.info("KV cache from Lapis at %s (%s)", self._path, self._name)

    @property
    def client(self):
        """The client, or None as long as there is none or its daemon hangs."""
        return None if self._hangs else self._client

    @property
    def serves_gpus(self) -> bool:
        """Whether the daemon has a tier on GPUs, and blocks are wanted there; as it last said."""
        return self._serves_gpus

    @property
    def made(self):
        """What `opened` returned."""
        return self._made

    def close(self):
        self._stop.set()
        client, self._client = self._client, None
        if client is not None:
            client.close()
