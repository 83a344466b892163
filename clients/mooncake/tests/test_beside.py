"""Another wheel's `mooncake` in the same place is said at the import, not found out later."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import mooncake

PACKAGE = pathlib.Path(mooncake.__file__).parent


def ran(site: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(site)!r})"
    command = [sys.executable, "-c", f"{code}; {'; '.join(arguments)}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_import_fails_with_what_to_do_where_the_real_wheel_is_installed_too(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mooncake")
    assert ran(tmp_path, "import mooncake.store").returncode == 0
    (tmp_path / "mooncake/store.so").write_bytes(b"")
    told = ran(tmp_path, "import mooncake.store").stderr
    assert "ImportError" in told and "pip uninstall -y lapis-mooncake" in told and str(tmp_path / "mooncake/store.so") in told
    (tmp_path / "mooncake/store.so").unlink()
    other = tmp_path / "mooncake_transfer_engine-0.3.13.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: mooncake-transfer-engine\nVersion: 0.3.13\n")
    (other / "top_level.txt").write_text("mooncake\n")
    told = ran(tmp_path, "import mooncake.store").stderr
    assert "ImportError" in told and "mooncake-transfer-engine" in told


def test_a_command_tells_which_store_an_import_gives(tmp_path):
    told = subprocess.run([sys.executable, "-m", "lapis_mooncake.beside"], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "a Lapis daemon" in told.stdout
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake/__init__.py").write_text("")
    (tmp_path / "mooncake/store.so").write_bytes(b"")
    told = ran(tmp_path, "from lapis_mooncake import beside", "sys.exit(beside.main())")
    assert told.returncode == 1 and "not Lapis" in told.stdout
