"""A sweep's page in a real browser: on a slide, on a laptop and on a phone, light and dark."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cascli.render.sweep_plot import plot_sweep
from cascli.render.sweep_report import report
from cascli.sweeps.table import rows
from tests import chromium
from tests.chromium import Browser
from tests.sweeps import HOSTILE, header_of, plan_of, records_of

pytestmark = [
    pytest.mark.skipif(chromium.found() is None, reason="Chromium is not installed"),
    pytest.mark.slow,
]
WIDTHS = (390, 1000, 1280, 1600)
PLAN = plan_of()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = records_of(PLAN, text=f"{HOSTILE} {'long' * 100} ")
    records = [
        record.model_copy(update={"category": f"{record.category} number {int(record.problem[1:])}"})
        for record in records
    ]
    drawing = io.StringIO()
    table = rows(records, PLAN)
    plot_sweep(table, "f1", drawing, title=HOSTILE)
    header = header_of(PLAN, title=HOSTILE, command=HOSTILE, prompts={f"p{i}": HOSTILE for i in range(8)})
    file = tmp_path_factory.mktemp("pages") / "report.html"
    file.write_text(report(header, table, drawing.getvalue(), records), encoding="utf-8")
    return file


@pytest.fixture
def view(chrome: Browser, page: Path) -> Browser:
    chrome.size(1280)
    chrome.prefers(color_scheme="light")
    chrome.open(page)
    return chrome


def test_no_error_and_no_request_but_the_file(view: Browser, page: Path) -> None:
    for width in WIDTHS:
        view.size(width)
        view.js("document.querySelector('details').open = true")
    assert view.complaints == []
    assert view.requests == [page.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(view: Browser, width: int, scheme: str) -> None:
    """Only a box with its own scroll bar may be wider; the table of strategies needs none."""
    view.size(width)
    view.prefers(color_scheme=scheme)
    view.js("document.querySelector('details').open = true")
    boxes = "!each.closest('.wide thead') && !each.parentElement.closest('.scroll')"
    outside = view.too_wide("header *, main *", boxes)
    assert outside == []
    ground = view.js("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme]


def test_a_laptop_shows_the_table_in_single_lines(view: Browser) -> None:
    """At 1,280 pixels no value wraps, and no row is more than two lines high."""
    heights = view.js(
        "[...document.querySelectorAll('.wide tbody tr:not(.group)')].map((row) => row.getBoundingClientRect().height)"
    )
    assert len(heights) == 36 and max(heights) < 64


@pytest.mark.parametrize("width", [1200, 1280, 1440])
def test_a_study_with_long_names_fits_a_laptop(view: Browser, width: int) -> None:
    """All columns fit, with names as long as those of rules with settings, and no number wraps."""
    study = Path(__file__).parents[1] / "benchmarks" / "results" / "study-word-problems" / "report.html"
    view.size(width)
    view.open(study)
    right = view.js(
        "Math.max(...[...document.querySelectorAll('.wide td')].map((e) => e.getBoundingClientRect().right))"
    )
    assert right <= width
    heights = view.js(
        "[...document.querySelectorAll('.wide tbody tr:not(.group)')].map((e) => e.getBoundingClientRect().height)"
    )
    rows = (study.parent / "results.csv").read_text().splitlines()[1:]
    assert len(heights) == len(rows) > 30 and max(heights) < 64


@pytest.mark.parametrize("width", [1060, 1200, 1280])
def test_ranges_of_few_prompts_fit_a_laptop(view: Browser, width: int, tmp_path: Path) -> None:
    """They are wider than intervals, and an interrupted sweep also has a column of answers."""
    records = records_of(PLAN, prompts=3)
    few = [row.model_copy(update={"quality_vs_random": -0.5, "quality_vs_random_interval": (-1.0, 1.0)})
           for row in rows(records[:-1], PLAN)]  # fmt: skip
    few = [row.model_copy(update={"quality_vs_random_interval_kind": "range"}) for row in few]
    file = tmp_path / "report.html"
    file.write_text(report(header_of(PLAN), few, None, records), encoding="utf-8")
    view.size(width)
    view.open(file)
    assert view.too_wide("main .wide *", "!each.closest('.wide thead')") == []


@pytest.mark.parametrize("width", [800, 1000, 1060])
def test_strategy_names_do_not_break_within_a_word(view: Browser, width: int) -> None:
    """Between a phone and a laptop the table of strategies has less room than its columns need."""
    view.size(width)
    view.open(Path(__file__).parents[1] / "benchmarks" / "results" / "study-word-problems" / "report.html")
    broken = view.js("""[...document.querySelectorAll('.wide tbody th')].flatMap((cell) => {
        const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode();
        const lines = (word) => {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            return new Set([...range.getClientRects()].map((rect) => rect.top)).size;
        };
        return text ? [...text.data.matchAll(/[^ -]+/g)].filter((word) => lines(word) > 1).map((word) => word[0]) : [];
    })""")
    assert broken == []


def test_a_phone_shows_every_value_with_its_name(view: Browser) -> None:
    view.size(390)
    names = view.js(
        "[...document.querySelectorAll('.wide tbody:first-of-type tr:nth-child(6) td')]"
        ".map((cell) => getComputedStyle(cell, '::before').content)"
    )
    assert '"against target"' in names and len(set(names)) == len(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(view: Browser, scheme: str) -> None:
    """It is at least 4.5 to 1 for each text on the nearest background below it; the figure has its own white one."""
    view.prefers(color_scheme=scheme)
    low = view.js(
        """(() => {
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => { return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
        const ground = (each) => { for (let at = each; at; at = at.parentElement) {
          const found = rgb(getComputedStyle(at).backgroundColor);
          if (found.length < 4 || found[3] > 0) return found; } };
        return [...document.querySelectorAll('header *, main *:not(svg):not(svg *)')]
          .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
          .map((each) => { const [a, b] = [light(rgb(getComputedStyle(each).color)), light(ground(each))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML.slice(0, 60)]; })
          .filter(([contrast]) => contrast < 4.5); })()"""
    )
    assert low == []


def test_a_hostile_text_stays_text(view: Browser) -> None:
    assert view.js("window.hacked") is None
    assert view.js("document.querySelectorAll('img, script, iframe').length") == 0
    heading = view.js("document.querySelector('h1').textContent")
    assert heading.startswith("</pre></script><script>window.hacked = 1</script><img src=x")
    assert "␛" in heading and "\u202e" not in heading
    assert view.js("document.querySelector('.answer pre').textContent").startswith("</pre></script>")
