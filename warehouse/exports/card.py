"""The data set card of an export: what is in it, who made it, how good the labels look, and how to make it again.

Everything that comes from data is escaped, so that it stays text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlm_rlaif.warehouse.exports.facts import Facts, prompt_text

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.exports.export import Asked, Exported
    from vlm_rlaif.warehouse.records import Dataset

HF_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
               "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0"}  # fmt: skip
"""Identifiers of the hub that name one licence."""
HF_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
            (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip
HOW = {
    "trl": "load_dataset(FOLDER) gives conversational preferences. `videos` holds paths; the trainers of TRL (1.16)"
    " read `images` and no videos, so bring a data collator that does.",
    "llama-factory": "Set `dataset_dir` to this folder and `dataset` to a name in `dataset_info.json`.",
    "ms-swift": "Give the files to `--dataset`.",
    "llava": "Records of LLaVA-NeXT's DPO trainer: `--data_path` is a file, `--video_folder` is this folder.",
    "vlm-rlaif": "Records of VLM-RLAIF's reward model, with `video` in the place of `images`: take the frames out of"
    " the videos first.",
    "parquet": "load_dataset(FOLDER). Ties are among the rows: choice is a, b or tie, p_a the soft label.",
    "hf": "datasets.load_from_disk(FOLDER), memory-mapped. Ties are among the rows: choice is a, b or tie, p_a the"
    " soft label.",
}
LIMITS = (
    "A label is the verdict of a model, except where its judge was imported or people judged the pair; nobody checked"
    " the others.",
    "The split belongs to the video: no video is in two splits.",
    "Pairs that were judged in one order alone are left out. Two orders that contradict each other are a tie.",
    "Agreement with a judge of the same family is no evidence that either is right.",
)


def write(
    facts: Facts, asked: Asked, made: Exported, splits: dict[str, dict[str, int]], files: dict[str, str]
) -> str:  # fmt: skip
    """The card as Markdown with the header of the hub. `splits` counts what the version has of each split."""
    version = asked.version
    parts = [
        f"---\n{_header(facts, made, files)}---",
        f"# {escape(version.name)}",
        f"Preferences between two responses to a question about a video. {HOW[made.format]}",
        f"Written by vlm-rlaif {installed('vlm-rlaif')} from the warehouse {escape(facts.warehouse)}:"
        f" version {escape(version.name)}, rows {_code(version.rows_hash)}, chosen by {_code(version.query)}.",
        "## What is in it",
        _table(
            ["split", "rows here", "preferences", "of these ties", "videos"],
            [[split, made.rows.get(split, 0), *counts.values()] for split, counts in splits.items()],
        ),
        *_left_out(made, asked.limit),
        "## Who judged",
        _table(
            ["judge", "prompt", "preferences", "ties", "orders that contradict each other"],
            [
                [j["judge"], short(j["prompt"]), j["preferences"], _percent(j["ties"]), _percent(j["conflicts"])]
                for j in facts.judges
            ],
        ),
        *_people(facts, version),
        *([_table(["judges on the same pairs", "", "pairs", "the same verdict"],
                  [[*list(row.values())[:3], _percent(row["agreement"])] for row in facts.agreement])]
          if facts.agreement else []),
        *_length(facts),
        "## Who wrote the words",
        _table(
            ["stage", "model", "revision", "prompt", "hash of its words"],
            [
                [m["stage"], short(m["model"]), m["revision"], short(m["prompt"]), m["prompt_hash"]]
                for m in facts.models
            ],
        ),
        *_prompts(facts),
        "## Licences of the videos",
        _table(["licence", "videos"], [[name or "not recorded", count] for name, count in facts.licences.items()]),
        "## How to make it again",
        _fence("\n".join(_commands(facts, asked)), "bash"),
        "## Known limits",
        "\n".join(f"* {line}" for line in LIMITS),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _header(facts: Facts, made: Exported, files: dict[str, str]) -> str:
    total = sum(made.rows.values())
    header: dict[str, Any] = {
        "pretty_name": " ".join(made.dataset.split()),
        "license": _licence(facts),
        "task_categories": ["video-text-to-text"],
        "tags": ["preference", "rlaif", "video", made.format],
        "size_categories": [next((name for most, name in HF_SIZES if total < most), "100M<n<1B")],
    }
    if made.format != "hf":  # that one is loaded from disk, and knows its files
        header["configs"] = [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": file} for split, file in files.items()],
            }
        ]
    text: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return text


def _licence(facts: Facts) -> str:
    """One identifier of the hub for all videos, or `other`."""
    names = {name.lower() for name in facts.licences}
    if names <= {""}:
        return "unknown"
    return names.pop() if len(names) == 1 and names <= HF_LICENCES else "other"


def _left_out(made: Exported, limit: int | None) -> Iterator[str]:
    if limit is not None:
        yield f"The first {limit:,} preferences alone were written."
    if made.ties:
        yield f"{made.ties:,} ties were left out: this format names a better response."
    if made.unfit:
        yield f"{made.unfit:,} preferences were left out: their texts hold `<video>`, `<image>` or `<audio>`."
    if made.missing:
        yield f"{len(made.missing):,} videos were not there when this was written; `export.json` names them."


def _people(facts: Facts, version: Dataset) -> Iterator[str]:
    if facts.people:
        yield (
            f"{facts.people:,} of the {version.preferences:,} preferences have the verdict of people, which outranks"
            " that of the judge."
        )


def _length(facts: Facts) -> Iterator[str]:
    if facts.mean_token_gap is not None and facts.longer_wins is not None:
        yield (
            f"The better response is longer in {_percent(facts.longer_wins)} of the pairs of different length, by"
            f" {facts.mean_token_gap:+.1f} tokens on average over all pairs with a better response."
        )


def _prompts(facts: Facts) -> Iterator[str]:
    """The words of the prompts, once each; the words of an imported row are nobody's prompt."""
    named = {(m["prompt"], m["prompt_hash"]): m for m in facts.models if m["stage"] != "import" and m["prompt_hash"]}
    for name, prompt_hash in named:
        yield f"### Prompt {escape(short(name))}"
        text = prompt_text(name, prompt_hash)
        gone = f"Its words (hash {_code(prompt_hash)}) are not part of this installation."
        yield gone if text is None else _fence(text)


