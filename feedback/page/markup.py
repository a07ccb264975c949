"""HTML out of Python: text is escaped unless it was made here.

Whatever a model, a person or a file wrote is `str` and is escaped; only what `tag` returns is `Html`. It is no
template language: pages are functions.

>>> print(tag("p", "1 < 2 ", tag("b", "& so on"), class_="note", hidden=None))
<p class="note">1 &lt; 2 <b>&amp; so on</b></p>
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = {"br", "hr", "input", "link", "meta", "source"}
"""Elements that hold nothing, and have no end."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Inside = str | None | Iterable["Inside"]
"""What an element holds; None is nothing."""


def tag(name: str, /, *inside: Inside, **attributes: str | int | float | bool | None) -> Html:
    """An element. `class_` is the attribute `class`, `data_at` is `data-at`; True is a bare one, None is none."""
    written = "".join(map(_attribute, attributes.items()))
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(inside)}</{name}>")


def join(inside: Inside) -> Html:
    """Pieces in their order; text becomes HTML that shows it.

    >>> join(["a", None, [Html("<br>"), "b<"]])
    'a<br>b&lt;'
    """
    if inside is None:
        return Html("")
    if isinstance(inside, str):
        return inside if isinstance(inside, Html) else Html(html.escape(inside))
    return Html("".join(map(join, inside)))


def _attribute(named: tuple[str, str | int | float | bool | None]) -> str:
    name, value = named[0].rstrip("_").replace("_", "-"), named[1]
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
