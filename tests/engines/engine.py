"""One vLLM in a process of its own, told by lines of JSON on standard input what to do; answers are lines after `@`.

{"do": "generate", "prompts": [[token, ...], ...]} -> [{"tokens": [...], "cached": n, "finish": "length"}, ...]
{"do": "reset"} forgets the engine's own blocks, with "lapis" those in Lapis, too; {"do": "metrics"}.
It ends with its input.
"""

import json
import os
import sys

OPTIONS = json.loads(sys.argv[1])

os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if OPTIONS.get("tp", 1) > 1:
    # Else vLLM wants a NUMA node for each rank.
    os.environ.setdefault(
        "VLLM_CPU_OMP_THREADS_BIND", "|".join(str(rank % os.cpu_count()) for rank in range(OPTIONS["tp"]))
    )


def answer(value):
    print("@" + json.dumps(value), flush=True)


def main():
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    more = {}
    if OPTIONS.get("transfer"):
        more["kv_transfer_config"] = KVTransferConfig(**OPTIONS["transfer"])
        more["disable_log_stats"] = False
    if OPTIONS.get("hash"):
        more["prefix_caching_hash_algo"] = OPTIONS["hash"]
    llm = LLM(
        model=OPTIONS["model"], skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=32,
        enable_prefix_caching=True, max_model_len=1024, max_num_seqs=4, kv_cache_memory_bytes=64 << 20,
        tensor_parallel_size=OPTIONS.get("tp", 1), **more,
    )
    # Without log probabilities: vLLM compiles a helper for those, which takes a minute here.
    sampling = SamplingParams(temperature=0, max_tokens=24, detokenize=False, ignore_eos=True)
    answer("ready")
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "reset":
            answer(bool(llm.reset_prefix_cache(reset_connector=order.get("lapis", False))))
            continue
        if order["do"] == "metrics":
            answer({metric.name: metric.value for metric in llm.get_metrics() if "lapis" in metric.name})
            continue
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in order["prompts"]], sampling, use_tqdm=False)
        answer(
            [
                {
                    "tokens": list(output.outputs[0].token_ids),
                    "cached": output.num_cached_tokens,
                    "finish": output.outputs[0].finish_reason,
                }
                for output in outputs
            ]
        )
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
