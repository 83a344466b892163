"""GPUs of the tests: the stand-in for CUDA's driver, called as an engine calls the driver, by ctypes."""

from __future__ import annotations

import ctypes
import os
import pathlib

import lapis_kv
import pytest

DEVICES = 2
_VARIABLES = {"LAPIS_CUDA_DEVICES": str(DEVICES)}


def stand_in() -> pathlib.Path:
    """Its library; skips the test where it could not be built."""
    path = os.environ.get("LAPIS_CUDA_STANDIN", "")
    if not path:
        pytest.skip("the stand-in for CUDA's driver could not be built (LAPIS_CUDA_STANDIN is not set)")
    return pathlib.Path(path)


class Cuda:
    """The driver of this process; one for all tests. `misuses`: file for what the driver's manual forbids."""

    def __init__(self, misuses: pathlib.Path) -> None:
        self.misuses = misuses
        # Read by the driver once, at its first call.
        os.environ.update(_VARIABLES, LAPIS_CUDA_MISUSES=str(misuses))
        lapis_kv.load_cuda(stand_in())
        self._driver = ctypes.CDLL(str(stand_in()))
        self("cuInit", 0)
        self._contexts = [ctypes.c_void_p() for _ in range(DEVICES)]
        for device, context in enumerate(self._contexts):
            self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)

    def __call__(self, function: str, *arguments: object) -> None:
        code = self._driver[function](*arguments)
        assert code == 0, f"{function} answered {code}"

    def use(self, device: int) -> None:
        """What this thread calls from here on is that GPU's."""
        self("cuCtxSetCurrent", self._contexts[device])

    def stream(self) -> int:
        """One that waits for no other."""
        made = ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(made), 1)
        return made.value or 0

    def synchronize(self, stream: int) -> None:
        self("cuStreamSynchronize", ctypes.c_void_p(stream))

    def copy(self, stream: int, to: int, at: int, count: int) -> None:
        """Within the GPU, when the stream comes to it."""
        places = ctypes.c_uint64(to), ctypes.c_uint64(at), ctypes.c_size_t(count)
        self("cuMemcpyDtoDAsync_v2", *places, ctypes.c_void_p(stream))

    def wait_word(self, stream: int, at: int, value: int) -> None:
        """The stream goes on when the word there is at least that."""
        self("cuStreamWaitValue32_v2", ctypes.c_void_p(stream), ctypes.c_uint64(at), ctypes.c_uint32(value), 0)

    def write_word(self, stream: int, at: int, value: int) -> None:
        self("cuStreamWriteValue32_v2", ctypes.c_void_p(stream), ctypes.c_uint64(at), ctypes.c_uint32(value), 0)

    def begin_capture(self, stream: int) -> None:
        """Of a graph, as engines do it: whatever threads call meanwhile that may wait for work ends it, unless they said before
        that they heed no captures."""
        self("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), 0)

    def end_capture(self, stream: int) -> None:
        """Fails where it was ended."""
        graph = ctypes.c_void_p()
        self("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))

    def memory(self, data: bytes) -> Memory:
        return Memory(self, data)


class Memory:
    """Memory of the GPU in use, with those bytes in it."""

    def __init__(self, cuda: Cuda, data: bytes) -> None:
        self._cuda, self.size, at = cuda, len(data), ctypes.c_uint64()
        cuda("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(len(data)))
        self.ptr = at.value
        cuda("cuMemcpyHtoD_v2", at, data, ctypes.c_size_t(len(data)))

    def __bytes__(self) -> bytes:
        data = ctypes.create_string_buffer(self.size)
        self._cuda("cuMemcpyDtoH_v2", data, ctypes.c_uint64(self.ptr), ctypes.c_size_t(self.size))
        return data.raw

    def free(self) -> None:
        self._cuda("cuMemFree_v2", ctypes.c_uint64(self.ptr))
