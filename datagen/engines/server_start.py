"""Before the first request: which servers answer, what they serve, and what they understand. Blocks; httpx.

A model is found by the name that a server gives it, or by the folder or hub id that vLLM says it was loaded from. The
key comes from the environment (`VLLM_RLAIF_API_KEY`, else `OPENAI_API_KEY`) and goes nowhere but into a header.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.engines.server_wire import words_of
from vlm_rlaif.warehouse.errors import UserError

KEYS = ("VLLM_RLAIF_API_KEY", "OPENAI_API_KEY")
CONNECT_S = 10.0


@dataclass(slots=True)
class Found:
    """A server that has been asked what it serves."""

    url: str
    """Its API, `http://127.0.0.1:8000/v1`."""
    up: bool = False
    cards: list[dict[str, Any]] = field(default_factory=list)
    """The models that it serves, as it describes them."""
    vllm: bool = False
    names: dict[str, str] = field(default_factory=dict)
    """Adapter folder (empty: the model itself) -> the name that the server gives it."""

    @property
    def root(self) -> str:
        """Where vLLM has what is no part of OpenAI's API."""
        return self.url.removesuffix("/v1")

    @property
    def most_tokens(self) -> int | None:
        """Of a prompt and its answer, where the server says so."""
        said = [card.get("max_model_len") for card in self.cards]
        return min((each for each in said if isinstance(each, int)), default=None)


def headers() -> dict[str, str]:
    """What every request carries: the key, if there is one."""
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def connection(url: str) -> dict[str, Any]:
    """What every client of this server is made with. Certificates are read once, and only where they are needed."""
    return {"headers": headers(), "verify": _certificates() if url.startswith("https") else False}


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def refused_key(url: str, status: int) -> UserError:
    """What to say when a server wants another key; never the key itself."""
    used = next((name for name in KEYS if os.environ.get(name)), None)
    return UserError(
        f"The server {url} refused the key in {used} (HTTP {status})."
        if used
        else f"The server {url} wants a key (HTTP {status}), and the environment has none.",
        f"export {used or KEYS[0]}=...",
    )


def find(urls: Sequence[str], model: str) -> list[Found]:
    """Ask every server what it serves; at least one has to answer, and those that do have to serve the model."""
    found = [Found(_address(url)) for url in dict.fromkeys(urls)]
    problems = [f"  {server.url}: {problem}" for server in found if (problem := ask(server, model))]
    if len(problems) == len(found):
        raise UserError(
            "No server answers:", *problems,
            f"Start one: vllm serve {model.removeprefix(models.SERVED)} --port 8000 --trust-request-mm-kwargs"
            " --enable-prompt-tokens-details",
        )  # fmt: skip
    return found


def ask(server: Found, model: str) -> str:
    """What a server serves, and under which name this model; returns what is wrong with one that does not answer.

    Raises `UserError` for one that answers and will not do: another key, another model.
    """
    with httpx.Client(**connection(server.url), timeout=CONNECT_S) as client:
        try:
            reply = client.get(f"{server.url}/models")
            if reply.status_code in (401, 403):
                raise refused_key(server.url, reply.status_code)
            server.cards = cards(reply.raise_for_status())
            server.vllm = _is_vllm(client, server)
        except (httpx.HTTPError, ValueError) as error:
            return str(error) or type(error).__name__
    server.names[""] = served_as(server, model)
    for folder in server.names:
        if folder:
            server.names[folder] = adapter_name(server, folder)
    server.up = True
    return ""


def _address(url: str) -> str:
    """`http://host:8000` is as good as `http://host:8000/v1`."""
    plain = url.strip().rstrip("/")
    try:
        parts = httpx.URL(plain)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"--server {url}: that is no address.", "--server http://127.0.0.1:8000/v1")
    return plain if parts.path not in ("", "/") else f"{plain}/v1"


def cards(reply: httpx.Response) -> list[dict[str, Any]]:
    """The models in a server's list; raises `ValueError` for a reply that is none."""
    said = reply.json()
    listed = said.get("data") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it does not list its models as OpenAI's API does")
    return [card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _is_vllm(client: httpx.Client, server: Found) -> bool:
    if any(card.get("owned_by") == "vllm" for card in server.cards):
        return True
    try:
        return "vllm:" in client.get(f"{server.root}/metrics").text
    except httpx.HTTPError:
        return False


def served_as(server: Found, model: str) -> str:
    """The name under which a server has a model; raises `UserError` where it does not serve it."""
    if model.startswith(models.SERVED):
        wanted = [model.removeprefix(models.SERVED)]
    else:
        place = models.resolve(model)
        wanted = [model, place, *([Path(place).name] if Path(place).is_dir() else [])]
    for name in wanted:
        for card in server.cards:
            root = str(card.get("root") or "")
            if name in (card["id"], root) or (root and "/" not in name and Path(root).name == name):
                return str(card["id"])
    ids = [card["id"] for card in server.cards]
    raise UserError(
        f"The server {server.url} does not serve {model}.",
        f"It serves: {', '.join(ids) or 'nothing'}.",
        f"--model served:{ids[0]}" if ids else f"vllm serve {wanted[0]}",
    )


def adapter_name(server: Found, folder: str) -> str:
    """The name under which a server has an adapter; vLLM is asked to load it where that is allowed."""
    for card in server.cards:
        if folder in (card["id"], card.get("root")) or (card.get("parent") and card["id"] == Path(folder).name):
            return str(card["id"])
    name = f"{Path(folder).name}-{adapters.revision(folder)[:8]}"
    if any(each["id"] == name for each in server.cards):
        return name
    asked = {"lora_name": name, "lora_path": folder}
    with httpx.Client(**connection(server.url), timeout=CONNECT_S) as client:
        try:
            reply = client.post(f"{server.url}/load_lora_adapter", json=asked, timeout=120)
        except httpx.HTTPError as error:
            raise UserError(f"The server {server.url} did not load the adapter {folder}: {error}.") from None
    if reply.is_success:
        server.cards.append({"id": name, "root": folder})
        return name
    said = "" if reply.status_code in (404, 405) else f" It says: {words_of(reply.content)}"
    raise UserError(
        f"The server {server.url} does not serve the adapter {folder}.{said}",
        f"Start it with --enable-lora --lora-modules {Path(folder).name}={folder}",
    )


def label_ids(servers: Sequence[Found], choices: Sequence[str]) -> tuple[int, ...]:
    """The token of each label, as vLLM's tokenizer has it; empty where no server says. Raises httpx's errors."""
    server = next((each for each in servers if each.up and each.vllm), None)
    if server is None:
        return ()
    with httpx.Client(**connection(server.url), timeout=CONNECT_S) as client:
        found = [_tokens(client, server, label) for label in choices]
    for label, ids in zip(choices, found, strict=True):
        if ids is None:
            return ()
        if len(ids) != 1:
            raise UserError(f"The label {label!r} is {len(ids)} tokens of this model's tokenizer, not one.")
    return tuple(ids[0] for ids in found if ids)


def _tokens(client: httpx.Client, server: Found, text: str) -> list[int] | None:
    asked = {"model": server.names[""], "prompt": text, "add_special_tokens": False}
    try:
        said: Mapping[str, Any] = client.post(f"{server.root}/tokenize", json=asked).raise_for_status().json()
        return [int(number) for number in said["tokens"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        return None
