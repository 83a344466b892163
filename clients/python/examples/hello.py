"""Blocks and a tensor through a running daemon: python hello.py SOCKET"""

import asyncio
import sys

import lapis_kv
import numpy

BLOCK = 64 << 10

with lapis_kv.Client(sys.argv[1], name="hello") as client:
    # All that the bytes depend on and the keys do not say.
    namespace = lapis_kv.Namespace("llama-3-8b", revision="a1b2c3", dtype="bfloat16", tokens_per_block=16)

    # Blocks of a chain: each follows the one before it.
    pool = client.pool(namespace, "rank0", BLOCK)
    keys = lapis_kv.pack_keys([b"hash of block %d" % n for n in range(4)])
    blocks = numpy.arange(4 * BLOCK, dtype=numpy.uint8)
    print(client.put_from(pool, keys, blocks))

    asked = lapis_kv.pack_keys([b"hash of block %d" % n for n in range(6)])
    print(client.match_prefix(pool, asked), "of 6 blocks are there")
    dst = bytearray(6 * BLOCK)
    got = client.get_into(pool, asked, dst)
    print(got, "misses:", got.misses(), "same bytes:", dst[: 4 * BLOCK] == blocks.tobytes())

    # In place, without a copy.
    with client.view(pool, keys) as views:
        print(numpy.frombuffer(views[2], numpy.uint8)[:4], "valid:", views[2].still_valid())

    # A get that waits until somebody puts the block.
    async def hand_over() -> lapis_kv.Got:
        get = client.aget_into(pool, [b"later"], bytearray(BLOCK), wait=lapis_kv.Wait.ABSENT, deadline=10.0)
        put = client.aput_from(pool, [b"later"], blocks[:BLOCK])
        return (await asyncio.gather(get, put))[0]

    print(asyncio.run(hand_over()))

    # Tensors by name; the taker is the only one that gets it.
    objects = client.pool(namespace, "tensors", 16 << 20, kind="object")
    print(client.put_tensor(objects, "hidden states", numpy.ones((2, 3), numpy.float32)))
    print(client.get_tensor(objects, "hidden states", take=True))
    print(client.get_tensor(objects, "hidden states"))
