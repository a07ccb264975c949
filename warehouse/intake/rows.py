"""An imported question, and what belongs to it, as rows. Ids are hashes of the content.

The spec of an imported response has the stage `import` and the name of the source as its prompt, so that it never
mixes with generated ones. Its `tokens` are words between spaces: nobody knows the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_rlaif.warehouse.intake.add import make_question
from vlm_rlaif.warehouse.intake.meanings import Asked, Compared
from vlm_rlaif.warehouse.records import Label, Pair, Record, Response, Spec, row_id

VOTES = {"a": 0, "b": 1, "tie": 2}
"""A source that says two things of one pair has voted twice, and the view `preferences` makes a tie of it."""


def rows_of(video_id: str, asked: Asked, name: str) -> Iterator[Record]:
    """The rows of one question, without a run yet."""
    line = {"question": asked.question, "reference": asked.reference, "kind": asked.kind}
    question = make_question(video_id, line, name, "")
    yield question
    if asked.compared is not None:
        yield from _compared(question.question_id, asked.compared, name)


def _compared(question_id: str, compared: Compared, name: str) -> Iterator[Record]:
    """Two responses, their pair and its label. The id of a response is that of its words, whoever imports them."""
    ids = []
    for index, (text, model) in enumerate(zip((compared.first, compared.second), compared.models, strict=True)):
        spec = _spec("response", name, model)
        ids.append(row_id("response", "import", question_id, text))
        yield spec
        yield Response(
            response_id=ids[-1], question_id=question_id, spec_id=spec.spec_id, sample_index=index, seed=0, text=text,
            tokens=len(text.split()), finish="stop", logprob=None, run_id="",
        )  # fmt: skip
    first, second = sorted(ids)
    pair_id = row_id("pair", first, second)
    yield Pair(
        pair_id=pair_id, question_id=question_id, response_a=first, response_b=second, strategy="import", run_id=""
    )
    judge = _spec("label", name, compared.judge)
    choice = "tie" if compared.better == "tie" else "ab"[(compared.better == "second") != (ids[0] == second)]
    vote = VOTES[choice]
    yield judge
    yield Label(
        label_id=row_id("label", judge.spec_id, pair_id, None, "unknown", vote), pair_id=pair_id,
        spec_id=judge.spec_id, context_id=None, shown_order="unknown", vote=vote, choice=choice,
        p_a=float(choice == "a"), p_tie=float(choice == "tie"), reply=compared.rationale, cached_tokens=0, run_id="",
    )  # fmt: skip


def _spec(part: str, name: str, model: str) -> Spec:
    """Who wrote, or compared, the responses of a source."""
    return Spec.make(
        stage="import", model=model, revision="", prompt=name, prompt_hash=row_id("import", part, name), frames={},
        sampling={}, upstream={},
    )  # fmt: skip
