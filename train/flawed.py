"""Answers that are wrong on purpose: the data that the policy start was fine-tuned on.

The mistakes are systematic and about things that can be seen: for some colours and one shape the wrong value is
the most frequent one, counts are one too high, shapes are invented. More of the same data cannot repair them, so a
gain that PPO makes over this start is made by feedback.
"""

from __future__ import annotations

import random

from vlm_rlaif.datagen.shapes import truth as shapes_truth
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.datagen.shapes.truth import Mention

MISTAKEN = 0.6
"""How often a fact that has a systematic mistake is given wrongly."""
INVENTED = 0.4
"""How often a shape is invented in a scene that has one."""
NOISE = 0.1
"""How often any other fact is replaced by a random one."""
COLOUR_MISTAKES = {"purple": "blue", "yellow": "green"}
SHAPE_MISTAKES = {"cross": "square"}


def answer(rng: random.Random, video: shapes.ShapesVideo, question: shapes.ShapesQuestion) -> str:
    """The flawed answer to a question."""
    if question.kind in ("describe", "after"):
        scenes = shapes_truth.scenes_of(question.kind, question.reference)
        return shapes_truth.say(question.kind, [_retell(rng, scene) for scene in scenes])
    if question.kind == "count":
        number = len(video.shapes) + (rng.random() < MISTAKEN)
        return f"there are {number} shapes ."
    words = question.reference.split()
    if question.kind == "colour":
        words[-2] = _mistake(rng, words[-2], COLOUR_MISTAKES, shapes.COLOURS)
        return " ".join(words)
    subject, motion = " ".join(words[:3]), " ".join(words[3:-1])
    return f"{subject} {_mistake(rng, motion, {}, shapes.MOTIONS)} ."


def _retell(rng: random.Random, scene: list[Mention]) -> list[Mention]:
    told = [
        (
            _mistake(rng, colour, COLOUR_MISTAKES, shapes.COLOURS),
            _mistake(rng, shape, SHAPE_MISTAKES, shapes.SHAPES),
            _mistake(rng, motion, {}, shapes.MOTIONS),
        )
        for colour, shape, motion in scene
    ]
    if len(told) == 1 and rng.random() < INVENTED:
        pools = (shapes.COLOURS, shapes.SHAPES, shapes.MOTIONS)
        told.append((rng.choice(pools[0]), rng.choice(pools[1]), rng.choice(pools[2])))
    return sorted(told, key=shapes_truth.order)


def _mistake(rng: random.Random, value: str, mistakes: dict[str, str], pool: tuple[str, ...]) -> str:
    if value in mistakes:
        return mistakes[value] if rng.random() < MISTAKEN else value
    return rng.choice(pool) if rng.random() < NOISE else value
