"""Client of Lapis: KV-cache blocks and objects in memory that one daemon shares with all processes of a host.

    import lapis_kv

    with lapis_kv.Client("/run/lapis/lapis.sock") as client:
        namespace = lapis_kv.Namespace("llama-3-8b", revision="a1b2c3", dtype="bfloat16", tokens_per_block=16)
        pool = client.pool(namespace, "rank0", block_bytes=1 << 20)
        keys = lapis_kv.pack_keys([b"first", b"second"])
        client.put_from(pool, keys, bytearray(2 << 20))
        got = client.get_into(pool, keys, bytearray(2 << 20))

Misses and refused puts are values (`Got`, `Put`, `PutStatus`). A mistake in a call raises ValueError or TypeError; what the
host or the daemon did raises a LapisError. Rules of memory, threads, forks and asyncio: docs/python.md of Lapis.
"""

from ._lapis import (
    KEY_BYTES,
    ClosedError,
    ConnectError,
    DeviceGot,
    DeviceLoad,
    DeviceObjects,
    ForkedError,
    Got,
    GoneError,
    GpuError,
    Hint,
    HitPolicy,
    LapisError,
    LateError,
    Namespace,
    Pool,
    Present,
    ProtocolError,
    Put,
    PutStatus,
    RefusedError,
    Ticket,
    Verify,
    View,
    Views,
    ViewsError,
    Wait,
    __version__,
    key,
    load_cuda,
    pack_keys,
)
from .client import Client, status
from .tensors import dtype_name

__all__ = [
    "KEY_BYTES",
    "Client",
    "ClosedError",
    "ConnectError",
    "DeviceGot",
    "DeviceLoad",
    "DeviceObjects",
    "ForkedError",
    "GoneError",
    "Got",
    "GpuError",
    "Hint",
    "HitPolicy",
    "LapisError",
    "LateError",
    "Namespace",
    "Pool",
    "Present",
    "ProtocolError",
    "Put",
    "PutStatus",
    "RefusedError",
    "Ticket",
    "Verify",
    "View",
    "Views",
    "ViewsError",
    "Wait",
    "__version__",
    "dtype_name",
    "key",
    "load_cuda",
    "pack_keys",
    "status",
]
