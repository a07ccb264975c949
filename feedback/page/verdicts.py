"""What was said of a pair, as parts of its page: judges, people, ratings, probes; and where every row comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from vlm_rlaif.feedback.page.listing import NOBODY, Row
from vlm_rlaif.feedback.page.markup import Html, Inside, tag
from vlm_rlaif.feedback.page.pair import made
from vlm_rlaif.feedback.page.shell import SIDE, About, badge, command, file_name, lines, p_bar, verdict_badge

SHORT_REPLY = 40
"""Characters that fit into a line of a table."""
FIRST = {"ab": "A", "ba": "B", "both": "both", "unknown": "not known"}
"""Which answer was shown first, by the order."""
OUTCOME = {True: "passed", False: "failed", None: ""}


def sections(card: Row, judge: str) -> Iterator[Inside]:
    """All that was said; the judge of the list comes first."""
    yield tag("h2", "Judges")
    judges = sorted((row for row in card["places"] if row["judge"] != NOBODY), key=lambda row: row["judge"] != judge)
    nobody = tag("p", "No judge has compared these answers yet.", class_="quiet")
    yield [_judge(card, row) for row in judges] or nobody
    if card["humans"]:
        yield tag("h2", "People")
        yield [_person(row) for row in card["humans"]]
    if card["ratings"]:
        yield tag("h2", "Ratings")
        yield _ratings(card)
    if card["probes"]:
        yield tag("h2", "Probes of judges with these answers")
        yield _probes(card["probes"])


def _judge(card: Row, row: Row) -> Html:
    """What one judge says, in every order and vote."""
    labels = [label for label in card["labels"] if label["spec_id"] == row["judge"]]
    spec = card["specs"].get(row["judge"], {})
    notes = (
        ("reads the context", any(label["context_id"] for label in labels)),
        ("judges its own answers", row["judge"] in card["self_judges"]),
        ("one order so far", not row["complete"]),
    )
    name = tag("span", tag("b", file_name(spec.get("prompt"))), " ", tag("small", _model(spec)))
    result = tag("span", p_bar(row["p"]), verdict_badge(row["choice"], row["p"], row["conflict"]), class_="result")
    head = tag("header", name, [badge(words, "quiet") for words, so in notes if so], result)
    vote = "vote" if len({label["vote"] for label in labels}) > 1 else None
    table = _table(
        ["first shown", vote, "verdict", "P(A)", "P(tie)", "words (in them, A is what was shown first)"],
        [
            [
                FIRST.get(label["shown_order"], "?"), str(label["vote"]), _choice(label["choice"]),
                f"{label['p_a']:.3f}", f"{label['p_tie']:.3f}", _reply(label["reply"]),
            ]
            for label in labels
        ],
    )  # fmt: skip
    return tag("article", head, table, class_="judge")


def _person(row: Row) -> Html:
    facts = lines(
        row["plan"],
        f"saw {FIRST.get(row['shown_order'], '?')} first",
        f"{row['confidence']} of 5 sure" if row["confidence"] else None,
        None if row["seconds"] is None else f"{row['seconds']:.0f} s",
        f"{row['updated_at']:%Y-%m-%d %H:%M}",
    )
    reasons = [badge(reason, "quiet") for reason in row["reasons"]]
    head = tag("header", tag("b", row["annotator"]), _choice(row["choice"]), reasons)
    comment = tag("p", row["comment"], class_="words") if row["comment"] else None
    return tag("article", head, comment, tag("footer", facts, class_="quiet"), class_="judge")


def _ratings(card: Row) -> Html:
    sides = dict(zip((response["response_id"] for response in card["responses"]), "AB", strict=True))
    return _table(
        ["of", "item", "value", "judge", "words"],
        [
            [
                sides.get(row["response_id"], "question"), row["item"], f"{row['value']:g}",
                maker(card, row["spec_id"]), _reply(row["reply"]),
            ]
            for row in card["ratings"]
        ],
    )  # fmt: skip


def _probes(probes: Sequence[Row]) -> Html:
    return _table(
        ["judge", "kind", "first shown", "verdict", "p", "outcome"],
        [
            [
                file_name(row["judge_prompt"]), row["kind"], FIRST.get(row["shown_order"], "?"),
                _choice(row["choice"]), f"{row['p']:.3f}", OUTCOME[row["passed"]],
            ]
            for row in probes
        ],
    )  # fmt: skip


def lineage(card: Row, about: About) -> Html:
    """Every row that the pair hangs on: who made it, in which run, and the command that says why."""
    rows = [_origin(card, row, about) for row in made(card) if row.get("run_id")]
    summary = tag("summary", "Where it comes from ", tag("small", f"{len(rows)} rows"))
    return tag("details", summary, _table(["row", "made by", "run", "why"], rows), class_="lineage")


def _origin(card: Row, row: Row, about: About) -> list[Inside]:
    key = next(iter(row))  # the first column of these tables is the id
    run = card["runs"].get(row["run_id"])
    engine = None if run is None or run["engine"] == "none" else run["engine"]
    made_in = lines(run["stage"], engine, f"{run['started_at']:%Y-%m-%d %H:%M}") if run else row["run_id"]
    whose = maker(card, row["spec_id"]) if row.get("spec_id") else row.get("source") or row.get("strategy")
    return [
        key.removesuffix("_id"),
        whose,
        made_in,
        command(shlex.join(["vlm-rlaif", "why", str(about.warehouse), row[key]])),
    ]


def maker(card: Row, spec_id: str | None) -> str:
    """Whose work a row is: prompt and model."""
    spec = card["specs"].get(spec_id, {})
    names = file_name(spec["prompt"]) if spec.get("prompt") else "", _model(spec)
    return " · ".join(name for name in names if name) or "imported"


def _model(spec: Row) -> str:
    """Empty where there is none: of a panel, say."""
    return "" if spec.get("model") in (None, "none") else spec["model"]


def _choice(choice: str) -> Html:
    return badge(SIDE.get(choice, choice), f"side-{choice}")


def _reply(reply: str) -> Html:
    if not reply:
        return tag("span", "none", class_="quiet")
    return tag("code", reply) if len(reply) <= SHORT_REPLY else tag("div", reply, class_="words")


def _table(columns: Sequence[str | None], rows: Sequence[Sequence[Inside]]) -> Html:
    """Columns that are None are left out, in the rows too."""
    head = tag("tr", [tag("th", column, scope="col") for column in columns if column])
    body = [tag("tr", [tag("td", cell) for column, cell in zip(columns, row, strict=True) if column]) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="table")
