"""What a notebook shows: cells run as in IPython, results as HTML, and notebook progress bars."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

import cascli
from cascli import Pair, Run, compare, generate, load_pair, notebook
from cascli.errors import RunError
from cascli.render.marks import visible
from cascli.render.theme import COLORS
from cascli.sweeps.table import SweepRow, SweepRows
from tests.test_screen import HOSTILE, hostile

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.struck = ""
        self._styles: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes
        if tag != "br":
            self.open.append(tag)
            self._styles.append(dict(attributes).get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._styles.pop()

    def handle_data(self, data: str) -> None:
        self.words += data
        if any("line-through" in style for style in self._styles):
            self.struck += data


def shown(value: object) -> str:
    """What a notebook shows for a value: as in IPython, the method is looked up on its class."""
    method = getattr(type(value), "_repr_html_", None)
    html = method(value) if method else None
    return repr(value) if html is None else html


def executed(cells: list[str]) -> list[str]:
    """Run cells in one namespace; return what the notebook shows for the last expression of each."""
    scope: dict[str, Any] = {}
    out = []
    threads = torch.get_num_threads()
    try:
        for cell in cells:
            body = ast.parse(cell).body
            last = body.pop() if isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), "cell", "exec"), scope)
            if last is not None:
                out.append(shown(eval(compile(ast.Expression(last.value), "cell", "eval"), scope)))
    finally:
        torch.set_num_threads(threads)
    return out


def cells_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_example_runs() -> None:
    pair, run, comparison, row = executed(cells_of(NOTEBOOK))
    assert pair == "<Pair tiny-random: draft float32, target float32 on cpu>"
    for html in (run, comparison, row):
        assert Page(html).tags >= {"table", "tr", "td"}
    assert "speculative k=4" in Page(run).words and "24" in Page(run).words
    assert Page(comparison).words.startswith("Who is Buzz Aldrin?") and "1.00x" in Page(comparison).words


def test_two_checkpoints_in_folders_are_compared_in_a_notebook(tmp_path: Path) -> None:
    from cascli.models.tokenizer import byte_tokenizer
    from tests.pairs import pair

    loaded = load_pair(pair(300))
    for role in ("draft", "target"):
        getattr(loaded, role).model.save_pretrained(tmp_path / role)
        byte_tokenizer().save_pretrained(tmp_path / role)
    sources = {role: {"source": {"path": str(tmp_path / role)}} for role in ("draft", "target")}
    cells = [
        f"from cascli import compare, load_pair\npair = load_pair({sources!r})",
        "compare(pair, 'hello', ['target', 'speculative:k=3'], temperature=0, max_new_tokens=8, measure=False)",
    ]
    [html] = executed(cells)
    assert "speculative k=3" in Page(html).words and "same" in Page(html).words


def test_an_ipython_shell_displays_the_same_html_and_text(text_pair: Pair) -> None:
    shell = InteractiveShell.instance()
    run = generate(text_pair, "hi", strategy="speculative:k=2", max_new_tokens=6)
    data, _ = shell.display_formatter.format(run)
    assert data["text/html"] == run._repr_html_() and data["text/plain"] == repr(run)


@pytest.fixture(scope="module")
def runs(text_pair: Pair) -> list[Run]:
    return [
        generate(text_pair, "hello", strategy=spec, temperature=1, seed=1, max_new_tokens=24)
        for spec in ("target", "draft", "speculative:k=4", "cascade:threshold=-99", "speculative-cascade:rule=token-v3")
    ]


def test_an_answer_looks_as_it_does_on_a_terminal(runs: list[Run]) -> None:
    """Every word is in the colour of its origin, with rejected drafts struck through in between."""
    for run in runs:
        page = Page(run._repr_html_() or "")
        styles = " ".join(value or "" for name, value in page.attributes if name == "style")
        for event in {token.event for token in run.emitted}:
            assert f"color:{COLORS[event]}" in styles
        rejected = [
            step.drafted[i].text.strip(" ")
            for step in run.rounds
            for i, token in enumerate(step.emitted)
            if token.event == "residual"
        ]
        answer = page.struck
        for text in rejected:
            assert not text or visible(text) in answer
        assert bool(rejected) == ("line-through" in styles)
    assert "line-through" in (runs[2]._repr_html_() or ""), "a test with nothing rejected sees nothing"
    assert "draft model's answer is kept" in Page(runs[3]._repr_html_() or "").words


@pytest.mark.parametrize(
    "text", [*HOSTILE, "<script>alert(1)</script>", '"><img src=x onerror=y>', "&lt;b&gt;"], ids=repr
)
def test_foreign_text_is_never_interpreted_as_markup(runs: list[Run], text: str) -> None:
    for run in runs:
        foreign = hostile(run, text) if run.pair.draft else run
        html = foreign._repr_html_() or ""
        page = Page(html)
        assert page.tags <= {"div", "span", "table", "thead", "tbody", "tr", "th", "td", "br", "b"}
        assert {name for name, _ in page.attributes} == {"style"}
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
        if text.startswith(("<", "&", '"')):
            assert text in page.words


def test_columns_without_a_number_are_left_out(text_pair: Pair) -> None:
    """The share of the draft's mass that both can spell is known only for two tokenizers."""
    found = compare(text_pair, "hi", ["target", "speculative:k=2"], max_new_tokens=4, measure=False)
    assert "q(I)" not in (found._repr_html_() or "")
    rows = [row.model_copy(update={"shared_mass": 0.5}) for row in found.summary]
    assert "q(I)" in (found.model_copy(update={"summary": rows})._repr_html_() or "")


