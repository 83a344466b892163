"""`conformance.md` against the two modules: the real one, in an environment of its own, and this wheel's."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parent / "conformance.md"
REAL = pathlib.Path(os.environ.get("MOONCAKE_REAL_PYTHON", HERE.parents[2] / "target/mooncake/real/bin/python"))
MODULE = ""


class Row(NamedTuple):
    signature: str
    verdict: str
    why: str


def signatures(python: str | pathlib.Path) -> dict[tuple[str, str], str]:
    """What may be called: without the constructors of what a module gives out itself."""
    ran = subprocess.run([python, HERE / "signatures.py"], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return {
        (name, member): signature
        for name, members in json.loads(ran.stdout).items()
        for member, signature in members.items()
        if signature != "none"
    }


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], Row]:
    rows: dict[tuple[str, str], Row] = {}
    section = None
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").replace("Module", MODULE)
        elif section is not None and (row := re.fullmatch(r"\| (\S+) \| `(.*)` \| (\w+) \| (.*) ?\|", line)):
            assert (section, row[1]) not in rows, f"{section}.{row[1]} is there twice"
            rows[section, row[1]] = Row(row[2], row[3], row[4].strip())
    return rows


@pytest.fixture(scope="module")
def ours() -> dict[tuple[str, str], str]:
    return signatures(sys.executable)


def test_the_table_has_every_member_of_the_real_module_with_its_signature(table):
    if not REAL.exists():
        pytest.skip("the wheel mooncake-transfer-engine-non-cuda is not here: its signatures are those of the table")
    real = signatures(REAL)
    assert {member: row.signature for member, row in table.items()} == real


def test_what_the_table_calls_the_same_is_the_same_and_what_it_calls_absent_is_absent(table, ours):
    wrong = []
    for member, row in table.items():
        match row.verdict:
            case "same":
                wrong += [member] if ours.get(member) != row.signature or row.why else []
            case "differs":
                wrong += [member] if member not in ours or not row.why else []
            case "absent":
                wrong += [member] if member in ours or not row.why else []
            case _:
                wrong.append(member)
    assert not wrong


def test_there_is_nothing_that_the_table_does_not_have(table, ours):
    # What only the real module can make has a constructor here.
    assert {member for member in ours if member not in table and member[1] != "__init__"} == set()


def test_its_counts_are_those_of_its_rows(table, ours):
    counts = Counter(row.verdict for row in table.values())
    differ = sum(row.verdict == "differs" and ours[member] != row.signature for member, row in table.items())
    assert differ == 1, "say in the first lines how many signatures differ"
    line = f"**{counts['same']} same, {counts['differs']} differ (one of them in its signature), {counts['absent']} absent**"
    assert line in TABLE.read_text()
