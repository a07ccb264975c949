"""Questions that a model writes from the context, for videos that came without any.

Another model or prompt writes questions of its own; a recipe reads those of its own `ask:` part, never both. The
same question about the same video, in other capitals, say, is one question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.warehouse.config import Asking
from vlm_rlaif.warehouse.records import Question, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])?\s*")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
WORDS = {"type": "string", "minLength": 1}
KEYS = ("question", "answer", "kind")
SCHEMA = json.dumps(
    {
        "type": "object", "additionalProperties": False, "required": ["questions"],
        "properties": {
            "questions": {
                "type": "array", "minItems": 1, "maxItems": 20,
                "items": {
                    "type": "object", "additionalProperties": False, "required": list(KEYS),
                    "properties": dict.fromkeys(KEYS, WORDS),
                },
            }
        },
    }
)  # fmt: skip
"""What `form: json` constrains a reply to. An object at the top, as hosted servers ask for one."""


@dataclass(frozen=True, slots=True)
class Written:
    """One question as it was written."""

    text: str
    reference: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class AskStage:
    """One request per video; its reply holds several questions."""

    recipe: Asking
    spec: Spec
    context_spec: str
    name: str = "ask"
    needs: str = "contexts (vlm-rlaif datagen context)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT x.video_id, x.context_id, x.text FROM contexts x WHERE x.spec_id = $context"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM questions q WHERE q.video_id = x.video_id"
            " AND (q.spec_id IS NULL OR q.spec_id = $spec)))"
            " ORDER BY x.video_id",
            {"context": self.context_spec, "spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: self._question_id(row["context_id"], 0),
        )

    def _question_id(self, context_id: str, number: int) -> str:
        return row_id("ask", self.spec.spec_id, context_id, number)

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        assert self.recipe.prompt is not None
        said = prompt.load(self.recipe.prompt).render(context=row["text"])
        schema = SCHEMA if self.recipe.form == "json" else ""
        return Request(
            row["row_id"], said.user, said.system,
            sampling=self.recipe.sampling, adapter=self.recipe.adapter, json_schema=schema,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        read = read_json if self.recipe.form == "json" else read_lines
        return [
            Question(
                question_id=self._question_id(row["context_id"], number), video_id=row["video_id"],
                text=each.text, reference=each.reference, kind=each.kind, source=self.name,
                spec_id=self.spec.spec_id, run_id=run_id,
            )
            for number, each in enumerate(distinct(read(completion.text)))
        ]  # fmt: skip


def read_lines(reply: str) -> list[Written]:
    """Every line that ends in a question mark, without its bullet; raises `Unreadable` where there is none.

    >>> [each.text for each in read_lines("Gladly:\\n1. What happens?\\n- Why?")]
    ['What happens?', 'Why?']
    """
    lines = (_BULLET.sub("", line).strip() for line in reply.splitlines())
    if found := [Written(line) for line in lines if line.endswith("?")]:
        return found
    raise Unreadable("unparsable", "No line of the reply ends in a question mark.")


def read_json(reply: str) -> list[Written]:
    """The questions of a reply that fits `SCHEMA`; raises `Unreadable`, also when one of them does not fit.

    >>> read_json('{"questions": [{"question": "What falls?", "answer": "A cup.", "kind": "action"}]}')
    [Written(text='What falls?', reference='A cup.', kind='action')]
    """
    fenced = _FENCE.fullmatch(reply.strip())
    try:
        said = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        raise Unreadable("unparsable", "The reply is not JSON.") from None
    if not isinstance(said, dict) or said.keys() != {"questions"} or not isinstance(said["questions"], list):
        raise Unreadable("unparsable", 'The reply is no JSON object with a list of "questions" and nothing else.')
    if not said["questions"]:
        raise Unreadable("unparsable", "The list of questions is empty.")
    return [_question(number, each) for number, each in enumerate(said["questions"], 1)]


def _question(number: int, said: Any) -> Written:
    if not isinstance(said, dict) or said.keys() != set(KEYS):
        raise Unreadable("unparsable", f"Question {number} has not exactly the keys {', '.join(KEYS)}.")
    for key in KEYS:
        if not isinstance(said[key], str) or not said[key].strip():
            raise Unreadable("unparsable", f'The "{key}" of question {number} holds no words.')
    return Written(said["question"].strip(), said["answer"].strip(), said["kind"].strip())


def distinct(written: Sequence[Written]) -> list[Written]:
    """Of questions that differ in capitals and spaces only, the first.

    >>> [each.text for each in distinct([Written("Who  runs?"), Written("Why?"), Written("who runs?")])]
    ['Who  runs?', 'Why?']
    """
    found: dict[str, Written] = {}
    for each in written:
        found.setdefault(" ".join(each.text.split()).casefold(), each)
    return list(found.values())
