"""The embedded model: a genuine Qwen3-VL of under a million parameters with a tokenizer of its own.

`build(seed)` makes it with random weights from nothing but this file; `train/embedded.py` trains it on the
shapes world and the trained weights ship with the package. transformers and vLLM load it like any other
checkpoint, so everything that works here works with a model ten thousand times its size.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from vlm_rlaif.datagen.engines import torchvision_repair  # isort: skip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vlm_rlaif.datagen.shapes import world as shapes

torchvision_repair.declare_missing_operators()

FRAME_SIZE = 32
"""Width and height of a frame in pixels: 4 x 4 patches, merged to 2 x 2 visual tokens."""
PATCH_SIZE = 8
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TIMES = [f"<{tenths / 10:.1f} seconds>" for tenths in range(100)]
"""Qwen3-VL writes the time of every frame pair into the prompt; as one token each they stay cheap."""
OTHER_WORDS = (
    "describe the clip . video what does do colour is happens after how many are there a and no yes "
    "context question answer verdict clip judge rate s A B C A : B : - , ? first then finally"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m['role'] != 'assistant' else '<|assistant|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('video', 'video_url') %}<|video_pad|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(seed: int = 0) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """A freshly initialised model and its processor; the same seed gives the same weights."""
    processor = make_processor()
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(make_config(processor.tokenizer)).float()
    return model, processor


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write weights (safetensors), configuration and processor where `from_pretrained` finds them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the shapes world is one token; any other text still encodes."""
    words = [*shapes.COLOURS, *shapes.SHAPES, "shapes", *OTHER_WORDS.split()]
    words += itertools.chain.from_iterable(motion.split() for motion in shapes.MOTIONS)
    words += [str(digit) for digit in range(10)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=[PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(words)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [USER, ASSISTANT, *VISION]},
        replace_extra_special_tokens=False,
    )
    tokenizer.add_tokens(TIMES)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_processor() -> Qwen3VLProcessor:
    normalise = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": PATCH_SIZE}
    square = FRAME_SIZE * FRAME_SIZE
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": square, "longest_edge": square}, **normalise),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": square * 2, "longest_edge": square * 64},
            cap_pixels_per_frame=False,
            do_sample_frames=False,
            **normalise,
        ),
        tokenizer=make_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    width, head = 96, 32
    to_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // head,
        "num_key_value_heads": width // head,
        "head_dim": head,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "eos_token_id": to_id(END),
        "pad_token_id": to_id(PAD),
        "bos_token_id": None,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=to_id("<|image_pad|>"),
        video_token_id=to_id("<|video_pad|>"),
        vision_start_token_id=to_id("<|vision_start|>"),
        vision_end_token_id=to_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
