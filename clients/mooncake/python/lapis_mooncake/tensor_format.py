"""Mooncake's tensor objects: 304 bytes of metadata, then the elements in C order.

      0  magic "NOOM" u32, version u16, header_bytes u16, dtype i32, dimensions i32, layout_kind u32, flags u32,
         data_offset u64, data_bytes u64
     40  shape of the whole, 8 x i64, -1 past the dimensions
    104  shape of this part, likewise
    168  axes u32, 0 u32, 4 axes of 32 bytes: what part it is

Numbers are little-endian. Only whole tensors are written here. torch is imported where a tensor is made, not before.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import struct
from typing import Any, Final, NamedTuple

from .codes import log, once

_HEAD: Final = struct.Struct("<IHHiiIIQQ")
_SHAPES: Final = struct.Struct("<8q8q")
METADATA_BYTES: Final = 304
_MAGIC: Final = 0x4D4F4F4E
_VERSION: Final = 1
_DIMENSIONS_MAX: Final = 8

_DTYPES: Final = (
    ("float32", 4),
    ("float64", 8),
    ("int8", 1),
    ("uint8", 1),
    ("int16", 2),
    ("uint16", 2),
    ("int32", 4),
    ("uint32", 4),
    ("int64", 8),
    ("uint64", 8),
    ("bool", 1),
    ("float16", 2),
    ("bfloat16", 2),
    ("float8_e4m3fn", 1),
    ("float8_e5m2", 1),
)
_NUMBERS: Final = {name: number for number, (name, _) in enumerate(_DTYPES)}


class Parts(NamedTuple):
    """A tensor as an object. owner: what keeps the elements where they are."""

    metadata: bytes
    address: int
    size: int
    owner: Any

    def buffers(self) -> list[Any]:
        """In place; the elements keep `owner`."""
        if not self.size:
            return [self.metadata]
        elements: Any = (ctypes.c_ubyte * self.size).from_address(self.address)
        elements.owner = self.owner
        return [self.metadata, elements]


def parts(tensor: Any) -> Parts | None:
    """A torch tensor on the CPU, made contiguous; None, with the reason logged, for anything else."""
    if "Tensor" not in type(tensor).__name__ or not hasattr(tensor, "data_ptr"):
        log.error("a %s is not a PyTorch tensor", type(tensor).__name__)
        return None
    if (device := getattr(tensor.device, "type", str(tensor.device))) != "cpu":
        once("tensor", "a tensor on %s: no tensors on devices yet; give tensor.cpu()", device)
        return None
    tensor = tensor.contiguous()
    shape = tuple(int(length) for length in tensor.shape)
    number = _NUMBERS.get(str(tensor.dtype).removeprefix("torch."))
    if number is None or len(shape) > _DIMENSIONS_MAX:
        log.error("a tensor of %s with %d dimensions has no place in Mooncake's format", tensor.dtype, len(shape))
        return None
    size = int(tensor.numel()) * int(tensor.element_size())
    padded = shape + (-1,) * (_DIMENSIONS_MAX - len(shape))
    head = _HEAD.pack(_MAGIC, _VERSION, METADATA_BYTES, number, len(shape), 0, 0, METADATA_BYTES, size)
    metadata = (head + _SHAPES.pack(*padded, *padded)).ljust(METADATA_BYTES, b"\0")
    return Parts(metadata, int(tensor.data_ptr()), size, tensor)


def tensor(data: Any, length: int) -> Any:
    """The torch tensor in the first `length` bytes of a writable buffer, over that memory; None if it is none."""
    torch: Any = importlib.import_module("torch")
    found = _parse(memoryview(data).cast("B")[:length])
    if found is None:
        log.error("the object of %d bytes is no tensor", length)
        return None
    dtype, shape, start = found
    element = getattr(torch, dtype)
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=element)
    return torch.frombuffer(data, dtype=element, count=count, offset=start).reshape(shape)


def _parse(data: memoryview) -> tuple[str, tuple[int, ...], int] | None:
    if len(data) < METADATA_BYTES:
        return None
    magic, version, header, dtype, dimensions, _, _, start, size = _HEAD.unpack_from(data)
    if (magic, version, header) != (_MAGIC, _VERSION, METADATA_BYTES):
        return None
    if not 0 <= dtype < len(_DTYPES) or not 0 <= dimensions <= _DIMENSIONS_MAX:
        return None
    shape = _SHAPES.unpack_from(data, _HEAD.size)[8 : 8 + dimensions]
    name, item_bytes = _DTYPES[dtype]
    if min(shape, default=0) < 0 or math.prod(shape) * item_bytes != size:
        return None
    return (name, shape, start) if METADATA_BYTES <= start and start + size <= len(data) else None


def _tensor_metadata_size() -> int:
    """Bytes before the elements."""
    return METADATA_BYTES


def _serialize_tensor(arg0: Any, /) -> tuple[bytes, int, int, Any]:
    """Metadata, address and size of the elements, and what keeps them there. Raises ValueError for what is no tensor."""
    found = parts(arg0)
    if found is None:
        raise ValueError("unsupported tensor for Mooncake tensor serialization")
    return tuple(found)


def _deserialize_tensor(arg0: bytes, /) -> Any:
    """The tensor in an object's bytes, in memory of its own; None if they are none."""
    return tensor(bytearray(arg0), len(arg0))
