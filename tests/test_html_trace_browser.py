"""The page in a real browser: keyboard navigation, small screens and hostile prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cascli import Pair
from cascli.analysis.comparison import Comparison
from cascli.render.html_trace import of_comparison
from cascli.rules._alphas import rules_in_alpha
from tests import chromium
from tests.chromium import Browser
from tests.test_html_trace import HOSTILE, STRATEGIES, data_of, found

pytestmark = [
    pytest.mark.skipif(chromium.found() is None, reason="Chromium is not installed"),
    pytest.mark.slow,
]
WIDTHS = (390, 1600)


@pytest.fixture(scope="module")
def comparison(text_pair: Pair) -> Comparison:
    return found(text_pair, [HOSTILE, "one two one two"])


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "trace.html"
    file.write_text(of_comparison(comparison, f"cascli compare {HOSTILE}"), encoding="utf-8")
    return file


@pytest.fixture
def view(chrome: Browser, page: Path) -> Browser:
    chrome.size(1600)
    chrome.prefers(color_scheme="light", reduced_motion="no-preference")
    chrome.open(page)
    return chrome


def focused(view: Browser) -> tuple[int, int] | None:
    """The indices of the answer and token that have the focus."""
    place = view.js(
        "[...document.querySelectorAll('.answer')].flatMap((answer, i) => [...answer.querySelectorAll('.flow .token')]"
        ".map((token, j) => [token, i, j])).filter(([token]) => token === document.activeElement)"
        ".map((each) => each.slice(1))[0]"
    )
    return tuple(place) if place else None


def panel(view: Browser) -> str | None:
    return view.js("document.getElementById('panel').hidden ? null : document.getElementById('panel').innerText")


def click(view: Browser, selector: str) -> None:
    view.js(f"document.querySelector({json.dumps(selector)}).click()")


def give(view: Browser, name: str, value: object, event: str) -> None:
    view.js(
        f"(() => {{ const input = document.getElementById('{name}'); input.value = {json.dumps(value)};"
        f" input.dispatchEvent(new Event('{event}')); }})()"
    )


def test_no_error_and_no_request_but_the_file(view: Browser, page: Path) -> None:
    for width in WIDTHS:
        view.size(width)
        for number in (1, 0):
            give(view, "choose-prompt", number, "change")
            click(view, ".answer .token.accepted")
            give(view, "alpha", 0.5, "input")
            click(view, "#untested")
    assert view.complaints == []
    assert view.requests == [page.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(view: Browser, width: int, scheme: str) -> None:
    view.size(width)
    view.prefers(color_scheme=scheme)
    for number in (0, 1):
        give(view, "choose-prompt", number, "change")
        for opened in (False, True):
            if opened:
                click(view, ".answer:nth-child(5) .token")
                assert panel(view)
            outside = view.too_wide("main *, header *, footer *, #panel *", "!each.closest('thead')")
            assert outside == []
    ground = view.js("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme]


def test_a_hostile_prompt_stays_text(view: Browser) -> None:
    assert view.js("window.hacked") is None
    assert view.js("document.querySelectorAll('img, b').length") == 0
    heading = view.js("document.querySelector('h1').textContent")
    assert heading.startswith("</script><script>window.hacked = 1</script><img src=x onerror=")
    assert "&lt;" in heading and "␛" in heading and "\u202e" not in heading
    assert "</script>" in view.js("document.querySelector('footer dd').textContent")


def test_keyboard_navigation(view: Browser) -> None:
    stops = view.js("document.querySelectorAll('.flow .token[tabindex=\"0\"]').length")
    assert stops == len(STRATEGIES)
    view.js("document.querySelector('.flow .token[tabindex=\"0\"]').focus()")
    assert focused(view) == (0, 0)
    view.press("ArrowRight")
    view.press("ArrowRight")
    view.press("ArrowLeft")
    assert focused(view) == (0, 1)
    assert panel(view) is None
    view.press("Enter")
    text = panel(view)
    assert text is not None and "Written by the target model" in text and "position 2" in text
    assert view.js("document.activeElement.getAttribute('aria-expanded')") == "true"
    view.press("ArrowDown")
    assert focused(view) == (1, 1)
    text = panel(view)
    assert text is not None and "Written by the draft model" in text and "It was not called here." in text
    view.press("ArrowUp")
    assert focused(view) == (0, 1)
    view.press("Escape")
    assert panel(view) is None and focused(view) == (0, 1)
    assert view.js("document.activeElement.getAttribute('aria-expanded')") == "false"
    for _ in range(3):  # the answers' texts are tab stops too
        view.press("Tab")
        place = focused(view)
        if place is not None:
            break
    assert place == (1, 1)  # the token last visited in this answer
    outline = view.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_panel_of_a_rejected_draft(view: Browser, comparison: Comparison) -> None:
    give(view, "choose-prompt", 1, "change")
    click(view, ".answer:nth-child(8) .token.rejected")
    text = panel(view) or ""
    for said in (
        "Drafted, tested, and rejected", "The rule", "token-v3 keeps it", "Likeliest tokens of the draft model",
        "rank", "accepted with probability", "TV(p, q) here", "along this prefix only",
    ):  # fmt: skip
        assert said in text, said
    assert view.js("document.querySelectorAll('#panel .rules tbody tr').length") == len(rules_in_alpha())
    assert view.js("document.querySelectorAll('#panel .bars li').length") == 6
    assert view.js("document.getElementById('panel-how').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("rule", ["chow", "opt", "token-v1", "token-v3"])
def test_the_slider_colours_what_the_rule_would_keep(view: Browser, comparison: Comparison, rule: str) -> None:
    runs = comparison.runs[: len(STRATEGIES)]
    drafts = [draft.detail for run in runs for step in run.rounds for draft in step.drafted]
    drafts += [token.detail for run in runs for token in run.emitted if token.event == "draft"]
    drafts += [token.turned_down.detail for run in runs for token in run.emitted if token.turned_down is not None]
    line = rules_in_alpha()[rule]
    judged = [alphas for detail in drafts if detail is not None and (alphas := line.keeps(detail)) is not None]
    give(view, "rule", rule, "change")
    counts = []
    for alpha in (-0.5, 0.1, 0.55, 1):
        give(view, "alpha", alpha, "input")
        counts.append(view.js("document.querySelectorAll('.flow .keeps').length"))
        assert counts[-1] == sum(alpha in alphas for alphas in judged)
        assert counts[-1] + view.js("document.querySelectorAll('.flow .defers').length") == len(judged)
        assert f"keeps {counts[-1]} of {len(judged)} drafts" in view.js(
            "document.getElementById('verdict').textContent"
        )
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_the_race(view: Browser) -> None:
    hidden = "document.querySelectorAll('.flow .token.later').length"
    give(view, "choose-prompt", 1, "change")
    assert view.js(hidden) == 0
    give(view, "time", 0, "input")
    tokens = view.js("document.querySelectorAll('.flow .token').length")
    assert view.js(hidden) == tokens
    give(view, "time", 500, "input")
    assert 0 < view.js(hidden) < tokens
    give(view, "speed", "4", "change")
    click(view, "#play")
    assert view.js("document.getElementById('play').textContent") == "Pause"
    ends = time.monotonic() + 30
    while view.js("document.getElementById('play').textContent") != "Play":
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert view.js(hidden) == 0
    assert view.js("document.querySelectorAll('.answer.winner').length") == 1


def test_reduced_motion_is_respected(view: Browser, page: Path) -> None:
    view.prefers(reduced_motion="reduce")
    view.open(page)
    give(view, "time", 0, "input")
    click(view, "#play")
    assert view.js("document.getElementById('play').textContent") == "Play"
    assert view.js("document.querySelectorAll('.flow .token.later').length") == 0
    assert view.js("document.getElementById('still').hidden") is False


def test_controls_and_tokens_have_accessible_names(view: Browser) -> None:
    nameless = view.js(
        "[...document.querySelectorAll('button, select, input, [role=button], [role=group], section, aside, article')]"
        ".filter((each) => !(each.getAttribute('aria-label') || each.getAttribute('aria-labelledby')"
        " || each.textContent.trim() || each.labels?.length)).map((each) => each.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert (
        view.js("['header', 'main', 'footer', 'aside'].map((tag) => document.querySelectorAll(tag).length)") == [1] * 4
    )
    label = view.js("document.querySelector('.answer .token.accepted').getAttribute('aria-label')")
    assert "drafted and accepted, token " in label


def test_a_page_without_detail(chrome: Browser, text_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "bare.html"
    file.write_text(of_comparison(found(text_pair, ["hi"], top=0), "cascli"), encoding="utf-8")
    assert data_of(file.read_text(encoding="utf-8"))["detail"] is False
    chrome.open(file)
    assert "recorded without --top" in chrome.js("document.getElementById('missing').innerText")
    assert chrome.js("document.getElementById('judge').disabled")
    click(chrome, ".answer:nth-child(5) .token")
    text = panel(chrome) or ""
    assert "probability as sampled" in text and "recorded without --top" in text
    assert chrome.complaints == []
