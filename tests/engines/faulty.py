"""LapisConnector with faults between look-up and load, by what a file says: for tests.

`lose`: the middle block of each load is removed from Lapis just before. `kill PID`: the process is killed just before.
"""

import os
import signal
from pathlib import Path

from lapis_kv.vllm.connector import LapisConnector
from lapis_kv.vllm.worker import Worker

FAULT = Path(os.environ["LAPIS_TEST_FAULT"])


class _FaultyWorker(Worker):
    def _load_part(self, part, *given):
        fault = FAULT.read_text().split() if FAULT.exists() else []
        if fault[:1] == ["lose"]:
            middle = len(part.block_ids) // 2
            pool = self._pool(self._groups[part.group])
            self._link.client.remove(pool, part.keys[32 * middle : 32 * middle + 32])
        if fault[:1] == ["kill"]:
            os.kill(int(fault[1]), signal.SIGKILL)
            FAULT.unlink()
        return super()._load_part(part, *given)


class FaultyConnector(LapisConnector):
    worker_class = _FaultyWorker
