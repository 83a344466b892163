"""Mooncake's package name, as far as `mooncake.store` goes, over a Lapis daemon (wheel lapis-mooncake)."""

from lapis_mooncake import beside

# Python prefers a compiled store.so to store.py: the other wheel's store would be imported, and nothing would say so.
if beside.other_wheels() or beside.other_files(__path__):
    raise ImportError(beside.complaint(__path__))

from mooncake.store import BufferPool, RegisteredBufferPool  # noqa: E402

__all__ = ["BufferPool", "RegisteredBufferPool"]
