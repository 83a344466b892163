"""Where the blocks of a group lie in the engine's KV cache, and copies between there and buffers of the host's."""

import contextlib
import dataclasses

import torch

from .gpu import OnGpu


@dataclasses.dataclass(frozen=True)
class Plane:
    """One tensor's part of every block: bytes of it, and bytes from one block's to the next one's."""

    tensor: object
    row_bytes: int
    stride_bytes: int

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def rows(self):
        """As bytes: [blocks, bytes of a row]."""
        tensor, item = self.tensor, self.tensor.element_size()
        blocks = tensor.shape[0] * tensor.stride(0) * item // self.stride_bytes
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return whole.set_(
            tensor.untyped_storage(), tensor.storage_offset() * item, (blocks, self.row_bytes), (self.stride_bytes, 1)
        )


def plane_of(tensor, blocks: int | None = None) -> Plane | None:
    """`blocks`: of the engine; a tensor that has a multiple of them is divided finer, for its kernels. None where a block is not
    one run of bytes.

    In which order heads and tokens come within a block is the engine's: the layout is part of the namespace.
    """
    if len(tensor.shape) < 2:
        return None
    # From the innermost dimension on; those of one element have strides that mean nothing.
    run = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride()[1:], tensor.shape[1:]) if size > 1):
        if stride != run:
            return None
        run *= size
    parts = tensor.shape[0] // blocks if blocks and tensor.shape[0] % blocks == 0 else 1
    if parts > 1 and tensor.stride(0) != run:
        return None
    return Plane(tensor, parts * run * tensor.element_size(), parts * tensor.stride(0) * tensor.element_size())


class Planes:
    """A group's planes: for each layer, one for each tensor of it."""

    def __init__(self, group, kv_caches: dict, blocks: int | None = None):
        """`blocks`: as of `plane_of`."""
        self.group, self._planes, planes_of = group, [], {}
        for layer in group.layers:
            if layer not in kv_caches:
                raise ValueError(f"layer {layer!r} of group {group.index} has no KV cache on this rank")
            tensors = kv_caches[layer]
            first = len(self._planes)
            for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
                plane = plane_of(tensor, blocks)
                if plane is None:
                    raise ValueError(
                        f"blocks of layer {layer!r} are in pieces (shape {tuple(tensor.shape)}, stride "
                        f"{tuple(tensor.stride())}): this layout of the KV cache is not supported"
                    )
                self._planes.append(plane)
            planes_of[layer] = range(first, len(self._planes))
        self.row_bytes = [plane.row_bytes for plane in self._planes]
        if sum(self.row_bytes) != group.block_bytes:
            raise ValueError(
                f"group {group.index} has blocks of {sum(self.row_bytes)} bytes where its specification says "
                f"{group.block_bytes}"
            )
        self.device = self._planes[0].tensor.device
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"the KV cache is on {self.device}: LapisConnector knows CPUs and GPUs of CUDA and ROCm")
        self.gpu = None if self.device.type == "cpu" else OnGpu(self._planes, planes_of)
        # Views of what is host memory, and of what is copied by buffers.
        self._views = None

    def _rows(self) -> list:
        if self._views is None:
            # The first may be asked for within a step, and such tensors could be written there alone.
            with torch.inference_mode(False):
                self._views = [plane.rows() for plane in self._planes]
        return self._views

    def vectors(self, block_ids) -> list:
        """Blocks in host memory, layer by layer of each."""
        return [rows[block] for block in block_ids for rows in self._rows()]

    def buffers(self, blocks: int) -> list:
        """Host memory for so many blocks: for each plane, [blocks, bytes of a row]."""
        pinned = self.device.type != "cpu"
        return [torch.empty((blocks, row), dtype=torch.uint8, pin_memory=pinned) for row in self.row_bytes]

    @staticmethod
    def rows_of(buffers, blocks) -> list:
        """As `vectors`, of `buffers`."""
        return [buffer[block] for block in blocks for buffer in buffers]

    def gather(self, block_ids, buffers):
        """Copies blocks to `buffers`, on the current stream."""
        index = torch.tensor(block_ids, device=self.device)
        for rows, buffer in zip(self._rows(), buffers):
            buffer.copy_(rows.index_select(0, index), non_blocking=True)

    def scatter(self, block_ids, buffers, mark):
        """Copies `buffers` to blocks, behind a mark or, without one, on the current stream; returns when they are there."""
        with contextlib.nullcontext() if self.gpu is None else self.gpu.behind(mark):
            self._scatter(block_ids, buffers)

    def _scatter(self, block_ids, buffers):
        index = torch.tensor(block_ids, device=self.device)
        for rows, buffer in zip(self._rows(), buffers):
            rows.index_copy_(0, index, buffer.to(self.device, non_blocking=True))
