"""A Qwen3-VL of the size that is asked for, with random weights: real work for an engine, without a download.

What it says means nothing, and takes as long as if it did. Its tokenizer is a byte-pair encoding of the texts given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlm_rlaif.datagen.engines import torchvision_repair

torchvision_repair.declare_missing_operators()

from transformers import (  # noqa: E402  after the repair
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(
    folder: Path, texts: Sequence[str], *, hidden: int, layers: int, heads: int, key_heads: int, inner: int,
    vocabulary: int = 2000, loud: float = 4.0,
) -> int:  # fmt: skip
    """Save model and processor into a folder; returns the number of parameters.

    `loud` multiplies the weights: with those of a fresh network all answers look alike.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer(texts, vocabulary)
    i = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": hidden // heads,
        "max_position_embeddings": 8192, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": _parts(hidden // heads)},
        "eos_token_id": i("<|im_end|>"), "pad_token_id": i("<|endoftext|>"), "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": hidden, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=text, vision_config=vision, image_token_id=i("<|image_pad|>"),
            video_token_id=i("<|video_pad|>"), vision_start_token_id=i("<|vision_start|>"),
            vision_end_token_id=i("<|vision_end|>"), tie_word_embeddings=True,
        )
    ).float()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(loud if parameter.ndim > 1 else 1.0)
    _processor(tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _parts(head_dim: int) -> list[int]:
    """How the rotated half of a head is shared between time, height and width."""
    height = width = head_dim // 2 * 5 // 16
    return [head_dim // 2 - height - width, height, width]


def _tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def _processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Frames keep their size; both halves normalise alike, which vLLM takes for granted."""
    same = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sizes = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512 * 64}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=sizes, **same),
        video_processor=Qwen3VLVideoProcessor(size=sizes, **same),
        tokenizer=tokenizer, chat_template=CHAT,
    )  # fmt: skip
