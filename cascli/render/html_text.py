"""Text in HTML: nothing that a file, a model or a person wrote is read as markup."""

from __future__ import annotations

import html

from cascli.errors import plain


def text(value: str) -> str:
    """Escape text for HTML: markup is shown as written, control characters as visible symbols."""
    return html.escape(plain(value).encode("utf-8", "replace").decode("utf-8"))


def section(title: str, content: str) -> str:
    """A part of a page under its title; empty if there is no content."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>\n" if content else ""
