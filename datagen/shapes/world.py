"""The shapes world: short videos of coloured shapes whose truth is known exactly.

Every video has one to three scenes of two seconds; every scene has one or two shapes that move, grow,
shrink or blink. The world writes its own captions, questions and reference answers and renders real
H.264 files (`shapes_video.py`); `shapes_truth.py` scores any free-form answer against it.

It is deliberately small: fixed grammar, fixed order of mention (by colour, then shape), so that a model of
under a million parameters can learn it on a CPU. It is not a benchmark of real video understanding.

>>> world = World(seed=0)
>>> world.video(3) == World(seed=0).video(3)
True
>>> caption(world.video(3).scenes[0])  # doctest: +ELLIPSIS
'a ...'
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "blinks",
)
ORDINALS = ("first", "then", "finally")
KINDS = ("describe", "action", "colour", "after", "count")

SCENE_S = 2.0
"""Seconds that one scene lasts."""
FPS = 12
"""Frames per second of a rendered video."""
SCENE_COUNT_WEIGHTS = (0.2, 0.3, 0.5)
"""How often a video has one, two and three scenes."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """One shape of a scene. The order of the fields is the order in which shapes are mentioned."""

    colour: str
    shape: str
    motion: str
    x: float
    """Centre at the middle of the scene, as a fraction of the width."""
    y: float
    radius: float
    phase: int
    """0 or 1: which half of its period a blinking shape starts with."""


Scene = tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class ShapesVideo:
    """The truth about one video."""

    index: int
    scenes: tuple[Scene, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes in order of appearance."""
        return tuple(shape for scene in self.scenes for shape in scene)

    @property
    def duration_s(self) -> float:
        return SCENE_S * len(self.scenes)


@dataclass(frozen=True, slots=True)
class ShapesQuestion:
    """A question about one video with the answer that is entirely true."""

    kind: str
    text: str
    reference: str


@dataclass(frozen=True, slots=True)
class World:
    """All videos of one seed: `world.video(i)` is always the same video."""

    seed: int = 0

    def video(self, index: int) -> ShapesVideo:
        return make_video(random.Random(f"shapes/{self.seed}/{index}"), index)

    def videos(self, count: int) -> Iterator[ShapesVideo]:
        return (self.video(index) for index in range(count))


def make_video(rng: random.Random, index: int = 0) -> ShapesVideo:
    count = rng.choices((1, 2, 3), SCENE_COUNT_WEIGHTS)[0]
    return ShapesVideo(index, tuple(_make_scene(rng) for _ in range(count)))


def _make_scene(rng: random.Random) -> Scene:
    count = 1 if rng.random() < 0.5 else 2
    colours, shapes = rng.sample(COLOURS, count), rng.sample(SHAPES, count)
    if count == 1:
        centres = [(0.5, 0.5)]
    else:
        centres = [(0.3, 0.3), (0.7, 0.7)] if rng.random() < 0.5 else [(0.3, 0.7), (0.7, 0.3)]
        rng.shuffle(centres)
    jitter = 0.15 if count == 1 else 0.05
    made = [
        Shape(
            colour=colour,
            shape=shape,
            motion=rng.choice(MOTIONS),
            x=x + rng.uniform(-jitter, jitter),
            y=y + rng.uniform(-jitter, jitter),
            radius=rng.uniform(0.14, 0.19),
            phase=rng.randrange(2),
        )
        for colour, shape, (x, y) in zip(colours, shapes, centres, strict=True)
    ]
    return tuple(sorted(made, key=lambda s: (COLOURS.index(s.colour), SHAPES.index(s.shape))))


def mention(shape: Shape) -> str:
    """`a red circle moves left`."""
    return f"a {shape.colour} {shape.shape} {shape.motion}"


def caption(scene: Scene) -> str:
    """What a perfect captioner says about one scene: `a red circle grows and a blue cross blinks .`"""
    return " and ".join(mention(shape) for shape in scene) + " ."


def describe(video: ShapesVideo) -> str:
    """What a perfect model says about the whole video, scene by scene."""
    return " ".join(f"{ordinal} {caption(scene)}" for ordinal, scene in zip(ORDINALS, video.scenes, strict=False))


def questions(video: ShapesVideo) -> list[ShapesQuestion]:
    """Every question that can be asked about the video without ambiguity, in a fixed order."""
    shapes = video.shapes
    names = [(s.colour, s.shape) for s in shapes]
    made = [ShapesQuestion("describe", "describe the video .", describe(video))]
    for scene_number, scene in enumerate(video.scenes):
        for s in scene:
            name = f"the {s.colour} {s.shape}"
            if names.count((s.colour, s.shape)) == 1:
                made.append(ShapesQuestion("action", f"what does {name} do ?", f"{name} {s.motion} ."))
                if scene_number + 1 < len(video.scenes):
                    after = caption(video.scenes[scene_number + 1])
                    made.append(ShapesQuestion("after", f"what happens after {name} {s.motion} ?", f"then {after}"))
            if sum(other.shape == s.shape for other in shapes) == 1:
                made.append(
                    ShapesQuestion(
                        "colour",
                        f"what colour is the {s.shape} ?",
                        f"the {s.shape} is {s.colour} .",
                    )
                )
    made.append(ShapesQuestion("count", "how many shapes are there ?", f"there are {len(shapes)} shapes ."))
    return made


def pick_questions(rng: random.Random, video: ShapesVideo, count: int) -> list[ShapesQuestion]:
    """Up to `count` different questions; every kind that the video allows comes before a second of a kind."""
    pools: dict[str, list[ShapesQuestion]] = {}
    for question in questions(video):
        pools.setdefault(question.kind, []).append(question)
    for pool in pools.values():
        rng.shuffle(pool)
    picked: list[ShapesQuestion] = []
    while len(picked) < count and any(pools.values()):
        kinds = [kind for kind, pool in pools.items() if pool]
        rng.shuffle(kinds)
        picked += [pools[kind].pop() for kind in kinds]
    return picked[:count]
