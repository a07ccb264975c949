"""The report of a journey: one table on the terminal, one self-contained HTML page with plots and a few pairs.

No script, no network, nothing that executes: text from models is escaped, plots are SVG, frames are PNG data.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_rlaif.eval.curves import Curve, draw, remark
from vlm_rlaif.eval.figures import Figures, select
from vlm_rlaif.feedback.report.plots import bar_plot, png_data_uri
from vlm_rlaif.warehouse.media.video import VideoError, sample
from vlm_rlaif.warehouse.store import Warehouse

HEADLINES = {
    "label_accuracy_context": "labels with context: agreement with the truth",
    "label_accuracy_none": "labels without context: agreement with the truth",
    "context_gain": "gain of the labels by context",
    "label_accuracy_held_out": "labels on held-out videos",
    "rm_accuracy": "reward model on held-out videos, against the truth",
    "rm_text_only_accuracy": "reward model that cannot see the video",
    "rm_video_gain": "gain of the reward model by the video",
    "start_truth": "truth of the start's greedy answers",
    "policy_truth": "truth of the trained policy's greedy answers",
    "policy_gain": "gain of the policy",
    "start_truth_sampled": "truth of the start's sampled answers",
    "win_rate": "judge prefers the trained policy",
}
"""Figure -> what it says, in the order of the table. The others follow at the end of the page."""
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.3em .9em;border-bottom:1px solid #ddd;text-align:left;"
    "vertical-align:top}.plots{display:flex;flex-wrap:wrap;gap:1em}.pair{border:1px solid #ddd;"
    "border-radius:6px;padding:1em;margin:1em 0}.pair img{width:96px;margin-right:4px;"
    "image-rendering:auto}.chosen{background:#e8f5e9}code{background:#f4f4f4;padding:.1em .3em}"
)


def write_html(warehouse: Warehouse, figures: Figures, curves: Sequence[Curve], path: Path) -> None:
    """Write the page."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>vlm-rlaif report</title>",
        f"<style>{STYLE}</style><h1>vlm-rlaif: report of {_text(warehouse.path)}</h1>",
        "<h2>Figures</h2>", _table(select(figures, HEADLINES)),
        "<p>95 % confidence intervals, clustered by video; n = items.</p><h2>Plots</h2><div class='plots'>",
        _label_bars(figures), *draw(curves).values(), "</div>",
        *(f"<p>{_text(said)}</p>" for curve in curves if (said := remark(curve))),
        "<h2>A few pairs</h2>", *(_pair(warehouse, row) for row in some_pairs(warehouse)),
        "<h2>More figures</h2>", _table(select(figures, [name for name in figures if name not in HEADLINES])),
        "<h2>Rows</h2>", _counts(warehouse),
    ]  # fmt: skip
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(parts), encoding="utf-8")
    partial.rename(path)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(figures: Figures) -> str:
    rows = [
        f"<tr><td><code>{_text(name)}</code></td><td>{_text(estimate)}</td>"
        f"<td>{_text(HEADLINES.get(name, ''))}</td></tr>"
        for name, estimate in figures.items()
    ]
    return f"<table><tr><th>figure</th><th>value [interval]</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _label_bars(figures: Figures) -> str:
    names = [n for n in figures if n.endswith("accuracy") or n.startswith("label_accuracy")]
    if not names:
        return ""
    bars = [(n.replace("_accuracy", "").replace("_", " "), figures[n]) for n in names]
    return bar_plot("Accuracy against the truth", bars, y_label="agreement with the truth")


def some_pairs(warehouse: Warehouse, most: int = 4) -> list[dict[str, Any]]:
    """Strong preferences of judges with context, then conflicts, with everything around them."""
    return warehouse.rows(
        """
        SELECT p.*, q.text AS question, q.reference, a.text AS text_a, b.text AS text_b, v.uri,
               c.text AS context
        FROM preferences p JOIN questions q USING (question_id) JOIN videos v ON v.video_id = p.video_id
        JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
        LEFT JOIN contexts c ON c.context_id = p.context_id
        WHERE p.context_id IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY p.conflict ORDER BY p.strength DESC, p.pair_id) <= ?
        ORDER BY p.conflict, p.strength DESC, p.pair_id
        """,
        [most // 2],
    )


def _pair(warehouse: Warehouse, row: dict[str, Any]) -> str:
    try:
        frames = sample(warehouse.video_path(row["uri"]), 6, size=None).frames
        images = "".join(f"<img alt='' src='{png_data_uri(frame)}'>" for frame in frames)
    except VideoError as error:
        images = _text(error)
    answers = "".join(
        f"<tr class='{'chosen' if row['choice'] == side else ''}'><td>{side.upper()}</td>"
        f"<td>{_text(row[f'text_{side}'])}</td></tr>"
        for side in ("a", "b")
    )
    verdict = "conflict between the two orders: a tie" if row["conflict"] else row["choice"].upper()
    return (
        f"<div class='pair'><div>{images}</div><p><b>{_text(row['question'])}</b></p><table>{answers}</table>"
        f"<p>Verdict: {verdict}, P(A better) = {row['p_a']:.2f}."
        f" Reference: <i>{_text(row['reference'] or 'none')}</i></p>"
        f"<p>Context that the judge read: {_text(row['context'])}</p></div>"
    )


def _counts(warehouse: Warehouse) -> str:
    rows = warehouse.rows("SELECT * FROM cost ORDER BY stage")
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_cell(v)}</td>' for v in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else _text(value)
