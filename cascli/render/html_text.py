"""Text on its way into HTML: whatever a file, a model or a person wrote is never read as markup."""

from __future__ import annotations

import html

from cascli.errors import plain


def text(value: str) -> str:
    """Any text as HTML shows it: markup as it was written, control characters as pictures of them."""
    return html.escape(plain(value).encode("utf-8", "replace").decode("utf-8"))


def section(title: str, content: str) -> str:
    """A part of a page under its title; nothing where there is nothing in it."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>\n" if content else ""