def test_styles_keep_the_background_of_the_notebook(runs: list[Run]) -> None:
    """Styles set no background, and no text colours but those of origins, which are legible on black and on white."""
    html = runs[2]._repr_html_() or ""
    assert set(re.findall(r"background:(\w+)", html)) == {"transparent"}
    assert set(re.findall(r"[;\"]color:([#\w]+)", html)) <= {"inherit", *COLORS.values()}
    assert "url(" not in html and "http" not in html and "class=" not in html


def test_every_repr_is_one_short_line(runs: list[Run], text_pair: Pair) -> None:
    found = compare(text_pair, ["hi", "ho"], ["target", "draft", "speculative:k=2", "cascade"], max_new_tokens=4,
                    measure=False)  # fmt: skip
    row = sweep_row()
    lines = [
        repr(each) for each in (runs[0], found, found.summary[0], text_pair, text_pair.target, row, SweepRows([row]))
    ]
    for line in lines:
        assert "\n" not in line and len(line) < 200 and line.startswith("<") and line.endswith(">"), line
    assert str(runs[0]) == repr(runs[0]) and runs[0].spec in lines[0] and "24 tokens" in lines[0]
    assert lines[1] == "<Comparison of target, draft, speculative:k=2 and 1 more: 8 answers>"
    long = runs[0].model_copy(update={"text": "a\n" * 5000})
    assert len(repr(long)) < 250 and "\n" not in repr(long)


def sweep_row(**more: Any) -> SweepRow:
    values = dict.fromkeys(SweepRow.model_fields) | {
        "strategy": "speculative:k=4", "temperature": 0.0, "family": "speculative", "answers": 20, "errors": 0,
        "tokens": 9, "quality": 0.555, "quality_interval": (0.44, 0.66), "quality_interval_kind": "95%",
        "speed_vs_target": 1.5,
    }  # fmt: skip
    return SweepRow.model_validate(values | more)


def test_a_sweep_is_a_table_and_still_a_list() -> None:
    rows = SweepRows(sweep_row(temperature=place / 100) for place in range(70))
    assert rows == list(rows) and len(rows[:3]) == 3
    page = Page(rows._repr_html_() or "")
    assert "0.555 (0.44-0.66)" in page.words and "1.50x" in page.words and "and 10 more rows" in page.words
    assert (rows._repr_html_() or "").count("<tr") == 61
    assert "0.555" in Page(rows[0]._repr_html_() or "").words


def test_objects_that_are_not_results_have_no_html() -> None:
    assert notebook.html_of(3) is None


