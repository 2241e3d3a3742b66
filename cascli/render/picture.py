"""A comparison as a picture: its terminal page as SVG."""

from __future__ import annotations

import io
import re

from rich.console import Console

from cascli.analysis.comparison import Comparison
from cascli.render.comparison import print_results
from cascli.render.console import WIDEST, SafeConsole, Screen
from cascli.render.theme import COLORS, PALETTES

# Rich's own template loads its font from a server whenever the picture is opened; a page that is passed on must not.
TEMPLATE = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: Fira Code, ui-monospace, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
        font-variant-east-asian: full-width;
    }}

    .{unique_id}-title {{
        font-size: 18px;
        font-weight: bold;
        font-family: arial, sans-serif;
    }}

    {styles}
    </style>

    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>

    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""
NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def svg(comparison: Comparison, title: str = "cascli compare") -> str:
    """Verdict, table and answers as they look on a terminal of a page's width."""
    console = SafeConsole(record=True, width=WIDEST, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    nowhere = Console(file=io.StringIO())
    print_results(comparison, Screen(console, nowhere))
    picture = console.export_svg(title=title, code_format=TEMPLATE, unique_id="cascli")
    for event, color in COLORS.items():  # the picture has its own dark background
        picture = picture.replace(color, PALETTES["dark"][event])
    return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", picture)
