"""SGLang's unmodified Mooncake storage on the drop-in, where there is torch: see `sglang_connector.py`."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("TORCH_PYTHON")
HOME = HERE.parents[2] / "target/mooncake"


@pytest.mark.skipif(PYTHON is None, reason="TORCH_PYTHON names no interpreter with torch (that of vLLM's environment)")
def test_sglangs_storage_puts_gets_and_survives_eviction_and_restarts():
    assert PYTHON is not None
    environment = {**os.environ, "PYTHONPATH": str(HOME / "connectors")}
    command = [PYTHON, HERE / "sglang_connector.py", HOME / "sglang"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0 and "all scenes passed" in ran.stdout, ran.stdout[-2000:] + ran.stderr[-4000:]
    for scene in ("put, exist, get", "put again", "without a daemon", "restart", "eviction"):
        assert ran.stdout.count(f"\n{scene}") == 2, f"{scene}, with groups and without"
