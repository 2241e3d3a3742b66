"""A comparison as a picture: the page of the terminal as SVG."""

from __future__ import annotations

import io

from rich.console import Console

from cascli.analysis.comparison import Comparison
from cascli.render.comparison import print_results
from cascli.render.console import WIDEST, Screen
from cascli.render.marks import COLORS, PALETTES


def svg(comparison: Comparison, title: str = "cascli compare") -> str:
    """Verdict, table and answers as they look on a terminal of a page's width."""
    console = Console(record=True, width=WIDEST, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    nowhere = Console(file=io.StringIO())
    print_results(comparison, Screen(console, nowhere))
    picture = console.export_svg(title=title, unique_id="cascli")
    for event, color in COLORS.items():  # the picture brings its own dark ground
        picture = picture.replace(color, PALETTES["dark"][event])
    return picture
