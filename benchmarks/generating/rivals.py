"""One rival client on one list of prompts, in an environment that has it (`rivals.txt`).

    python benchmarks/generating/rivals.py TOOL URL PROMPTS.jsonl INTO [MODEL]

Prints how many rows came back with an answer, and the seconds from the first line of the tool's own code to its last.
A prompt is a line `{"id", "system", "user"}`, where `system` is the same for all, and may have the `path` of a
picture; INTO is a folder for whatever the tool keeps, its cache included. Each is used as its documentation says;
where that leaves a choice, the faster one.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRIES = 6
Prompts = list[dict[str, str]]


def system_of(prompts: Prompts) -> str:
    return prompts[0]["system"]


def rows_of(prompts: Prompts) -> Prompts:
    """The rows that a tool is given; what is the same for all belongs to its task."""
    return [{name: value for name, value in prompt.items() if name != "system"} for prompt in prompts]


def messages(row: dict[str, str], system: str) -> list[dict[str, Any]]:
    content: Any = row["user"]
    if "path" in row:
        data = base64.b64encode(Path(row["path"]).read_bytes()).decode()
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        content = [picture, {"type": "text", "text": row["user"]}]
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": content}]


def naive(url: str, prompts: Prompts, into: Path, model: str) -> int:
    """What everybody writes first: asyncio, httpx, a semaphore of 64; here with a loop around what goes wrong."""
    import asyncio

    import httpx

    async def ask(client: httpx.AsyncClient, slots: asyncio.Semaphore, prompt: dict[str, str]) -> str | None:
        body = {"model": model, "messages": messages(prompt, prompt["system"]), "max_tokens": 256, "temperature": 0}
        async with slots:
            for _ in range(TRIES):
                try:
                    reply = await client.post(f"{url}/chat/completions", json=body)
                    reply.raise_for_status()
                    return str(reply.json()["choices"][0]["message"]["content"])
                except (httpx.HTTPError, ValueError, KeyError):
                    continue
        return None

    async def run() -> list[str | None]:
        slots = asyncio.Semaphore(64)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=64)) as client:
            return list(await asyncio.gather(*(ask(client, slots, prompt) for prompt in prompts)))

    found = asyncio.run(run())
    lines = (json.dumps({"id": p["id"], "text": text}) for p, text in zip(prompts, found, strict=True))
    (into / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return sum(text is not None for text in found)


def saturate(window: str) -> Callable[[str, Prompts, Path, str], int]:
    def run(url: str, prompts: Prompts, into: Path, model: str) -> int:
        from saturate import Auto, Fixed, pump, read_output

        system = system_of(prompts)
        pump(
            rows_of(prompts),
            lambda row: {"model": model, "messages": messages(row, system), "max_tokens": 256, "temperature": 0},
            lambda row, reply: {"text": reply["choices"][0]["message"]["content"]},
            url, str(into / "out"), window=Auto() if window == "auto" else Fixed(int(window)),
        )  # fmt: skip
        return sum(1 for _ in read_output(str(into / "out")))

    return run


def distilabel(batch: int) -> Callable[[str, Prompts, Path, str], int]:
    def run(url: str, prompts: Prompts, into: Path, model: str) -> int:
        from distilabel.models import OpenAILLM
        from distilabel.pipeline import Pipeline
        from distilabel.steps import LoadDataFromDicts
        from distilabel.steps.tasks import TextGeneration

        os.environ["OPENAI_API_KEY"] = "none"
        with Pipeline(name="bench", cache_dir=str(into / "cache")) as pipeline:
            data = [{"instruction": p["user"]} for p in prompts]
            load = LoadDataFromDicts(data=data, batch_size=batch)
            settings = {"max_new_tokens": 256, "temperature": 0.0}
            llm = OpenAILLM(model=model, base_url=url, generation_kwargs=settings, timeout=600, max_retries=TRIES)
            load >> TextGeneration(llm=llm, input_batch_size=batch, system_prompt=system_of(prompts) or None)
        made = pipeline.run(use_cache=True)
        return sum(row["generation"] is not None for row in made["default"]["train"])

    return run


def curator(url: str, prompts: Prompts, into: Path, model: str) -> int:
    os.environ |= {
        "CURATOR_CACHE_DIR": str(into / "cache"), "CURATOR_DISABLE_RICH_DISPLAY": "1", "TELEMETRY_ENABLED": "0",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    from bespokelabs import curator as tool
    from datasets import Dataset

    class Ask(tool.LLM):  # type: ignore[misc]
        def prompt(self, row: dict[str, str]) -> str | list[dict[str, Any]]:
            return messages(row, "") if "path" in row else row["user"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            return {"id": row["id"], "text": response}

    ask = Ask(
        model_name=f"openai/{model}", backend="litellm", system_prompt=system_of(prompts) or None,
        generation_params={"temperature": 0, "max_tokens": 256},
        backend_params={
            "base_url": url, "max_requests_per_minute": 100_000, "max_tokens_per_minute": 100_000_000,
            "max_concurrent_requests": 64, "require_all_responses": False,
        },
    )  # fmt: skip
    made = ask(Dataset.from_list(rows_of(prompts)))
    return len(getattr(made, "dataset", made))


TOOLS: dict[str, Callable[[str, Prompts, Path, str], int]] = {
    "naive": naive, "saturate_fixed": saturate("64"), "saturate_auto": saturate("auto"), "distilabel": distilabel(50),
    "distilabel_500": distilabel(500), "curator": curator,
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    tool, url, prompts, into, *model = arguments
    asked = [json.loads(line) for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    Path(into).mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    rows = TOOLS[tool](url, asked, Path(into), *(model or ["mock"]))
    print(json.dumps({"rows": rows, "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    main(sys.argv[1:])
