"""What a recipe says about each stage that generates: which model, prompt, frames and numbers. Data, no code.

`judge_settings.py` goes on with the judges, `config.py` with what is trained; it puts the parts together as a
`Recipe`, and reads recipes from YAML.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vlm_rlaif.warehouse.errors import nearest

ARMS = ("context", "none")
"""Arms of the labels: the judge reads the narrative, or it does not."""
REORDERED_FRAMES = ("reversed", "shuffled", "dropped")
PERTURBED_FRAMES = (*REORDERED_FRAMES, "blank")
OTHER_VIDEO = "other_video"
PERTURBATIONS = (*PERTURBED_FRAMES, OTHER_VIDEO)
STRATEGIES = ("all", "best_worst", "best_rest")
SCORES = ("quality", "logprob")


LATER: dict[str, Any] = {"later": True}
"""Metadata of a field that came after the first release: left at its default, it is no part of any key."""


def key_parts(settings: Any) -> dict[str, Any]:
    """The settings as they go into the key of a row. What came later and is not used leaves keys as they were."""
    found = {each.name: (each, getattr(settings, each.name)) for each in dataclasses.fields(settings)}
    return {
        name: key_parts(value) if dataclasses.is_dataclass(value) else value
        for name, (each, value) in found.items()
        if not (each.metadata.get("later") and value == each.default)
    }


def at_least(least: float, **values: float) -> None:
    """Raise `ValueError` for a setting that is too small."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"`{name}` is at least {least:g}, not {value:g}")


