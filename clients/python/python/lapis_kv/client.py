"""The client: what is compiled, and above it awaitable calls and tensors."""

from __future__ import annotations

import json
import os
from typing import Any

from . import _lapis, aio, tensors
from ._lapis import Got, Pool, Put, PutStatus, Verify, Wait


class Client(_lapis.Client):
    """A connection to the daemon of this host, kept up by itself; any thread may use it.

    path: the socket of a group. name: shown by `lapis status`. may_put: ask for writable memory. populate: map all memory
    ahead, in the background. verify: instead of what the daemon's configuration says. gpus: ask for the daemon's memory on
    GPUs, for `get_device` and `put_device`.

    Without a daemon, hits in memory go on; gets of anything else are misses, and puts are refused with `GONE`.
    Raises ConnectError if nobody answers at `path`.
    """

    def close(self) -> None:
        """Ends the connection. Views that are alive keep their blocks; all else raises ClosedError from now on."""
        super().close()
        aio.closed(self)

    def __exit__(self, *_exception: object) -> None:
        self.close()

    async def aget_into(
        self,
        pool: Pool,
        keys: Any,
        dst: Any,
        *,
        pieces: tuple[int, int] | None = None,
        wait: Wait = Wait.PRESENT,
        deadline: float | None = None,
        verify: Verify | None = None,
    ) -> Got:
        """`get_into` for a coroutine: the loop goes on while the daemon is waited for. Copies run in the loop's thread.

        May be cancelled at any time: nothing is copied to `dst` afterwards.
        """
        ticket = self.begin_get(pool, keys, dst, pieces=pieces, wait=wait, deadline=deadline, verify=verify)
        got: Got = await aio.finish(self, ticket)
        return got

    async def aput_from(
        self, pool: Pool, keys: Any, src: Any, *, parent: Any = None, deadline: float | None = None
    ) -> Put:
        """`put_from` for a coroutine: the loop goes on while the daemon is waited for. Copies run in the loop's thread.

        May be cancelled at any time: `src` is the caller's again, and blocks may have been stored or not.
        """
        ticket = self.begin_put(pool, keys, src, parent=parent, deadline=deadline)
        put: Put = await aio.finish(self, ticket)
        return put

    def put_tensor(
        self, pool: Pool, name: bytes | str, tensor: Any, *, dtype: str | None = None, deadline: float | None = None
    ) -> PutStatus:
        """Stores a tensor with dtype and shape in an object pool: a numpy array, or a torch tensor on the CPU.

        tensor: contiguous; copied once, into shared memory. dtype: the name to keep instead of the tensor's own, for types
        that numpy does not have ("bfloat16", "float8_e4m3fn" over unsigned integers of that size). Tensors never change: a
        name that is there is answered `EXISTS`, whatever is under it. Raises TypeError for what is no tensor, and
        ValueError for one that is not contiguous or not on the CPU.
        """
        return tensors.put(self, pool, name, tensor, dtype, deadline)

    def get_tensor(
        self,
        pool: Pool,
        name: bytes | str,
        *,
        framework: str | None = None,
        take: bool = False,
        wait: Wait = Wait.PRESENT,
        deadline: float | None = None,
    ) -> Any:
        """The tensor under a name, in memory of its own, or None if it is not there.

        framework: "numpy", "torch", or None for torch if it was put as a torch tensor and torch is imported here already,
        else numpy. A dtype that numpy does not have comes as unsigned integers of its size; `lapis_kv.dtype_name(array)`
        tells what they are. take, wait, deadline: as in `get_object`. Raises ValueError if the object is no tensor.
        """
        return tensors.get(self, pool, name, framework, take, wait, deadline)


def status(path: str | os.PathLike[str], deadline: float = 2.0) -> dict[str, Any]:
    """The daemon's state, by a connection of its own. deadline: seconds for each part of the answer.

    Raises ConnectError or LateError if no daemon answers.
    """
    state: dict[str, Any] = json.loads(_lapis.status_json(path, deadline))
    return state
