"""What is wrong before a server is asked: no client, no token, no address. The rest is in `tests/studio/`."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from vlm_rlaif.feedback.audit.label_studio import address, connect
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", SECRET)
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vlm-rlaif\[audit\]'"):
        connect(None)


def test_a_token_comes_from_the_environment_alone() -> None:
    with pytest.raises(UserError, match="LABEL_STUDIO_API_KEY is not set"):
        connect(None)


@pytest.mark.parametrize("token", [f"{SECRET} {SECRET}", f"{SECRET}\n{SECRET}", f"{SECRET}é"])
def test_what_is_no_token_is_refused_and_not_repeated(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    with pytest.raises(UserError, match="odd characters") as refused:
        connect(None)
    assert SECRET not in str(refused.value)


def test_the_address_is_given_or_set_or_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address(None) == "http://127.0.0.1:8080"
    monkeypatch.setenv("LABEL_STUDIO_URL", "https://studio.example/")
    assert (address(None), address("http://here:1/")) == ("https://studio.example", "http://here:1")
    with pytest.raises(UserError, match="no address"):
        address("studio.example")


@pytest.mark.parametrize("what", ["push", "pull", "status", "close", "serve"])
def test_every_command_names_the_plans_that_there_are(what: str, planned: Warehouse, command: Command) -> None:
    done = command("feedback", "audit", what, planned.path, "sprnig")
    assert done.code == 2 and "Did you mean 'spring'" in done.err and "Traceback" not in done.err


def test_the_status_needs_no_server_before_the_push(planned: Warehouse, command: Command) -> None:
    done = command("feedback", "audit", "status", planned.path, "spring")
    assert done.code == 0 and "30 pairs, 6 of them for several people; on no server yet" in done.out
