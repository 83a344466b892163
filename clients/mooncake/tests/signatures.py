"""Prints the signatures of the real `mooncake.store`, or of ours, as JSON: {class: {member: signature}}.

Run by the interpreter of an environment that has the one or the other. A signature is the names, kinds and defaults of the
arguments: "(key, value, config=ReplicateConfig())", a plain "property", or a number for a word of an enumeration.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import mooncake.store

_SPECIAL = ("__enter__", "__exit__", "__len__")
# Of pybind11's line: name, annotation, default.
_ARGUMENT = re.compile(r"(?P<name>\*{0,2}\w+)(?:: (?P<type>[^=]*))?(?: = (?P<default>.*))?$")


def of_module() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"": {}}
    for name, value in vars(mooncake.store).items():
        if inspect.isclass(value):
            if not name.startswith("_"):
                found[name] = dict(sorted(_of_class(value)))
        elif callable(value) and (not name.startswith("_") or name.startswith(("_serialize", "_deserialize", "_tensor"))):
            found[""][name] = _signature(value)
        elif hasattr(value, "value") and hasattr(value, "name"):
            found[""][name] = f"{type(value).__name__}.{value.name}"
    return found


def _of_class(cls: type) -> list[tuple[str, str]]:
    members = []
    words = getattr(cls, "__members__", {})
    for name in dir(cls):
        if name.startswith("_") and name not in _SPECIAL or words and name in ("name", "value"):
            continue
        value = inspect.getattr_static(cls, name)
        if name in words:
            members.append((name, str(int(words[name]))))
        elif name in _SPECIAL:
            if not words:
                members.append((name, "()"))
        elif callable(getattr(cls, name)):
            members.append((name, _signature(getattr(cls, name))))
        else:
            members.append((name, "property"))
    if not words:
        members += [(name, "property") for name in _fields(cls) if name not in dict(members)]
        members.append(("__init__", _constructor(cls)))
    return members



def _fields(cls: type) -> list[str]:
    """What instances have: as the class declares it, or as one made without arguments shows."""
    try:
        made = vars(cls()) if _constructor(cls) == "()" else {}
    except TypeError:
        made = {}
    return [name for name in {**made, **cls.__dict__.get("__annotations__", {})} if not name.startswith("_")]


def _constructor(cls: type) -> str:
    doc = cls.__init__.__doc__ or ""
    if doc.startswith("__init__("):
        return _of_doc(doc)
    if "pybind11_object" in [base.__name__ for base in cls.__mro__]:
        return "none"
    return _signature(cls.__init__) if "__init__" in vars(cls) else "()"


def _signature(value: Any) -> str:
    doc = (value.__doc__ or "").strip()
    if value.__name__ == "setup":
        # Two forms, which both modules tell in their docstrings.
        forms = re.findall(r"setup\(([^()]*)\)", doc.replace("(*args, **kwargs)", ""))
        return " or ".join(_of_doc(" ".join(f"setup({form})".split())) for form in forms)
    if re.match(rf"{value.__name__}\(.*\)( -> .*)?$", doc.splitlines()[0] if doc else ""):
        return _of_doc(doc)
    arguments = [one for one in inspect.signature(value).parameters.values() if one.name != "self"]
    return f"({', '.join(_argument(one) for one in arguments)})"


def _argument(one: inspect.Parameter) -> str:
    star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    # A name that cannot be given is no part of the signature.
    name = "_" if one.kind is one.POSITIONAL_ONLY else star + one.name
    return name if one.default is one.empty else f"{name}={_default(repr(one.default))}"


def _of_doc(doc: str) -> str:
    line = doc.splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")") if " -> " not in line else line.rindex(") -> ")]
    found = [_ARGUMENT.match(part) for part in _split(inside)]
    arguments = [part for part in found if part is not None and part["name"] != "self"]
    rendered = [("_" if re.fullmatch(r"arg\d+", part["name"]) else part["name"], part["default"]) for part in arguments]
    return f"({', '.join(name if default is None else f'{name}={_default(default)}' for name, default in rendered)})"


def _default(text: str) -> str:
    return "ReplicateConfig()" if "ReplicateConfig object" in text else text.replace("'", '"')


def _split(inside: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(inside):
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and depth == 0:
            parts.append(inside[start:at].strip())
            start = at + 1
    return [part for part in [*parts, inside[start:].strip()] if part]


if __name__ == "__main__":
    print(json.dumps(of_module(), indent=1))
