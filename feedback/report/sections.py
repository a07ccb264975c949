"""What is measured of one judge, section by section: each is a few estimates and a sentence that says what is good.

How the numbers are made stands in `feedback/stats/`; `docs/bias.md` says how to read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from vlm_rlaif.feedback.report import gather
from vlm_rlaif.feedback.report.gather import Reference
from vlm_rlaif.feedback.stats import agreement, bias
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import Floats, mean, rate
from vlm_rlaif.warehouse.store import Warehouse

PROBE = "vlm-rlaif feedback probe {w} --recipe RECIPE"
PIN = "vlm-rlaif feedback anchor pin {w} NAME --judge {judge}"
THIRDS = ("hardest third", "middle third", "easiest third")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a section."""

    name: str
    value: Estimate | str


@dataclass(slots=True)
class Section:
    """Some figures about one question."""

    title: str
    good: str
    """What would be good."""
    rows: list[Row] = field(default_factory=list)
    note: str = ""
    """What else there is to say: why there is nothing, and the command that changes it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A judge, and what it is held against."""

    warehouse: Warehouse
    judge: str
    pairs: pl.DataFrame
    """With `known`, `p_known` and `weight` where the reference knows the pair, and `gap`: how far apart the two
    responses are."""
    verdicts: pl.DataFrame
    reference: Reference | None
    compares: bool
    """It is asked about pairs in two orders; else its labels are derived from other rows."""

    @property
    def videos(self) -> list[str]:
        return self.pairs["cluster"].to_list()

    @property
    def known(self) -> pl.DataFrame:
        return self.pairs.filter(pl.col("known").is_not_null())


def sections(subject: Subject) -> list[Section]:
    """All that there is to say about a judge beside its agreement with people or the truth."""
    makers: list[Callable[[Subject], Section | None]] = [
        position, length, own_answers, context_effect, probes, negatives, repeats, drift,
    ]  # fmt: skip
    return [made for make in makers if (made := make(subject)) is not None]


def position(subject: Subject) -> Section | None:
    """Does the place decide?"""
    said = subject.verdicts
    if not subject.compares or not len(said):
        return None
    both = said.join(subject.pairs.select("pair_id", "gap"), on="pair_id", how="left", maintain_order="left")
    first = bias.named_first(said["choice"].to_numpy(), said["shown_order"].to_numpy())
    pairs = subject.pairs.filter(pl.col("orders") == 2)
    videos, conflict = said["cluster"].to_list(), _numbers(pairs, "conflict")
    found = Section("position", "50 % of the verdicts name the first response, and no pair is a conflict.")
    found.rows.append(Row("names the first response", rate(first, videos)))
    found.rows += _thirds("... of the {}", bias.by_gap(first, _numbers(both, "gap"), videos))
    found.rows.append(Row("conflict of the two orders", rate(conflict, pairs["cluster"].to_list())))
    thirds = bias.by_gap(conflict, _numbers(pairs, "gap"), pairs["cluster"].to_list())
    found.rows += _thirds("... of the {}", thirds)
    if len(found.rows) > 2:
        found.note = "Thirds by how far apart the two responses are; bias is expected where they are close."
    return found


def length(subject: Subject) -> Section | None:
    """Does the longer response win because it is longer?"""
    pairs, videos = subject.pairs, subject.videos
    lengths = (_numbers(pairs, "length_a"), _numbers(pairs, "length_b"))
    p, longer = _numbers(pairs, "p"), bias.longer_won(pairs["choice"].to_numpy(), *lengths)
    if np.isnan(longer).all():
        return None
    kept = bias.length_balanced(longer, pairs["pair_id"].to_list())
    few = [video for video, is_kept in zip(videos, kept, strict=True) if is_kept]
    found = Section("length", "Longer responses win as often as they are better; a doubling adds nothing.")
    found.rows.append(Row("the longer response wins", rate(longer, videos)))
    known = subject.known
    if len(known) and subject.reference is not None:
        sizes = (_numbers(known, "length_a"), _numbers(known, "length_b"))
        truly = bias.longer_won(known["known"].to_numpy(), *sizes)
        better = rate(truly, known["cluster"].to_list(), weights=_numbers(known, "weight"))
        found.rows.append(Row(f"... is better, says {subject.reference.who}", better))
    found.rows.append(Row("a doubling of length adds", bias.length_coefficient(p, *lengths, videos)))
    if len(known):
        margin = 2 * _numbers(pairs, "p_known") - 1
        equal = bias.length_coefficient(p, *lengths, videos, margin, weights=_numbers(pairs, "weight"))
        found.rows.append(Row("... to responses equally good", equal))
    balanced = bias.length_coefficient(p[kept], lengths[0][kept], lengths[1][kept], few)
    found.rows.append(Row("... in the length-balanced pairs", balanced))
    found.note = f"Length-balanced: {len(few):,} of {len(pairs):,} pairs, in which longer and shorter win as often."
    return found


def own_answers(subject: Subject) -> Section | None:
    """Does a judge prefer what it has written itself?"""
    own = gather.own_policies(subject.warehouse, subject.judge)
    if not own or subject.reference is None:
        return None
    known = subject.known
    is_a, is_b = (known[f"policy_{side}"].is_in(own).to_numpy() for side in "ab")
    side = np.select([is_a & ~is_b, is_b & ~is_a], ["a", "b"], "")
    p, expected = _numbers(known, "p"), _numbers(known, "p_known")
    value = bias.self_preference(p, side, expected, known["cluster"].to_list(), _numbers(known, "weight"))
    said = "0 points: its own answers win as often as they are better."
    return Section("own answers", said, [Row(f"wins beyond what {subject.reference.who} says", value)])


