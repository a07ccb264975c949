"""Mistakes of the user: said in plain words, with the next step, without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The lines say what happened, where, and what to do next; the last one is a command where there is one.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))


class MissingExtra(UserError):
    """A feature needs packages that are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed.", f"pip install 'vlm-rlaif[{extra}]'")


class WarehouseBusy(UserError):
    """Another process holds the warehouse file."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'caption'?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C during a long query is a `RuntimeError` of DuckDB; outside of this block it is what it is elsewhere."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None
