"""Blocks between the daemon's memory and a KV cache on a GPU, copied by the GPU: into it layer by layer, out of it whole.

A load is on a stream of the client's, behind what was on the engine's when it began. Within a step the engine's stream waits for
each layer when it comes to it; nobody waits on the CPU before the step has been asked for.
"""

import enum
import logging
import time

import torch

import lapis_kv

logger = logging.getLogger("vllm.lapis")


class Way(enum.Enum):
    """How blocks go between the KV cache and the daemon's memory."""

    # The CPU copies between the two.
    DIRECT = "direct"
    # By a buffer of the host's.
    STAGED = "staged"
    # The GPU copies between the two.
    GPU = "gpu"


def load_way(device_type: str, staged: bool, gpus_serve: bool) -> Way:
    """Where the KV cache is, whether tests want buffers, and whether the GPU's own copies are to be had."""
    if staged:
        return Way.STAGED
    if device_type == "cpu":
        return Way.DIRECT
    return Way.GPU if device_type == "cuda" and gpus_serve else Way.STAGED


def save_way(load: Way, row_bytes: list[int], has_window: bool) -> Way:
    """`load`: the way in; `row_bytes`: of a block, the bytes in each tensor.

    A put out of a GPU takes equal parts alone. Blocks of a window may be given to others at the next step, and a put reads them
    later: a buffer is gathered at once.
    """
    return Way.STAGED if load is Way.GPU and (has_window or len(set(row_bytes)) > 1) else load


class OnGpu:
    """Where a group's blocks lie on a GPU: of each tensor in the order of layers, its address and the bytes from block to block."""

    def __init__(self, planes, row_bytes: list[int], last_piece: dict[str, int]):
        """`last_piece`: for each layer, the index of its last tensor."""
        self.device, self.last_piece = planes[0].device, last_piece
        if any(plane.device != self.device for plane in planes):
            raise ValueError(f"layers of one group are on several devices: {sorted({str(plane.device) for plane in planes})}")
        self._rows = [
            (plane.data_ptr(), plane.stride(0) * plane.element_size(), row) for plane, row in zip(planes, row_bytes)
        ]
        self._streams = {}

    def _pieces(self, block_ids) -> list:
        pieces, offset = [], 0
        for address, stride, row in self._rows:
            pieces.append((offset, row, [address + block * stride for block in block_ids]))
            offset += row
        return pieces

    def _side(self, name: str):
        """A stream of one thread's own."""
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(self.device)
        return self._streams[name]

    def mark(self):
        """Behind what the engine has asked for until now."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def begin_load(self, client, pool, part, seconds: float, behind=None) -> "Load":
        """Asks for all copies; behind a mark, else behind the current stream. Raises LapisError, when no copy is under way."""
        if behind is None:
            name, stream = "step", torch.cuda.current_stream(self.device)
        else:
            name, stream = "load", self._side("load")
            stream.wait_event(behind)
        started = time.monotonic()
        try:
            got = client.get_device_pieces(
                pool, part.keys, self._pieces(part.block_ids), stream.cuda_stream, device=self.device.index, deadline=seconds
            )
        except lapis_kv.GpuError:
            # Some copies may be under way, and whoever computes these blocks is not to meet them.
            self.calm()
            raise
        return Load(self, got, part, self._side(name), started)

    def calm(self):
        """Returns when nothing runs on the GPU that was asked for before."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            # Nothing runs on a GPU that is lost.
            logger.warning("a GPU does not end what it does: %s", error)

    def put(self, client, pool, keys: bytes, block_ids, parent, behind, seconds: float):
        stream = self._side("save")
        stream.wait_event(behind)
        addresses = [address + block * stride for block in block_ids for address, stride, _ in self._rows]
        return client.put_device(
            pool, keys, addresses, stream.cuda_stream, device=self.device.index, parent=parent, deadline=seconds
        )


class Load:
    """Blocks on their way to a KV cache."""

    def __init__(self, gpu: OnGpu, got, part, side, started: float):
        self._gpu, self._got, self._side = gpu, got, side
        self.part, self.started = part, started
        self.missing = {block for at, block in enumerate(part.block_ids) if not got[at]}
        self._has_failed = False

    def wait(self, layer: str):
        """The current stream goes on when the layer is there. What fails is told by `end`."""
        piece = self._gpu.last_piece.get(layer)
        if piece is None or self._has_failed:
            return
        try:
            self._got.wait_piece(piece, torch.cuda.current_stream(self._gpu.device).cuda_stream)
        except lapis_kv.GpuError as error:
            logger.warning("a layer's blocks cannot be waited for: %s", error)
            self._has_failed = True

    def end(self) -> set[int]:
        """Waits for all copies; the blocks that were not loaded."""
        try:
            self._got.wait_piece(-1, self._side.cuda_stream)
            self._side.synchronize()
        except (lapis_kv.GpuError, RuntimeError) as error:
            logger.warning("blocks cannot be waited for: %s", error)
            self._has_failed = True
            self._gpu.calm()
        if self._has_failed or not self._got.still_valid():
            return set(self.part.block_ids)
        return self.missing