class Bar:
    """A stand-in for tqdm's bar."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, total: int | None = None, **more: Any) -> None:
        self.total, self.n, self.more, self.seen, self.closed = total, 0, more, [], False
        self.made.append(self)

    def set_description(self, text: str, refresh: bool = True) -> None:
        self.text = text

    def refresh(self) -> None:
        self.seen.append((self.text, self.n, self.total))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[Bar]:
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(notebook, "PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return Bar


def test_a_notebook_kernel_is_distinguished_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, wanted in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert notebook.running() is wanted
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.running() and notebook.bars() is None


def test_notebook_bars_appear_only_without_callbacks(kernel: type[Bar], tmp_path: Path) -> None:
    pair = load_pair("tiny-random", device="cpu")
    assert any("target" in text for bar in kernel.made for text, _, _ in bar.seen)
    before = len(kernel.made)
    compare(pair, ["hi", "ho"], ["target", "draft"], max_new_tokens=4, measure=False)
    [bar] = kernel.made[before:]
    assert bar.seen == [("answers", done, 4) for done in range(5)]
    plan = tmp_path / "plan.yaml"
    plan.write_text("pair: tiny-random\nstrategies: [draft]\nlimit: 2\nmax_new_tokens: 4\n")
    cascli.sweep(plan, output=tmp_path / "out")
    assert [place[1:] for place in kernel.made[-1].seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(bar.closed for bar in kernel.made)
    before = len(kernel.made)
    told: list[object] = []
    compare(pair, "hi", ["target"], max_new_tokens=4, measure=False, on_event=lambda *what: told.append(what))
    load_pair("tiny-random", device="cpu", on_stage=told.append)
    assert told and len(kernel.made) == before, "who asks to be told is told, and sees no bar"


def test_bar_updates_are_rate_limited(kernel: type[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "PAUSE", 60.0)
    bars = notebook.Bars()
    for done in range(1001):
        bars("x", done, 1000)
    assert [place[1] for place in kernel.made[0].seen] == [0, 1000]


def test_an_interrupted_comparison_closes_its_bar(kernel: type[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = load_pair("tiny-random", device="cpu")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascli.jobs.compare.race", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(pair, "hi", ["target"], max_new_tokens=4)
    assert kernel.made and all(bar.closed for bar in kernel.made)


def test_nothing_is_shown_in_a_script(capfd: pytest.CaptureFixture[str]) -> None:
    pair = load_pair("tiny-random", device="cpu")
    compare(pair, "hi", ["target", "draft"], max_new_tokens=4, measure=False)
    assert capfd.readouterr() == ("", "")


def test_names_are_completed() -> None:
    assert {"generate", "load_pair", "compare", "sweep", "Run"} <= set(dir(cascli))


def test_failed_work_closes_its_bar(kernel: type[Bar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RunError("broken")

    pair = load_pair("tiny-random", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("cascli.models.load._load_model", broken)
        with pytest.raises(RunError, match="broken"):
            load_pair("tiny-random", device="cpu")
    plan = {"pair": "tiny-random", "strategies": ["draft"], "limit": 2, "max_new_tokens": 4}
    with monkeypatch.context() as patch:
        patch.setattr("cascli.sweeps.worker.Worker.do", broken)
        with pytest.raises(RunError, match="broken"):
            cascli.sweep(plan, output=tmp_path / "out", pair=pair)

    def half(*_: object) -> Iterator[object]:
        yield SimpleNamespace(place=0, result=[])
        broken()

    monkeypatch.setattr("cascli.jobs.batch.converse_many", half)
    with pytest.raises(RunError, match="broken"):
        cascli.generate_many(pair, ["hi", "ho"], max_new_tokens=2)
    assert kernel.made and all(bar.closed for bar in kernel.made)


def test_bars_passed_by_the_caller_are_not_closed(kernel: type[Bar], tmp_path: Path) -> None:
    bars = notebook.Bars()
    plan = {"pair": "tiny-random", "strategies": ["draft"], "limit": 1, "max_new_tokens": 2}
    cascli.sweep(plan, output=tmp_path / "out", on_progress=bars)
    assert kernel.made and not kernel.made[-1].closed
    bars.close()
