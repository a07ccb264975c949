"""How vLLM is started, and what is said when it cannot be: its options, its defaults, its errors.

On a GPU vLLM chooses for itself, from the model and the memory, unless an option says otherwise. On a CPU it is made
exact and quick to start, and never computes a prompt in pieces: there vLLM (0.32) stops with "CPU Generator does not
use offset" at the first piece of a request that has a seed.
"""

from __future__ import annotations

import os
import threading
import warnings
from multiprocessing.connection import wait
from typing import Any

import torch

from vlm_rlaif.warehouse.errors import MissingExtra, UserError, nearest

CPU_BLOCK_TOKENS = 32
"""Only whole blocks of a prompt are found again in the cache; vLLM's 128 tokens are longer than a short prompt."""
ON_CPU: dict[str, Any] = {
    "dtype": "float32", "enforce_eager": True, "max_num_seqs": 64, "enable_chunked_prefill": False,
    "block_size": CPU_BLOCK_TOKENS,
}  # fmt: skip
CPU_CACHE_BYTES = 2**30
"""Keys and values that vLLM keeps on a CPU, where it has no memory of its own to measure."""
CPU_STEP_TOKENS = 8192
"""Of prompts that a CPU computes at a time, and so of the longest one."""
MEMORY = (
    "Give it more of the memory, or let it need less: --engine-option gpu_memory_utilization=0.95,"
    " --engine-option max_model_len=8192, --engine-option quantization=fp8, --engine-option tensor_parallel_size=2."
)


def load(folder: str, options: dict[str, Any]) -> Any:
    """vLLM with a video-language model: exact fp32 in this process on a CPU, its own precision on a GPU."""
    on_cpu = not torch.cuda.is_available()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    chosen: dict[str, Any] = {
        "enable_prefix_caching": True, "limit_mm_per_prompt": {"video": 1, "image": 0}, "seed": 0,
        "use_tqdm_on_load": False, "max_model_len": -1,  # what fits into memory
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }  # fmt: skip
    if on_cpu:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        chosen |= ON_CPU | _sizes_on_cpu(folder, options)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")  # to those who write vLLM
    try:
        from vllm import LLM, EngineArgs
    except ImportError:
        raise MissingExtra("The vLLM engine", "vllm") from None
    try:
        llm = LLM(folder, **{**chosen, **options})
    except TypeError as error:
        known = EngineArgs.__dataclass_fields__
        lines = [f"vLLM has no option {name!r}.{nearest(name, known)}" for name in options if name not in known]
        if not options:
            raise
        raise UserError(*lines or (f"vLLM cannot use one of the options {options}:", f"  {error}")) from None
    except (ValueError, OSError, RuntimeError) as error:  # its own words; a process of its own has said more above
        hint = [MEMORY] if "memory" in str(error).lower() else []
        raise UserError(f"vLLM cannot run {folder}:", f"  {_words(error)}", *hint) from None
    if "video" not in _kinds_of_media(llm):
        raise UserError(f"vLLM shows no videos to {folder}: it runs the model with text or images alone.")
    return llm


def _sizes_on_cpu(folder: str, options: dict[str, Any]) -> dict[str, int]:
    """The cache, the longest prompt that the model takes and the cache holds, and steps that take it whole."""
    given = os.environ.get("VLLM_CPU_KVCACHE_SPACE")  # GiB
    cache = options.get("kv_cache_memory_bytes", int(given) * 2**30 if given else CPU_CACHE_BYTES)
    asked = options.get("max_model_len")
    longest = asked if isinstance(asked, int) and asked > 0 else min(CPU_STEP_TOKENS, _most_tokens(folder, cache))
    return {
        "kv_cache_memory_bytes": cache, "max_model_len": longest,
        "max_num_batched_tokens": max(CPU_STEP_TOKENS // 2, longest),
    }  # fmt: skip


def _most_tokens(folder: str, cache_bytes: int) -> int:
    """How many tokens a model takes, of which the keys and values (fp32) fit into the cache."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    fitting = cache_bytes // (2 * 4 * text.num_hidden_layers * heads * width) - 2 * CPU_BLOCK_TOKENS
    return int(min(text.max_position_embeddings, fitting))


def wake_when_killed(core: Any) -> None:
    """Wake whoever waits for a process of vLLM that was killed; vLLM (0.32) would wait for ever.

    On most machines that is what becomes of a process that takes too much memory.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    processes, outputs = core.resources.engine_manager.processes, core.outputs_queue

    def watch() -> None:
        wait([process.sentinel for process in processes])
        outputs.put(EngineDeadError())

    threading.Thread(target=watch, daemon=True, name="wake when vLLM dies").start()


def _kinds_of_media(llm: Any) -> set[str]:
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = llm.llm_engine.model_config
    if not config.is_multimodal_model:
        return set()
    return set(MULTIMODAL_REGISTRY.get_processing_info(config).supported_mm_limits)


def _words(error: Exception) -> str:
    """What an error says; of several mistakes that vLLM's settings found, each in a few words."""
    found = getattr(error, "errors", None)
    if callable(found):
        return "; ".join(str(one.get("msg", one)) for one in found())
    return str(error)
