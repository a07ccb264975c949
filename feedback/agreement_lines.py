"""What `vlm-rlaif feedback agreement` prints: the figures of `agreement.py` as lines for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from vlm_rlaif.feedback.agreement import Agreement, Judged, People, Rate
from vlm_rlaif.feedback.known import AGAINST
from vlm_rlaif.feedback.stats.agreement import CHOICES
from vlm_rlaif.feedback.stats.calibration import Kept, threshold_for
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.warehouse.inspection.card import MARGIN, aligned
from vlm_rlaif.warehouse.inspection.printing import printable


def lines(found: Agreement, accuracy: float, width: int) -> Iterator[str]:
    """Everything, for a page of `width` columns; `accuracy` is what kept labels should have."""
    weighted = ", weighted by the strata of the audit" if found.weighted else ""
    yield f"{found.pairs:,} pairs of {found.videos:,} videos are known, by {AGAINST[found.against]}{weighted}"
    if found.strata_unjudged:
        share = f"{100 * found.share_unjudged:.1f} % of the pairs"
        yield f"{found.strata_unjudged} strata ({share}) not judged yet: nothing here is about them"
    if found.people is not None:
        yield from _people(found.people, width)
    if not found.judges:
        yield "no judge has a complete preference about any of them"
    for judge in found.judges:
        yield from _judge(judge, AGAINST[found.against], accuracy, width)


def _people(people: People, width: int) -> Iterator[str]:
    yield ""
    yield printable(
        f"people: {people.annotators:,} gave {people.verdicts:,} verdicts on {people.pairs:,} pairs;"
        f" {people.both_bad:,} say that both are bad, and count as ties"
    )
    if not people.overlap:
        yield "no pair was judged by two of them: how far people agree is not known"
        return
    yield from aligned(
        "two people",
        [],
        [
            ["agreement", str(people.agreement)],
            ["alpha", str(people.alpha)],
            ["alpha, a < tie < b", str(people.alpha_ordinal)],
        ],
        width,
    )
    if people.annotator_pairs:
        rows = [[*one.annotators, str(one.agreement), str(one.kappa)] for one in people.annotator_pairs]
        yield from aligned("who", ["", "", "agreement", "kappa"], rows, width)


def _judge(judge: Judged, who: str, accuracy: float, width: int) -> Iterator[str]:
    yield ""
    name = printable(PurePath(judge.prompt).name.removesuffix(".md"))
    yield f"judge {name} ({judge.judge}): {judge.known:,} of its {judge.preferences:,} preferences are known"
    if judge.fitted_to:
        yield f"{'':{MARGIN}}calibrated: its p was fitted to verdicts on such pairs, so p fits these too well"
    yield from aligned(
        f"with {who.split()[-1]}",
        [],
        [
            ["agreement", str(judge.agreement)],
            ["kappa", str(judge.kappa)],
            ["alpha", str(judge.alpha)],
            ["alpha, a < tie < b", str(judge.alpha_ordinal)],
            ["names the better one", str(judge.accuracy)],
        ],
        width,
    )
    head = ["", *(f"{who.split()[-1]}: {choice}" for choice in CHOICES)]
    rows = [
        [f"judge: {choice}", *(f"{count:,}" for count in counts)]
        for choice, counts in zip(CHOICES, judge.confusion, strict=True)
    ]
    yield from aligned("confusion", head, rows, width)
    yield from _curve(judge.curve, accuracy, width)
    head = ["", "judge", "corrected", "sensitivity", "specificity", "pairs", "known"]
    yield from aligned("how often", head, [_rate(rate) for rate in judge.rates], sys.maxsize)
    for rate in judge.rates:
        if rate.refused and rate.pairs:
            yield f"{'':{MARGIN}}{printable(rate.what)}: not corrected. {rate.refused}"


def _curve(curve: Sequence[Kept], accuracy: float, width: int) -> Iterator[str]:
    rows = [[f"{kept.min_strength:g}", f"{100 * kept.coverage:.1f} %", str(kept.accuracy)] for kept in curve]
    yield from aligned("labels", ["min-strength", "kept", "of these right"], rows, width)
    wanted, found = f"{'':{MARGIN}}{100 * accuracy:g} % right:", threshold_for(accuracy, curve)
    if found is not None:
        yield f"{wanted} --min-strength {found.min_strength:g} keeps {100 * found.coverage:.1f} %"
    elif curve:
        yield f"{wanted} no strength is enough"


def _rate(rate: Rate) -> list[str]:
    counts = [f"{rate.pairs:,}", f"{rate.known:,}"]
    if rate.corrected is None:
        return [rate.what, "", "", "", "", *counts]
    found = rate.corrected
    seen = (found.sensitivity.headline(), found.specificity.headline())
    return [rate.what, _short(found.rate), _short(found.corrected), *seen, *counts]


def _short(estimate: Estimate) -> str:
    """A number and its interval; how many items it has stands in a column of its own."""
    return str(estimate).partition(" (n=")[0]
