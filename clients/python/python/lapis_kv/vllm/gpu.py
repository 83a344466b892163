"""Blocks between the daemon's memory and a KV cache on a GPU, copied by the GPU: into it layer by layer, out of it whole.

A load is on a stream of the client's, behind what was on the engine's when it began. Within a step the engine's stream waits for
each layer when it comes to it; nobody waits on the CPU before the step has been asked for.

The engine does not compute on the stream that torch has for other threads: theirs wait for none.
"""

import contextlib
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


def save_way(load: Way, row_bytes: list[int], is_lent: bool) -> Way:
    """`load`: the way in; `row_bytes`: of a block, the bytes in each tensor; `is_lent`: as of a `Group`.

    A put out of a GPU takes equal parts alone, and reads blocks later: of those that may be written at the next step a buffer is
    gathered at once.
    """
    return Way.STAGED if load is Way.GPU and (is_lent or len(set(row_bytes)) > 1) else load


class OnGpu:
    """Where a group's blocks lie on a GPU: its planes in the order of layers, and which of them are a layer's."""

    def __init__(self, planes, planes_of: dict[str, range]):
        devices = {str(plane.tensor.device) for plane in planes}
        if len(devices) > 1:
            raise ValueError(f"layers of one group are on several devices: {sorted(devices)}")
        self.device, self._planes_of = planes[0].tensor.device, planes_of
        self._rows = [(plane.address, plane.stride_bytes, plane.row_bytes) for plane in planes]
        self._streams = {}

    def _order(self, asking) -> tuple[list[int], dict[str, int], int]:
        """In which order planes are copied, the last piece of each layer, and how many pieces are of layers that are not in `asking`:
        these come first."""
        order, last = [], {}
        for is_asking in (False, True):
            for layer, planes in self._planes_of.items():
                if (layer in asking) is is_asking:
                    order += planes
                    last[layer] = len(order) - 1
            if not is_asking:
                first = len(order)
        return order, last, first

    def _pieces(self, block_ids, order) -> list:
        offsets, offset = [], 0
        for _, _, row in self._rows:
            offsets.append(offset)
            offset += row
        rows = self._rows
        return [
            (offsets[at], rows[at][2], [rows[at][0] + block * rows[at][1] for block in block_ids]) for at in order
        ]

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

    @contextlib.contextmanager
    def behind(self, mark):
        """What is asked for within comes behind the mark, or without one on the current stream; all of it has ended afterwards."""
        if mark is None:
            yield
            torch.cuda.current_stream(self.device).synchronize()
            return
        side = self._side("load")
        side.wait_event(mark)
        with torch.cuda.stream(side):
            yield
        side.synchronize()

    def begin_load(self, client, pool, part, seconds: float, behind=None, asking=()) -> "Load":
        """Asks for all copies; behind a mark, else behind the current stream, which then waits at once for the layers that are not in
        `asking`. Raises LapisError, when no copy is under way."""
        if behind is None:
            name, stream = "step", torch.cuda.current_stream(self.device)
        else:
            name, stream = "load", self._side("load")
            stream.wait_event(behind)
        started = time.monotonic()
        order, last_piece, first = self._order(asking)
        pieces = self._pieces(part.block_ids, order)
        try:
            got = client.get_device_pieces(
                pool, part.keys, pieces, stream.cuda_stream, device=self.device.index, deadline=seconds
            )
        except lapis_kv.GpuError:
            # Some copies may be under way, and whoever computes these blocks is not to meet them.
            self.calm()
            raise
        load = Load(self, got, part, last_piece, self._side(name), started)
        if behind is None and first:
            load.wait_piece(first - 1)
        return load

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

    def __init__(self, gpu: OnGpu, got, part, last_piece: dict[str, int], side, started: float):
        self._gpu, self._got, self._last_piece, self._side = gpu, got, last_piece, side
        self.part, self.started = part, started
        self.missing = {block for at, block in enumerate(part.block_ids) if not got[at]}
        self._has_failed = False

    def wait(self, layer: str):
        """The current stream goes on when the layer is there. What fails is told by `end`."""
        if (piece := self._last_piece.get(layer)) is not None:
            self.wait_piece(piece)

    def wait_piece(self, piece: int):
        if self._has_failed:
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
