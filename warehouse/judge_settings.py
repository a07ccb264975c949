"""What a recipe says about its judges: who compares or rates, in what way, and how several become one. Data, no code.

`label:` is the judge of the paper: pairwise, in both orders, with and without context. `judges:` are further ones,
`panels:` unite any of them, `probe:` asks them what they should know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_rlaif.warehouse.errors import nearest
from vlm_rlaif.warehouse.settings import ARMS, Frames, Sampling, at_least, one_of

METHODS = ("pairwise", "score", "checklist", "claims", "rank")
VERDICTS = ("choice", "words")
COMBINATIONS = ("majority", "mean", "weighted")
PROBES = ("same", "other_answer", "repeat")
RESERVED = (*ARMS, "random")
"""Names that `reward: {labels: ...}` knows already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeling:
    model: str
    adapter: str = ""
    prompt: str
    """The judge's prompt without context."""
    context_prompt: str
    """The judge's prompt with `{context}`."""
    frames: Frames
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    """Which labels are made: `context`, `none` or both."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            one_of(ARMS, arms=arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grading:
    """A judge rates every response by itself, from 1 to 5."""

    model: str
    adapter: str = ""
    prompt: str
    """The judge's prompt without context."""
    context_prompt: str | None = None
    """The judge's prompt with `{context}`."""
    frames: Frames
    arm: str = "none"
    """Whether it reads the narrative: `context` or `none`."""

    def __post_init__(self) -> None:
        one_of(ARMS, arm=self.arm)
        if self.arm == "context" and self.context_prompt is None:
            raise ValueError("`arm: context` needs a `context_prompt`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A further judge of the recipe's pairs."""

    name: str
    """For commands, panels and `reward: {labels: NAME}`."""
    method: str = "pairwise"
    """`pairwise`: two responses, in both orders. The others rate single responses, and the ratings become labels:
    `score`: 1 to 5; `checklist`: yes or no for each of `items`; `claims`: yes or no for every claim that a response
    makes; `rank`: all responses of a question at once."""
    model: str
    adapter: str = ""
    prompt: str
    """With `{context}` where `arm` is `context`."""
    arm: str = "none"
    """Whether it reads the narrative: `context` or `none`."""
    frames: Frames | None = None
    """Left out: it sees no video. With `arm: context` the narrative stands for it."""
    verdict: str = "choice"
    """Of `pairwise`. `choice`: one token, read from the probabilities of A, B, C; `words`: the reply is text (a
    critique, say) whose last line names the verdict."""
    sampling: Sampling = Sampling(max_new_tokens=512)
    """Of `verdict: words`, `claims` and `rank`: how the text is sampled."""
    votes: int = 1
    """Verdicts in each order, with seeds of their own; more than one need `verdict: words` and a temperature."""
    items: list[str] = field(default_factory=list)
    """Of `checklist`: yes-no questions, each asked as `{item}`."""
    split_prompt: str | None = None
    """Of `claims`: the prompt that splits a response into claims, one a line. Left out: at the ends of sentences."""
    scale: float = 1.0
    """Ratings to labels: p of the better response is the logistic function of the difference over `scale`."""
    tie_margin: float = 0.0
    """Ratings to labels: a difference that is no larger is a tie."""

    def __post_init__(self) -> None:
        one_of(METHODS, method=self.method)
        one_of(VERDICTS, verdict=self.verdict)
        one_of(ARMS, arm=self.arm)
        at_least(1, votes=self.votes)
        at_least(0, tie_margin=self.tie_margin)
        if not self.name or self.name in RESERVED:
            raise ValueError(f"`name` is a name of your own, not {self.name!r}")
        if self.scale <= 0:
            raise ValueError(f"`scale` lies above 0, not at {self.scale:g}")
        if self.verdict == "words" and self.method != "pairwise":
            raise ValueError("`verdict: words` goes with `method: pairwise`")
        if self.votes > 1 and (self.verdict != "words" or self.sampling.temperature == 0):
            raise ValueError("`votes` need `verdict: words` and a temperature in `sampling`: else all are the same")
        if bool(self.items) != (self.method == "checklist"):
            raise ValueError("`items` go with `method: checklist`, which needs some")
        if len(set(self.items)) < len(self.items):
            raise ValueError("`items` names each once")
        if self.split_prompt is not None and self.method != "claims":
            raise ValueError("`split_prompt` goes with `method: claims`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Several judges as one, without asking anybody again."""

    name: str
    of: list[str]
    """Names of judges, or arms of `label:`."""
    combine: str = "majority"
    """`majority` of the choices; `mean` of the probabilities; `weighted`: the mean by accuracy in audits."""

    def __post_init__(self) -> None:
        one_of(COMBINATIONS, combine=self.combine)
        if not self.name or self.name in RESERVED:
            raise ValueError(f"`name` is a name of your own, not {self.name!r}")
        if len(set(self.of)) < max(2, len(self.of)):
            raise ValueError("`of` names at least two judges, and each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """Questions to pairwise judges whose answers are known without people, or that they have answered before."""

    kinds: list[str] = field(default_factory=lambda: list(PROBES))
    """`same`: a response with itself, a tie; `other_answer`: with the answer to another video, which loses;
    `repeat`: a pair that was judged, once more."""
    pairs: int = 100
    """Probes of each kind."""
    seed: int = 0
    judges: list[str] = field(default_factory=list)
    """Names of pairwise judges or arms; left out, the arms of `label:`."""

    def __post_init__(self) -> None:
        at_least(1, pairs=self.pairs)
        for kind in self.kinds:
            one_of(PROBES, kinds=kind)


def check_names(judges: Sequence[Judge], panels: Sequence[Panel], taught_by: str | None) -> None:
    """Raise `ValueError` unless every name is given once, and the reward model learns from one of them."""
    names = [*(judge.name for judge in judges), *(panel.name for panel in panels)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two judges or panels have the name {twice[0]!r}")
    if taught_by is not None and taught_by not in (known := (*RESERVED, *names)):
        raise ValueError(
            f"reward: `labels` is one of {', '.join(known)}, not {taught_by!r}.{nearest(taught_by, known)}"
        )
