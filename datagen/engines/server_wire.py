"""Requests and replies as an OpenAI-compatible server writes them: pure functions, no network.

A `Dialect` is what a server understands. What it refuses in so many words is learnt, and not said again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.engines.server_video import Media

TOP = 20
"""Log-probabilities that OpenAI-compatible servers give at most for one token."""
TOO_LONG = (
    "maximum context length", "maximum model length", "context_length_exceeded", "encoder cache size",
    "longer than the maximum", "context window", "exceeds the maximum",
)  # fmt: skip
NO_SCHEMA = re.compile("response_format|json_schema|structured|guided")
NO_TIMES = "--trust-request-mm-kwargs"
"""What vLLM wants to be started with before it reads `media_io_kwargs`."""
NO_FILES = ("allowed-local-media-path", "No such file")
ENDED = {"stop": "stop", "length": "length", "eos": "stop", "eos_token": "stop", None: "stop"}
PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""vLLM fills in what a checkpoint recommends (a penalty, say) unless it is told not to."""


class BrokenReply(Exception):
    """A reply that is none: it is asked for again."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server understands."""

    vllm: bool = False
    max_tokens: str = "max_tokens"
    logprobs: bool = True
    json_schema: bool = True
    local_files: bool = True


def learn(dialect: Dialect, request: Request, words: str) -> Dialect:
    """The dialect after a refusal: changed, if the words name something that can be left out or said otherwise."""
    if dialect.max_tokens == "max_tokens" and "max_completion_tokens" in words:
        return replace(dialect, max_tokens="max_completion_tokens")
    if dialect.local_files and any(sign in words for sign in NO_FILES):
        return replace(dialect, local_files=False)
    if (
        dialect.json_schema
        and request.json_schema
        and re.search("response_format|json_schema|structured|guided", words)
    ):
        return replace(dialect, json_schema=False)
    if dialect.logprobs and not request.choices and "logprobs" in words:
        return replace(dialect, logprobs=False)
    return dialect


def body(
    request: Request, model: str, dialect: Dialect, *, media: Media | None = None,
    label_ids: Sequence[int] = (), constrained: bool = False,
) -> list[bytes]:  # fmt: skip
    """The JSON of a request in pieces, so that a long video is not copied: the video first, then the text."""
    system = [{"role": "system", "content": request.system}] if request.system else []
    head = "[" + "".join(json.dumps(message) + "," for message in system)
    settings = _settings(request, model, dialect, label_ids, constrained)
    if media is None:
        message = json.dumps({"role": "user", "content": request.user})
        return [f'{{"messages":{head}{message}],{json.dumps(settings)[1:]}'.encode()]
    if media.about:
        settings["media_io_kwargs"] = {"video": media.about}
    text = json.dumps({"type": "text", "text": request.user})
    return [
        f'{{"messages":{head}{{"role":"user","content":['.encode(),
        media.parts,
        f",{text}]}}],{json.dumps(settings)[1:]}".encode(),
    ]


def _settings(
    request: Request, model: str, dialect: Dialect, label_ids: Sequence[int], constrained: bool
) -> dict[str, Any]:
    sampling = request.sampling
    asked: dict[str, Any] = {"model": model, **(PLAIN if dialect.vllm else {})}
    if request.choices:
        asked |= {dialect.max_tokens: 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
        if label_ids:
            asked |= {"logprob_token_ids": list(label_ids), "return_tokens_as_token_ids": True}
        if constrained:
            asked["structured_outputs"] = {"choice": list(request.choices)}
        return asked
    asked |= {dialect.max_tokens: sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        asked |= {"top_p": sampling.top_p, "seed": request.seed}
    if dialect.logprobs:
        asked["logprobs"] = True
    if request.json_schema and dialect.json_schema:
        asked |= _as_schema(json.loads(request.json_schema), dialect)
    return asked


def _as_schema(schema: Any, dialect: Dialect) -> dict[str, Any]:
    if dialect.vllm:  # a weak model may write nothing but white space, which JSON allows
        return {"structured_outputs": {"json": schema, "disable_any_whitespace": True}}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    }


def completion(request: Request, content: bytes, label_ids: Sequence[int] = ()) -> Completion:
    """What a reply says; raises `BrokenReply` for one that is not what a server should say."""
    try:
        reply = json.loads(content)
        [answer] = reply["choices"]
        text = answer["message"].get("content") or ""
        used = reply.get("usage") or {}
        tokens = (answer.get("logprobs") or {}).get("content") or []
        said = Completion(
            request.request_id, text, tokens_in=int(used.get("prompt_tokens") or 0),
            tokens_out=int(used.get("completion_tokens") or 0),
            cached_tokens=int((used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        )  # fmt: skip
        logprob = sum(float(token["logprob"]) for token in tokens) if tokens else None
        found = label_logprobs(request.choices, tokens, label_ids) if request.choices else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenReply(f"The reply is not one ({type(error).__name__}): {shorten(content)}") from None
    ended = answer.get("finish_reason")
    if ended not in ENDED:
        return replace(said, error=f"The server ended the request: {ended}.")
    if not request.choices:
        return replace(said, text=text.strip(), finish=ENDED[ended], logprob=logprob)
    best = max(found, key=lambda label: found[label]) if found else text
    return replace(said, text=best, logprob=found.get(best), choice_logprobs=found)


def label_logprobs(
    choices: Sequence[str], tokens: Sequence[Mapping[str, Any]], label_ids: Sequence[int] = ()
) -> dict[str, float]:
    """Log-probability of each label as the first token, from what a server lists; empty if it lists none of them.

    A token is a label if it is that very text; where no such token is listed, one with a single space before it is.
    A label that is not listed is less likely than all that are: it gets the smallest listed log-probability, an upper
    bound. With `label_ids` the server was asked for exactly these tokens.
    """
    listed = (
        {str(each["token"]): float(each["logprob"]) for each in reversed(tokens[0]["top_logprobs"])} if tokens else {}
    )
    names = [f"token_id:{number}" for number in label_ids]
    if not names or not any(name in listed for name in names):  # an old vLLM does not know this way of asking
        names = [label if label in listed else f" {label}" for label in choices]
    if not any(name in listed for name in names):
        return {}
    least = min(listed.values())
    return {label: listed.get(name, least) for label, name in zip(choices, names, strict=True)}


def refusal(request: Request, words: str, most_tokens: int | None) -> Completion:
    """The row's failure when a server will not answer it."""
    if any(sign in words for sign in TOO_LONG):
        limit = f" (The server takes {most_tokens} tokens.)" if most_tokens and str(most_tokens) not in words else ""
        return Completion(request.request_id, error=words + limit, error_kind="too_long")
    return Completion(request.request_id, error=words)


def words_of(content: bytes) -> str:
    """The message in a server's refusal, in whatever form it comes."""
    try:
        said = json.loads(content)
    except ValueError:
        return shorten(content)
    for name in ("error", "message", "detail"):
        while isinstance(said, dict) and name in said:
            said = said[name]
    return shorten((said if isinstance(said, str) else json.dumps(said)).encode())


def shorten(content: bytes, most: int = 600) -> str:
    """Text of a reply for an error message."""
    text = " ".join(content.decode(errors="replace").split())
    return text if len(text) <= most else f"{text[:most]}..."
