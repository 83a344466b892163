"""vLLM on Lapis, by two of vLLM's surfaces:

- `lapis_kv.vllm.connector.LapisConnector`, a KVConnectorBase_V1: blocks go between the engine's KV cache and the daemon's
  memory without any copy in between (on a CPU, and on a GPU that the daemon serves; else by a pinned buffer).
- `lapis_kv.vllm.tier.LapisTier`, a SecondaryTierManager below vLLM's own host memory (TieringOffloadingSpec).

Nothing here is imported before an engine asks for it by module path, and nothing of vLLM by `import lapis_kv`.
"""
