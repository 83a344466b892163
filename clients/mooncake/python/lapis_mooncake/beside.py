"""Whether another wheel's `mooncake` is installed beside this one, and which store an import gives.

`python -m lapis_mooncake.beside` tells, and ends with 1 if it is not the one over Lapis.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Iterable

_OURS = "lapis-mooncake"


def other_wheels() -> list[str]:
    """Installed distributions that bring a `mooncake` of their own."""
    try:
        names = importlib.metadata.packages_distributions().get("mooncake", [])
    except (OSError, ValueError, KeyError):
        return []
    return sorted({name for name in names if name.lower().replace("_", "-") != _OURS})


def other_files(path: Iterable[str]) -> list[str]:
    """Compiled stores that Python would prefer to `store.py`."""
    return sorted(str(file) for folder in path for file in pathlib.Path(folder).glob("store*.so"))


def complaint(path: Iterable[str]) -> str:
    others = " and ".join(other_wheels() + other_files(path))
    return (
        f"mooncake of the wheel {_OURS} (a Lapis daemon's store) lies in the same place as {others}: "
        "which of the two stores an engine gets would be chance. "
        f"Uninstall both, then install the one that you want: pip uninstall -y {' '.join([_OURS, *other_wheels()])}"
    )


def main() -> int:
    try:
        spec = importlib.util.find_spec("mooncake.store")
    except ImportError as error:
        print(error)
        return 1
    origin = str(spec.origin) if spec else "nothing"
    is_ours = origin.endswith("store.py")
    print(f"import mooncake.store gives {origin}: {'a Lapis daemon' if is_ours else 'not Lapis'}")
    return 0 if is_ours else 1


if __name__ == "__main__":
    sys.exit(main())