def _commands(facts: Facts, asked: Asked) -> Iterator[str]:
    version, name, warehouse = asked.version, shlex.quote(asked.version.name), shlex.quote(facts.warehouse)
    condition = version.query.removeprefix("gold: ")
    if condition.startswith("complete"):
        gold = "" if condition == version.query else "--gold "
        yield f"vlm-rlaif dataset create {warehouse} {name} {gold}--where {_shell(condition)}"
    else:
        yield " ".join(f"# {version.name} was {version.query}".split())
    options = ["--format", asked.kind.name, "--dataset", name]
    if asked.videos != "path":
        options += ["--videos", asked.videos]
    if asked.limit is not None:
        options += ["--limit", str(asked.limit)]
    yield f"vlm-rlaif export {warehouse} {shlex.quote(asked.out.name)} {' '.join(options)}"


def _shell(text: str) -> str:
    """Text as one word of a shell, readable where it can be."""
    return f'"{text}"' if not re.search(r'["$`\\!]', text) else shlex.quote(text)


def _table(names: list[str], rows: list[list[Any]]) -> str:
    lines = [
        names,
        ["---"] * len(names),
        *([f"{c:,}" if isinstance(c, int) else escape(c) for c in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def short(name: str) -> str:
    """A model or a prompt without the folders of this machine."""
    return Path(name).name if name.startswith(("/", "~")) else name


def escape(text: str) -> str:
    """Text that Markdown shows and does not obey, on one line.

    >>> escape("a|b <b>*c*</b>")
    'a\\\\|b &lt;b&gt;\\\\*c\\\\*&lt;/b&gt;'
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", plain)


def _code(text: str) -> str:
    """Text in a code span that it cannot end."""
    line = " ".join(text.split())
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _fence(text: str, language: str = "text") -> str:
    """Text in a code block that it cannot end."""
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"
