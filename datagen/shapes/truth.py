"""How true is an answer? The exact judge of the shapes world.

`score` reads any free-form answer to a question of `shapes.py`, finds the facts it states and compares them
with the reference. Facts that are missing count like facts that are wrong: an answer cannot win by saying
less. What cannot be read states nothing and scores zero; it never raises.

>>> score("action", "the red circle grows .", "the red circle grows .").fraction
1.0
>>> score("after", "then a red cross grows .", "then a red cross blinks .").fraction
0.6666666666666666
>>> score("count", "there are 3 shapes .", "many").fraction
0.0
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass, field

from vlm_rlaif.datagen.shapes.world import COLOURS, MOTIONS, ORDINALS, SHAPES

Mention = tuple[str, str, str]
"""(colour, shape, motion)."""

_MENTION = re.compile(r"\ba (\S+) (\S+) (moves \S+|\S+)")
_ACTION = re.compile(r"\bthe (\S+) (\S+) (moves \S+|\S+)")
_COLOUR = re.compile(r"\bthe (\S+) is (\S+)")
_COUNT = re.compile(r"\bthere are (\d+) shapes?\b")
_ORDINAL = re.compile(rf"\b(?:{'|'.join(ORDINALS)})\b")
_ATTRIBUTES = ("colour", "shape", "motion")
_POOLS: tuple[tuple[str, ...], ...] = (COLOURS, SHAPES, MOTIONS)


@dataclass(frozen=True, slots=True)
class Truth:
    """How an answer compares with the facts."""

    true: dict[str, int] = field(default_factory=dict)
    """Facts that are right, by kind of fact (`colour`, `shape`, `motion`, `count`)."""
    total: dict[str, int] = field(default_factory=dict)
    """Facts that were stated or should have been, whichever is more, by kind of fact."""

    @property
    def fraction(self) -> float:
        """Right facts among all that were stated or asked for, in [0, 1]."""
        return sum(self.true.values()) / max(1, sum(self.total.values()))

    @property
    def fully_right(self) -> bool:
        return sum(self.true.values()) == sum(self.total.values()) > 0


def score(kind: str, reference: str, answer: str) -> Truth:
    """Compare an answer with the reference of a question of this kind."""
    if kind in ("describe", "after"):
        return _score_scenes(scenes_of(kind, reference), scenes_of(kind, answer))
    if kind == "action":
        return _score_one("motion", _ACTION, reference, answer)
    if kind == "colour":
        return _score_one("colour", _COLOUR, reference, answer)
    return _score_one("count", _COUNT, reference, answer)


def _score_one(fact: str, pattern: re.Pattern[str], reference: str, answer: str) -> Truth:
    wanted, found = pattern.search(reference), pattern.search(answer)
    right = wanted is not None and found is not None and wanted.groups() == found.groups()
    return Truth({fact: int(right)}, {fact: 1})


def scenes_of(kind: str, text: str) -> list[list[Mention]]:
    """The shapes that a description mentions, scene by scene."""
    parts = _ORDINAL.split(text)[1:] if kind == "describe" else [text]
    return [[match.groups() for match in _MENTION.finditer(part)] for part in parts]  # type: ignore[misc]


def _score_scenes(wanted: list[list[Mention]], found: list[list[Mention]]) -> Truth:
    true, total = dict.fromkeys(_ATTRIBUTES, 0), dict.fromkeys(_ATTRIBUTES, 0)
    nothing: list[Mention] = []
    for scene, said in itertools.zip_longest(wanted, found, fillvalue=nothing):
        for attribute, matches in zip(_ATTRIBUTES, _best_matches(scene, said), strict=True):
            true[attribute] += matches
            total[attribute] += max(len(scene), len(said))
    return Truth(true, total)


def _best_matches(scene: list[Mention], said: list[Mention]) -> tuple[int, int, int]:
    """Right attributes under the pairing of mentions and shapes that is kindest to the answer."""
    few, many = sorted((scene, said), key=len)
    if len(many) > 6:  # a degenerate answer: pair in order instead of trying every permutation
        many = many[: len(few)]
    best = (0, 0, 0)
    for order in itertools.permutations(many, len(few)):
        hits = [tuple(a == b for a, b in zip(one, other, strict=True)) for one, other in zip(few, order, strict=True)]
        counts = tuple(sum(column) for column in zip(*hits, strict=True)) or (0, 0, 0)
        best = max(best, counts, key=sum)
    return best


def corrupt(rng: random.Random, kind: str, reference: str, edits: int) -> str:
    """The reference with up to `edits` facts changed: another value, an invented shape, a missing one."""
    if kind in ("describe", "after"):
        scenes = scenes_of(kind, reference)
        for _ in range(edits):
            _edit_scene(rng, rng.choice(scenes))
        return say(kind, scenes)
    if not edits:
        return reference
    if kind == "count":
        number = int(_COUNT.search(reference)[1])  # type: ignore[index]
        others = [n for n in range(max(1, number - 2), number + 3) if n != number]
        return reference.replace(str(number), str(rng.choice(others)))
    pool = MOTIONS if kind == "action" else COLOURS
    value = next(v for v in pool if reference.endswith(f" {v} ."))
    return reference.removesuffix(f"{value} .") + rng.choice([v for v in pool if v != value]) + " ."


def _edit_scene(rng: random.Random, scene: list[Mention]) -> None:
    move = rng.random()
    if move < 0.12 and len(scene) == 1:
        scene.append(tuple(rng.choice(pool) for pool in _POOLS))  # type: ignore[arg-type]
        scene.sort(key=order)
    elif move < 0.24 and len(scene) > 1:
        scene.pop(rng.randrange(len(scene)))
    else:
        which, attribute = rng.randrange(len(scene)), rng.choice((0, 1, 2, 2))
        mention = list(scene[which])
        mention[attribute] = rng.choice([v for v in _POOLS[attribute] if v != mention[attribute]])
        scene[which] = tuple(mention)  # type: ignore[assignment]
        scene.sort(key=order)


def order(mention: Mention) -> tuple[int, int]:
    """Sorts mentions of known colours and shapes into the world's order."""
    return COLOURS.index(mention[0]), SHAPES.index(mention[1])


def say(kind: str, scenes: list[list[Mention]]) -> str:
    """Scenes back to words: the inverse of `scenes_of`."""
    said = [" and ".join(f"a {' '.join(mention)}" for mention in scene) + " ." for scene in scenes]
    ordinals = ORDINALS if kind == "describe" else ("then",)
    return " ".join(f"{ordinal} {text}" for ordinal, text in zip(ordinals, said, strict=False))
