"""Mooncake's store calls over a Lapis daemon. Engines import it as `mooncake.store`.

    codes     numbers that calls answer, and what of Lapis answers which
    config    ReplicateConfig and its words
    memory    raw addresses: registered buffers, and copies to and from all other memory
    gpu       memory of GPUs by address, copied by way of the host's
    daemon    one connection: keys to objects, put, read, exists, remove
    store     MooncakeDistributedStore: calls of whole objects
    ranges    its calls of ranges of objects, and sessions
    tensors   its calls of tensors, in Mooncake's `tensor_format`; `parallel`: by layout
    admin     its calls that have no meaning here
    buffers   host memory that is handed out: handles, leases, allocator
    replicas  what a store says of where an object is
    beside    is another wheel's mooncake in the way?

Invariant: bytes that are answered under a key are those that were put under it, whole, or it is a miss.
Invariant: no address is read or written before it is known to be memory of the host or of a GPU, except within a registered buffer.
"""
