"""The page in a real browser: keyboard navigation, small screens and hostile prompts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cascli import Pair, generate
from cascli.analysis.comparison import Comparison, uncompared
from cascli.render.html_trace import of_comparison
from cascli.rules._alphas import rules_in_alpha
from cascli.trace import Emitted, Round, Run
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


def answers(view: Browser, said: str) -> list[str]:
    """A text of each answer."""
    return view.js(f"[...document.querySelectorAll('.answer')].map((each) => each.querySelector('{said}').textContent)")


def opened(view: Browser, runs: Sequence[Run], tmp_path: Path) -> Browser:
    """The page of these runs."""
    file = tmp_path / "runs.html"
    file.write_text(of_comparison(uncompared(runs), None), encoding="utf-8")
    view.size(1600)
    view.open(file)
    return view


def test_an_answer_that_ended_early_has_no_place(chrome: Browser, comparison: Comparison, tmp_path: Path) -> None:
    runs = comparison.runs[: len(STRATEGIES)]
    fastest = min(range(len(runs)), key=lambda i: runs[i].metrics.seconds.total)
    runs[fastest] = runs[fastest].model_copy(update={"finish_reason": "interrupted"})
    said = answers(opened(chrome, runs, tmp_path), ".facts")
    assert said[fastest].endswith(", ended early")
    assert sorted(each.partition("place ")[2] for each in said) == ["", *map(str, range(1, len(runs)))]
    assert "place 1" in chrome.js("document.querySelector('.answer.winner').textContent")


def test_answers_of_a_batch_have_no_race(chrome: Browser, comparison: Comparison, tmp_path: Path) -> None:
    """Their seconds are shares of the time of all."""
    runs = [run.model_copy(update={"batch_size": 3}) for run in comparison.runs[: len(STRATEGIES)]]
    opened(chrome, runs, tmp_path)
    assert chrome.js("document.getElementById('race').offsetHeight") == 0
    said = answers(chrome, ".facts")
    assert all("s, a share of a batch of 3, ended by" in each and "place" not in each for each in said)
    assert chrome.js("document.querySelector('.winner')") is None
    click(chrome, ".answer .token")
    assert "s, a share of a batch of 3 · id" in (panel(chrome) or "")


def test_a_threshold_near_the_alpha_of_the_run_is_shown_on_its_side(
    chrome: Browser, comparison: Comparison, tmp_path: Path
) -> None:
    run = generate_of(comparison, "token-cascade")
    step = next(step for step in run.rounds if step.emitted[0].turned_down is not None)
    turned_down = step.emitted[0].turned_down
    assert turned_down is not None and run.params["rule"] == "diff"
    near = turned_down.detail.model_copy(update={"max_q1": 0.4, "max_p1": 0.450005})
    token = step.emitted[0].model_copy(
        update={"id": turned_down.id, "turned_down": turned_down.model_copy(update={"detail": near})}
    )
    run = run.model_copy(
        update={"params": {"rule": "diff", "alpha": 0.05}, "rounds": [step.model_copy(update={"emitted": [token]})]}
    )
    click(opened(chrome, [run], tmp_path), ".answer .token")
    assert re.search(
        r"deferred it .*keeps it at alpha 0\.0500\d+ or more, and the run had 0\.05\.", panel(chrome) or ""
    )
    near = near.model_copy(update={"max_q1": 0.45})  # the run's own numbers decided otherwise: no reason is given
    token = token.model_copy(update={"turned_down": turned_down.model_copy(update={"detail": near})})
    run = run.model_copy(update={"rounds": [step.model_copy(update={"emitted": [token]})]})
    click(opened(chrome, [run], tmp_path), ".answer .token")
    assert "The rule deferred it to the target." in (panel(chrome) or "")


def generate_of(comparison: Comparison, name: str) -> Run:
    return next(run for run in comparison.runs if run.strategy == name)


def test_tests_of_prefixes_are_explained_as_such(chrome: Browser, text_pair: Pair, tmp_path: Path) -> None:
    run = generate(text_pair, "hi", strategy="speculative:k=4,verify=block", temperature=0.8, seed=2, top=2)
    opened(chrome, [run], tmp_path)
    click(chrome, ".answer .token.rejected")
    text = panel(chrome) or ""
    assert "The own test of the drafts up to here passes with probability" in text
    assert "a longer prefix that passes keeps them too" in text and "together" not in text
    assert "own test of the drafts up to here passes with" in text
    click(chrome, ".answer .token.residual")
    assert "the mass that w pi has in excess of q" in (panel(chrome) or "")


def test_a_rule_that_does_not_choose_has_not_kept_a_token(chrome: Browser, text_pair: Pair, tmp_path: Path) -> None:
    run = generate(text_pair, "hi", strategy="speculative-cascade:rule=mentored", temperature=0.8, seed=2, top=2)
    click(opened(chrome, [run], tmp_path), ".answer .token.accepted")
    text = panel(chrome) or ""
    assert "tested against the target, and accepted" in text and "The rule" not in text
    assert "bonus: written by the target after a fully accepted block (or where nothing was drafted)" in chrome.js(
        "document.getElementById('key').textContent"
    )


def test_no_focus_is_hidden_by_the_numbers(view: Browser) -> None:
    """On a small screen they cover its lower part."""
    view.size(360, 740)
    view.js("scrollTo(0, 0)")
    click(view, ".answer .token")
    focused_on_page = 0
    for _ in range(25):
        view.press("Tab")
        box, sheet, inside = view.js(
            "(() => { const sheet = document.getElementById('panel'), at = document.activeElement;"
            " const box = at.getBoundingClientRect();"
            " return [box.top, sheet.getBoundingClientRect().top, sheet.contains(at) || at === document.body]; })()"
        )
        if not inside:
            focused_on_page += 1
            assert 0 <= box < sheet, (box, sheet)
    assert focused_on_page > 10


def test_a_hidden_token_is_no_tab_stop(view: Browser) -> None:
    stops = (  # whether the tab stop of each answer that shows a token is shown
        "(() => { const seen = (token) => token.offsetHeight && getComputedStyle(token).visibility === 'visible';"
        " return [...document.querySelectorAll('.answer')].map((each) => [...each.querySelectorAll('.token')])"
        ".filter((tokens) => tokens.some(seen)).map((tokens) => seen(tokens.find((each) => each.tabIndex === 0))); })()"
    )
    everywhere = [True] * len(STRATEGIES)
    click(view, "#untested")
    click(view, ".answer .token.untested")
    assert panel(view) is not None and view.js(stops) == everywhere
    click(view, "#untested")
    assert panel(view) is None and view.js(stops) == everywhere
    begun: list[list[int]] = []
    for moment in range(900, 0, -100):  # until an answer has some of its tokens, whatever the runs' times are
        give(view, "time", moment, "input")
        assert (some := view.js(stops)) == everywhere[: len(some)]
        begun = view.js(
            "[...document.querySelectorAll('.answer')].map((each, i) => [i, [...each.querySelectorAll('.token')]"
            ".findIndex((token) => token.classList.contains('later'))]).filter(([, place]) => place > 1)"
        )
        if begun:
            break
    answer, later = begun[0]
    view.js(f"document.querySelectorAll('.answer')[{answer}].querySelectorAll('.token')[{later - 1}].click()")
    last = focused(view)
    assert last is not None and last[0] == answer
    for _ in range(2):
        view.press("ArrowRight")
        assert focused(view) == last
    give(view, "time", 0, "input")
    assert panel(view) is None
    give(view, "time", 1000, "input")
    assert view.js(stops) == everywhere


def test_printing_shows_the_numbers_once(view: Browser) -> None:
    click(view, ".answer .token")
    margin = "getComputedStyle(document.querySelector('main')).marginRight"
    position = "getComputedStyle(document.getElementById('panel')).position"
    assert view.js(position) == "fixed" and view.js(margin) == "432px"
    for width in (1600, 700):
        view.size(width)
        view("Emulation.setEmulatedMedia", media="print")
        try:
            assert view.js(position) == "static" and view.js(margin) == "0px"
            assert view.js("getComputedStyle(document.getElementById('panel')).maxHeight") == "none"
        finally:
            view("Emulation.setEmulatedMedia", media="")


def test_an_alpha_outside_the_range_of_a_rule_is_refused(view: Browser) -> None:
    verdict = "document.getElementById('verdict').textContent"
    give(view, "rule", "chow", "change")
    give(view, "alpha-text", 0.5, "input")
    assert ": keeps " in view.js(verdict)
    for alpha in (7, -3):
        give(view, "alpha-text", alpha, "input")
        assert view.js(verdict) == "alpha of chow is from -1 to 1; still at 0.5"
        assert view.js("document.getElementById('alpha').value") == "0.5"
    limits = view.js("[document.getElementById('alpha-text').min, document.getElementById('alpha-text').max]")
    assert limits == ["-1", "1"]


def test_long_prompts_are_cut_between_characters(chrome: Browser, text_pair: Pair, tmp_path: Path) -> None:
    """And an answer without untested drafts has no box to show them; whole texts are copied as they are."""
    runs = []
    for id, prompt in (("a", "\U0001f600" * 90), ("b", "x" + "\U0001f600" * 90)):
        run = generate(text_pair, "hi", strategy="target", max_new_tokens=3)
        runs.append(run.model_copy(update={"prompt": prompt, "prompt_id": id, "text": "a\u00a0b\u200dc\nd"}))
    opened(chrome, runs, tmp_path)
    cut = chrome.js("[document.title, ...[...document.querySelectorAll('option')].map((each) => each.textContent)]")
    assert len(cut) > 3 and not any("\ud800" <= char <= "\udfff" for text in cut for char in text)
    assert cut[0] == "cascli trace: " + "\U0001f600" * 59 + "…"
    assert "prompt 1 of 2, " in chrome.js("document.getElementById('place').textContent")
    assert chrome.js("document.getElementById('untested-label').offsetHeight") == 0
    assert chrome.js("document.querySelector('.answer details:last-child p').textContent") == "a\u00a0b\u200dc\nd"


def test_a_character_of_several_tokens_is_whole(chrome: Browser, text_pair: Pair, tmp_path: Path) -> None:
    run = generate(text_pair, "hi", strategy="target", max_new_tokens=2)
    rounds = [Round(emitted=[Emitted(id=999, text="\ufffd", event="target", q=0.9999964)])] * 4
    opened(chrome, [run.model_copy(update={"rounds": rounds, "text": "\U0001f600"})], tmp_path)
    assert answers(chrome, ".flow") == ["^\u2060◌^\u2060◌^\u2060◌^\u2060\U0001f600"]
    assert chrome.js("document.querySelector('.answer .token').getAttribute('aria-label')").startswith(
        "part of a character: "
    )
    assert "◌ a part of a character" in chrome.js("document.getElementById('key').textContent")
    click(chrome, ".answer .token")
    text = panel(chrome) or ""
    assert "It is a part of a character that a later token completes." in text
    assert "1.000" in text  # 1 is shown for exactly 1 alone


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