def one_of(known: tuple[str, ...], **values: str) -> None:
    """Raise `ValueError` for a setting that is none of the known words."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"`{name}` is one of {', '.join(known)}, not {value!r}.{nearest(value, known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Which frames of a video or clip a model sees."""

    count: int
    """Moments: the centres of this many equal parts."""
    size: int | None = None
    """Width and height in pixels that frames are scaled to; left out, the model's processor decides."""
    repeat: int = 1
    """How often each frame is given."""
    perturb: str = field(default="", metadata=LATER)
    """Spoil what is seen: `reversed`, `shuffled` (each video in an order of its own), `dropped` (a third of the
    frames, in a row, is missing) or `blank` (all are grey). The times that are told still increase."""
    perturb_seed: int = field(default=0, metadata=LATER)
    """Another number shuffles and drops otherwise."""
    sampler: str = field(default="ours", metadata=LATER)
    """Who takes the frames: `ours`, or the `server`, which gets the whole file and takes `count` in its own way."""

    def __post_init__(self) -> None:
        one_of(("ours", "server"), sampler=self.sampler)
        if self.sampler == "server" and (self.size is not None or self.repeat > 1 or self.perturb):
            raise ValueError("`sampler: server` leaves size, order and repetition of the frames to the server")
        at_least(1, count=self.count, repeat=self.repeat, size=1 if self.size is None else self.size)
        if self.perturb:
            one_of(PERTURBED_FRAMES, perturb=self.perturb)
            at_least(2 if self.perturb in REORDERED_FRAMES else 1, count=self.count)
        elif self.perturb_seed:
            raise ValueError("`perturb_seed` is of no use without `perturb`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are sampled; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        at_least(0, temperature=self.temperature)
        at_least(1, max_new_tokens=self.max_new_tokens)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` lies above 0 and at most at 1, not at {self.top_p}")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Render the shapes world instead of reading videos of your own."""

    videos: int = 200
    seed: int = 1
    size: int = 96
    """Width and height of the mp4 files in pixels."""
    questions: int = 4
    """Questions per video."""

    def __post_init__(self) -> None:
        at_least(1, videos=self.videos, questions=self.questions)
        at_least(16, size=self.size)
        if self.size % 2:
            raise ValueError(f"`size` is even, as H.264 wants it, not {self.size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Clips that begin where the picture changes at once, as at a cut of the camera."""

    threshold: float = 0.3
    """How different the frames before and after a cut are at least, from 0 to 1."""
    min_s: float = 1.0
    """No clip is shorter, unless the video is."""
    most: int = 20
    """Clips per video. Where there are more scenes, `min_s` is raised until there are not."""

    def __post_init__(self) -> None:
        at_least(0.1, min_s=self.min_s)
        at_least(1, most=self.most)
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` lies between 0 and 1, not at {self.threshold:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """How videos are cut: `parts` equal parts, pieces of `seconds`, or `scenes`."""

    parts: int | None = None
    seconds: float | None = None
    scenes: Scenes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioning:
    model: str
    adapter: str = ""
    """Folder of a LoRA adapter over the model; so in every stage that has one."""
    prompt: str
    frames: Frames
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refining:
    """A model that sees the video writes its context anew, from the context of the round before."""

    model: str
    adapter: str = ""
    prompt: str
    """With `{context}`."""
    frames: Frames
    sampling: Sampling = Sampling()
    rounds: int = 1

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarising:
    """A model sums up contexts that are too long; the others stay as they are."""

    model: str
    adapter: str = ""
    prompt: str
    """With `{context}`."""
    sampling: Sampling = Sampling()
    above_words: int = 400
    """Contexts of more words are summed up."""

    def __post_init__(self) -> None:
        at_least(1, above_words=self.above_words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrative:
    prompt: str
    """What is said of one clip, with `{start_s}`, `{end_s}` and `{caption}`."""
    separator: str = "\n"
    """What stands between two clips."""
    transcripts: str | None = None
    """A second prompt, with `{start_s}`, `{end_s}` and `{text}`: what is said in the video, in its place."""
    refine: Refining | None = None
    summarise: Summarising | None = None
    """After the last round of `refine`, if there is one."""


FORMS = ("lines", "json")
"""How a model writes questions: one a line, or a JSON object with answers and kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A question with fields: `{duration_s}`, and for one of every clip `{start_s}`, `{end_s}`, `{caption}`."""

    question: str
    reference: str | None = None
    """The answer, with the same fields."""
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerability:
    """A model says of every written question whether the context answers it; the rest is left out."""

    model: str
    adapter: str = ""
    prompt: str
    """With `{context}` and `{question}`; A = yes, B = no."""
    at_least: float = 0.5
    """Questions with a lower probability of yes get no responses. No part of any key."""

    def __post_init__(self) -> None:
        if not 0 <= self.at_least <= 1:
            raise ValueError(f"`at_least` is a probability, not {self.at_least:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Questions for videos that have none: a model writes them from the contexts, or they come from templates."""

    model: str | None = None
    adapter: str = ""
    prompt: str | None = None
    sampling: Sampling = Sampling()
    form: str = "lines"
    templates: list[Template] = field(default_factory=list)
    answerable: Answerability | None = None

    def __post_init__(self) -> None:
        one_of(FORMS, form=self.form)
        by_model = self.model is not None and self.prompt is not None
        if by_model == bool(self.templates) or (self.templates and (self.model or self.prompt)):
            raise ValueError("give either `model` and `prompt`, or `templates`")


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherPolicy:
    """Another model that answers the same questions, or the same one asked otherwise. What is left out is as in
    `respond:` itself, the adapter excepted."""

    model: str | None = None
    adapter: str = ""
    prompt: str | None = None
    sampling: Sampling | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Responding:
    model: str
    adapter: str = ""
    """Folder of a LoRA adapter over the model."""
    prompt: str
    frames: Frames
    sampling: Sampling = Sampling(temperature=1.0)
    samples: int = 2
    also: list[FurtherPolicy] = field(default_factory=list)
    """Further policies, whose responses are paired with these."""

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("`sampling` is greedy (temperature 0): all samples would be the same")
        if self.also:
            self.policies()

    def policies(self) -> list[Responding]:
        """The stage without its further policies, then each of them as a stage of its own."""
        own = dataclasses.replace(self, also=[])
        given = ({name: value for name in POLICY if (value := getattr(one, name)) is not None} for one in self.also)
        return [own, *(dataclasses.replace(own, **changes) for changes in given)]


POLICY = tuple(field.name for field in dataclasses.fields(FurtherPolicy))


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbing:
    """Negatives: the policy answers once more from a video that was spoilt, or from another one."""

    kinds: list[str]
    """Some of `reversed`, `shuffled`, `dropped`, `blank`, `other_video`."""
    seed: int = 0
    samples: int = 1
    """Answers per question and kind; each is paired with the policy's answer of the same number."""

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)
        for kind in self.kinds:
            one_of(PERTURBATIONS, kinds=kind)
        if len(set(self.kinds)) < max(1, len(self.kinds)):
            raise ValueError("`kinds` names at least one kind, and each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Which responses of a question are compared. The score chooses pairs; which is better, the judge says."""

    strategy: str = "all"
    """`all`; `best_worst`: the best-scored with the worst; `best_rest`: the best-scored with every other."""
    score: str | None = None
    """`quality`: the ratings of `rate:`; `logprob`: the mean log-probability of a response's tokens."""
    min_gap: float = 0.0
    """Between the two scores, at least; equal scores never make a pair of `best_worst` and `best_rest`."""
    max_similarity: float | None = None
    """Drop near-duplicates: pairs of which a larger share of words is in both texts (Jaccard, 0 to 1)."""
    max_length_ratio: float | None = None
    """Drop pairs of which one text has more than so many times the characters of the other."""
    length_balanced: bool = False
    """Drop pairs until the longer response is the better-scored one as often as the shorter one is."""
    most_per_question: int | None = None
    """Those with the largest gap are kept, or, without a score, any."""
    perturb: Perturbing | None = None

    def __post_init__(self) -> None:
        one_of(STRATEGIES, strategy=self.strategy)
        at_least(0, min_gap=self.min_gap)
        for name in ("most_per_question", "max_length_ratio"):
            if (value := getattr(self, name)) is not None:
                at_least(1, **{name: value})
        if self.score is not None:
            one_of(SCORES, score=self.score)
        elif self.strategy != "all" or self.length_balanced or self.min_gap:
            raise ValueError(f"a `score` is needed here, one of {', '.join(SCORES)}")
        if self.max_similarity is not None and not 0 <= self.max_similarity <= 1:
            raise ValueError(f"`max_similarity` lies between 0 and 1, not at {self.max_similarity}")
