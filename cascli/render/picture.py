"""A comparison as a picture: its terminal page as SVG."""

from __future__ import annotations

import io
import re

from rich.console import Console

from cascli.analysis.comparison import Comparison
from cascli.render.comparison import print_results
from cascli.render.console import WIDEST, SafeConsole, Screen
from cascli.render.theme import COLORS, PALETTES

NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def svg(comparison: Comparison, title: str = "cascli compare") -> str:
    """Verdict, table and answers as they look on a terminal of a page's width."""
    console = SafeConsole(record=True, width=WIDEST, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    nowhere = Console(file=io.StringIO())
    print_results(comparison, Screen(console, nowhere))
    picture = console.export_svg(title=title, unique_id="cascli")
    for event, color in COLORS.items():  # the picture has its own dark background
        picture = picture.replace(color, PALETTES["dark"][event])
    return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", picture)