def context_effect(subject: Subject) -> Section | None:
    """What does the narrative change?"""
    others = gather.without_context(subject.warehouse, subject.judge)
    if not others:
        return None
    (other, name), *further = others
    without = gather.pairs(subject.warehouse, other).select("pair_id", p_without="p", without="choice")
    both = subject.pairs.join(without, on="pair_id", maintain_order="left")
    if not len(both):
        return None
    videos, p, before = both["cluster"].to_list(), _numbers(both, "p"), _numbers(both, "p_without")
    found = Section("context", "More accurate with the narrative; a change that is no gain is noise.")
    found.rows.append(Row("p moves by", mean(np.abs(p - before), videos, unit="fraction")))
    changed = bias.changed(both["without"].to_numpy(), both["choice"].to_numpy())
    found.rows.append(Row("another verdict", rate(changed, videos)))
    found.rows.append(Row("surer (strength)", mean(100 * bias.strength_gain(before, p), videos)))
    if subject.reference is not None:
        gained = _gain_of_accuracy(both.filter(pl.col("known").is_not_null()))
        found.rows.append(Row(f"gain of accuracy, says {subject.reference.who}", gained))
    if further:
        found.note = f"Against {name} ({other}), the first of {len(others)} that differ by the narrative alone."
    return found


def _gain_of_accuracy(known: pl.DataFrame) -> Estimate:
    """In points, of pairs of which one response is known to be better."""
    right = agreement.codes(known["known"].to_list())
    after, before = (
        agreement.correctness(agreement.codes(known[column].to_list()), right) for column in ("choice", "without")
    )
    return mean(100 * (after - before), known["cluster"].to_list(), weights=_numbers(known, "weight"))


def probes(subject: Subject) -> Section | None:
    """What does a judge say where the answer is known without people?"""
    if not subject.compares:
        return None
    found = Section("probes", "100 %: one answer twice is a tie, and the answer to another video loses.")
    results = gather.probe_results(subject.warehouse, subject.judge)
    names = {"same": "one answer twice: a tie", "other_answer": "another video's answer loses"}
    for kind, name in names.items():
        some = results.filter(pl.col("kind") == kind)
        if len(some):
            found.rows.append(Row(name, rate(_numbers(some, "passed"), some["cluster"].to_list())))
        if kind == "same" and len(some):
            first = bias.named_first(some["choice"].to_numpy(), some["shown_order"].to_numpy())
            found.rows.append(Row("... else it names the first", rate(first, some["cluster"].to_list())))
    if not found.rows:
        found.note = f"No probes yet: {PROBE.format(w=subject.warehouse.path)}"
    return found


def negatives(subject: Subject) -> Section | None:
    """Does the answer to a spoilt video lose?"""
    results = gather.negative_results(subject.warehouse, subject.judge)
    if not len(results):
        return None
    found = Section("spoilt videos", "The answer to the video as it is wins clearly more often than it loses.")
    for (kind,), some in results.group_by("perturbation", maintain_order=True):
        found.rows.append(Row(f"{kind}: loses", rate(_numbers(some, "confirmed"), some["cluster"].to_list())))
    return found


def repeats(subject: Subject) -> Section | None:
    """Does it say the same again?"""
    rows = gather.repeated(subject.warehouse, subject.judge)
    if not len(rows):
        return None
    found = Section("repeated", "p moves by 0, and no verdict is another one. Reliable is not yet valid.")
    for (engine,), some in rows.group_by("engine", maintain_order=True):
        found.rows += _moved(some, str(engine))
    return found


def drift(subject: Subject) -> Section | None:
    """Has the judge changed since it, or another, first judged a set of pinned pairs?"""
    if not subject.compares:
        return None
    rows = gather.anchored(subject.warehouse, subject.judge)
    found = Section("drift", "0 against whoever judged the pinned pairs before, unless a change was meant.")
    held_against: list[str] = []
    for (name, engine), some in rows.group_by("anchor", "engine", maintain_order=True):
        base = some.row(0, named=True)
        if (base["base_judge"], base["base_engine"]) == (subject.judge, engine):
            found.rows.append(Row(f"{name}, {engine}", f"the first to judge it ({len(some):,} pairs)"))
            continue
        found.rows += _moved(some, f"{name}, {engine}")
        held_against.append(f"{name}, {engine}: {base['base_prompt']}, {base['base_engine']}")
        videos, first_shown = some["cluster"].to_list(), 100 * _numbers(some, "towards_first")
        found.rows.append(Row("... p of the response shown first", mean(first_shown, videos)))
    if held_against:
        found.note = f"Held against those who judged before. {'; '.join(held_against)}."
    if not found.rows:
        command = PIN.format(w=subject.warehouse.path, judge=subject.judge)
        found.note = f"No pinned pairs that it has judged: {command}"
    return found


def _moved(rows: pl.DataFrame, name: str) -> Iterator[Row]:
    """How far two verdicts about the same pairs lie apart."""
    videos, before, after = rows["cluster"].to_list(), _numbers(rows, "p_before"), _numbers(rows, "p_after")
    yield Row(f"{name}: p moves by", mean(np.abs(after - before), videos, unit="fraction"))
    changed = bias.changed(rows["before"].to_numpy(), rows["after"].to_numpy())
    yield Row("... another verdict", rate(changed, videos))
    yield Row("... surer (strength)", mean(100 * bias.strength_gain(before, after), videos))


def _thirds(name: str, parts: list[bias.Part]) -> Iterator[Row]:
    if len(parts) == len(THIRDS):
        for part, which in zip(parts, THIRDS, strict=True):
            yield Row(name.format(which), part.estimate)


def _numbers(rows: pl.DataFrame, column: str) -> Floats:
    return rows[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
