"""Tensors as objects: a header with dtype and shape, then the elements in C order.

    0  magic         b"lapis-t1"
    8  header_bytes  u32, a multiple of 64: where the elements start
   12  framework     u8, 0 numpy, 1 torch
   13  dimensions    u8
   14  0             u16
   16  dtype         16 bytes of ASCII, padded with zeros
   32  shape         u64 for each dimension, padded with zeros

Numbers are little-endian. Neither numpy nor torch is imported before it is needed; torch never is.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

from . import _lapis
from ._lapis import Pool, PutStatus, Wait

_MAGIC = b"lapis-t1"
_HEAD = struct.Struct("<8sIBBH16s")
_ALIGNMENT = 64
_FRAMEWORKS = ("numpy", "torch")
_DIMENSIONS_MAX = 64

# Bytes of an element of each type that numpy has no type for.
_FOREIGN_BYTES = {
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex32": 4,
}
_NATIVE_BYTES = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
_BYTES = _FOREIGN_BYTES | _NATIVE_BYTES


def put(
    client: _lapis.Client, pool: Pool, name: bytes | str, tensor: Any, dtype: str | None, deadline: float | None
) -> PutStatus:
    if hasattr(tensor, "data_ptr"):
        framework, own, item_bytes = "torch", str(tensor.dtype).removeprefix("torch."), int(tensor.element_size())
    elif hasattr(tensor, "__array_interface__") and hasattr(tensor, "dtype"):
        framework, own, item_bytes = "numpy", dtype_name(tensor), int(tensor.dtype.itemsize)
    else:
        kind = type(tensor).__name__
        raise TypeError(f"tensor is a {kind}: expected a numpy array or a torch tensor; other bytes go by put_object")
    dtype = dtype or own
    if _BYTES.get(dtype) != item_bytes:
        known = ", ".join(sorted(name for name, size in _BYTES.items() if size == item_bytes))
        raise TypeError(f"dtype {dtype!r} with elements of {item_bytes} bytes: expected one of {known or 'none of that size'}")
    header = _header(framework, dtype, tuple(int(length) for length in tensor.shape))
    return client.put_object(pool, name, [header, tensor], deadline=deadline)


def get(
    client: _lapis.Client,
    pool: Pool,
    name: bytes | str,
    framework: str | None,
    take: bool,
    wait: Wait,
    deadline: float | None,
) -> Any:
    if framework not in (None, *_FRAMEWORKS):
        raise ValueError(f'framework {framework!r}: expected "numpy", "torch" or None')
    if framework == "torch" and "torch" not in sys.modules:
        raise ValueError('framework "torch": torch is not imported in this process; import it first')
    data = client.get_object(pool, name, take=take, wait=wait, deadline=deadline)
    if data is None:
        return None
    try:
        was, dtype, shape, start = _parse(data, name)
    except ValueError:
        if take:
            # Nobody asked for what it is, so nobody has taken it.
            client.put_object(pool, name, data, deadline=deadline)
        raise
    framework = framework or was
    if framework == "torch" and hasattr(sys.modules.get("torch"), dtype):
        return _torch(data, dtype, shape, start)
    return _numpy(data, dtype, shape, start)


def dtype_name(array: Any) -> str:
    """The name of an array's element type, also of those that numpy does not have: "float32", "bfloat16"."""
    dtype = array.dtype
    name = (getattr(dtype, "metadata", None) or {}).get("lapis", str(getattr(dtype, "name", dtype)))
    if getattr(dtype, "isnative", True) is False:
        raise TypeError(f"dtype {dtype} is of foreign byte order: give array.astype(array.dtype.newbyteorder('='))")
    return str(name).removeprefix("torch.")


def _header(framework: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    if len(shape) > _DIMENSIONS_MAX:
        raise ValueError(f"a tensor of {len(shape)} dimensions: expected at most {_DIMENSIONS_MAX}")
    needed = _HEAD.size + 8 * len(shape)
    header_bytes = -(-needed // _ALIGNMENT) * _ALIGNMENT
    head = _HEAD.pack(_MAGIC, header_bytes, _FRAMEWORKS.index(framework), len(shape), 0, dtype.encode())
    return (head + struct.pack(f"<{len(shape)}Q", *shape)).ljust(header_bytes, b"\0")


def _parse(data: memoryview, name: bytes | str) -> tuple[str, str, tuple[int, ...], int]:
    """Framework, dtype, shape and where the elements start."""
    wrong = ValueError(f"the object {name!r} is no tensor: read it with get_object")
    if len(data) < _HEAD.size:
        raise wrong
    magic, start, framework, dimensions, _, dtype_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC or start % _ALIGNMENT or start > len(data) or _HEAD.size + 8 * dimensions > start or framework >= len(_FRAMEWORKS):
        raise wrong
    shape = struct.unpack_from(f"<{dimensions}Q", data, _HEAD.size)
    dtype = dtype_bytes.rstrip(b"\0").decode("ascii", "replace")
    if math.prod(shape) * _BYTES.get(dtype, 0) != len(data) - start or dtype not in _BYTES:
        raise wrong
    return _FRAMEWORKS[framework], dtype, shape, start


def _numpy(data: memoryview, dtype: str, shape: tuple[int, ...], start: int) -> Any:
    import numpy

    if dtype in _NATIVE_BYTES:
        element = numpy.dtype(dtype)
    else:
        element = numpy.dtype(f"u{_FOREIGN_BYTES[dtype]}", metadata={"lapis": dtype})
    return numpy.ndarray(shape, element, buffer=data, offset=start)


def _torch(data: memoryview, dtype: str, shape: tuple[int, ...], start: int) -> Any:
    torch = sys.modules["torch"]
    element = getattr(torch, dtype)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=element)
    return torch.frombuffer(data, dtype=element, offset=start).reshape(shape)
