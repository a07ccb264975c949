"""Models: folders, embedded ones, and hub ids, whose rows are made with the revision that they are keyed by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlm_rlaif.datagen import models
from vlm_rlaif.warehouse.errors import MissingExtra, UserError

NAME = "some-owner/some-model"
OLD, NEW = "a" * 40, "b" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "training_args.pt": b"another",
}
ASK = """
import sys
from vlm_rlaif.datagen import models
from vlm_rlaif.warehouse.errors import UserError

try:
    print(getattr(models, sys.argv[1])(sys.argv[2]))
except UserError as error:
    sys.exit(str(error))
"""
NOBODY = "http://127.0.0.1:9"


class FakeHub(ThreadingHTTPServer):
    """A hub with one model. `main` may move; the weights of a commit begin with its name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.main = OLD
        self.files = dict(FILES)
        self.lost = ""
        """A file that is listed and not there."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if path == f"/api/models/{NAME}/revision/main" or path == f"/api/models/{NAME}":
            self._send(json.dumps({"id": NAME, "sha": hub.main}).encode())
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            commit = path.rpartition("/")[2]
            tree = [{"type": "file", "path": n, "size": len(_content(hub, commit, n)), "oid": n} for n in hub.files]
            self._send(json.dumps(tree).encode())
        else:
            commit, name = path.split("/")[-2:]
            if name == hub.lost:
                self.send_error(404)
            else:
                self._send(_content(hub, commit, name), commit)

    def _send(self, body: bytes, commit: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{commit}{len(body)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def _content(hub: FakeHub, commit: str, name: str) -> bytes:
    return hub.files[name] if name.endswith(".json") else commit.encode() + hub.files[name]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        served.shutdown()


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine whose cache of models was empty at first."""

    home: Path

    def ask(self, function: str, model: str, hub_url: str) -> subprocess.CompletedProcess[str]:
        """A function of `models` in a process of its own."""
        caches = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in caches}
        return subprocess.run(
            [sys.executable, "-c", ASK, function, model], text=True, capture_output=True,
            env={**kept, "HF_HOME": str(self.home), "HF_ENDPOINT": hub_url},
        )  # fmt: skip

    def revision(self, hub_url: str) -> str:
        return self.ask("revision", NAME, hub_url).stdout.strip()

    def download(self, hub_url: str) -> Path:
        done = self.ask("download", NAME, hub_url)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    pytest.importorskip("huggingface_hub")
    return Machine(tmp_path)


# What is loaded


def test_a_folder_and_an_embedded_model_are_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (str(tmp_path), "embedded:judge"):
        assert models.download(model) == models.resolve(model)
        assert Path(models.download(model), "config.json").is_file()


def test_a_hub_model_is_loaded_at_the_revision_that_its_rows_are_keyed_by(machine: Machine, hub: FakeHub) -> None:
    assert machine.revision(hub.url) == OLD
    hub.main = NEW
    assert (machine.download(hub.url) / "model.safetensors").read_bytes() == OLD.encode() + b"weights"
    assert machine.revision(hub.url) == OLD


def test_what_is_in_the_cache_needs_no_network(machine: Machine, hub: FakeHub) -> None:
    folder = machine.download(hub.url)
    assert (machine.revision(NOBODY), machine.download(NOBODY)) == (OLD, folder)


def test_pickles_are_not_fetched(machine: Machine, hub: FakeHub) -> None:
    found = sorted(path.name for path in machine.download(hub.url).iterdir())
    assert found == ["chat_template.jinja", "config.json", "model.safetensors"]


def test_the_cache_is_where_the_environment_says(machine: Machine) -> None:
    ref = machine.home / "hub" / "models--some-owner--some-model" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(f"{OLD}\n")
    assert machine.revision(NOBODY) == OLD


# What goes wrong


@pytest.mark.parametrize("function", ["revision", "download"])
@pytest.mark.parametrize(
    ("model", "reason"), [("no-owner/no-model", "ConnectError"), ("my models/x", "HFValidationError")]
)
def test_a_hub_that_gives_nothing_is_one_mistake_in_plain_words(
    machine: Machine, function: str, model: str, reason: str
) -> None:
    first, what, last = machine.ask(function, model, NOBODY).stderr.splitlines()
    assert model in first and reason in what and last.endswith("--model FOLDER.")


def test_a_download_that_breaks_off_is_a_mistake_in_plain_words(machine: Machine, hub: FakeHub) -> None:
    hub.lost = "model.safetensors"
    said = machine.ask("download", NAME, hub.url).stderr
    assert f"The model {NAME} is no folder here" in said and said.endswith("--model FOLDER.\n")
    assert "Traceback" not in said


def test_a_hub_model_of_pickles_alone_is_refused(machine: Machine, hub: FakeHub) -> None:
    del hub.files["model.safetensors"]
    said = machine.ask("download", NAME, hub.url).stderr
    assert f"{NAME} has no weights as *.safetensors" in said and said.endswith("--model FOLDER.\n")


def test_a_hub_model_without_the_hubs_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"hub model owner/name(.|\n)*vlm-rlaif\[models\]"):
        models.revision("owner/name")


def test_a_served_model_is_pinned_by_its_name_and_loaded_by_nobody_here() -> None:
    assert models.resolve("served:my model") == "served:my model"
    assert models.revision("served:my model") == ""
    with pytest.raises(UserError, match=r"only a server has(.|\n)*--server"):
        models.download("served:my model")
    with pytest.raises(UserError, match="--model served:NAME"):
        models.resolve("served:")
