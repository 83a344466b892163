"""What `kv_connector_extra_config` may say, checked: a name that is misspelt is an error, not a default."""

import dataclasses
import math

LOADS = ("async", "sync")
_PREFIX = "lapis."


@dataclasses.dataclass(frozen=True)
class Options:
    socket: str | None = None
    load: str = LOADS[0]
    load_seconds: float = 5.0
    save_seconds: float = 10.0
    open_seconds: float = 60.0
    revision: str | None = None
    salt: str = ""
    staged: bool = False


def options_of(extra: dict) -> Options:
    """Raises ValueError that names what was wrong and what may be said."""
    kinds = {field.name: field.type for field in dataclasses.fields(Options)}
    given = {}
    for key, value in extra.items():
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX)
        if name not in kinds:
            raise ValueError(f"kv_connector_extra_config has {key!r}: known are {', '.join(_PREFIX + kind for kind in kinds)}")
        given[name] = _value(key, value, kinds[name])
    if given.get("load", LOADS[0]) not in LOADS:
        raise ValueError(f"lapis.load is {given['load']!r}: choose one of {', '.join(LOADS)}")
    return Options(**given)


def _value(key: str, value, kind):
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}: it is true or false")
        return value
    if kind is float:
        return seconds(key, value)
    if not isinstance(value, str) or (not value and key != "lapis.salt"):
        raise ValueError(f"{key} is {value!r}: it is a text")
    return value


def seconds(key: str, value) -> float:
    """Raises ValueError for what is no time to wait."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}: it is a number of seconds above 0")
    return float(value)
