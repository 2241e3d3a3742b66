"""A sweep's page: its contents, and that no text on it is interpreted as markup."""

from __future__ import annotations

import gzip
import io
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.errors import UsageError
from cascli.render.sweep_plot import plot_sweep
from cascli.render.sweep_report import report
from cascli.render.sweep_report_tables import _in_category, strategies_table
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record, Records
from cascli.sweeps.samples import MAX_ANSWERS, MAX_SAMPLES, samples
from cascli.sweeps.table import SweepTable, rows
from cascli.sweeps.tasks import Example, Task
from tests.sweeps import HOSTILE, folder_of, header_of, plan_of, records_of

PLAN = plan_of()
TAGS = {
    "html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "p", "h1", "h2", "h3",
    "table", "thead", "tbody", "tr", "th", "td", "span", "small", "br", "div", "article", "pre", "dl", "dt", "dd",
    "details", "summary",
}  # fmt: skip


class Elements(HTMLParser):
    """Collects all tags, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(text: str = "answer", prompts: int = 8, **more: object) -> str:
    records = records_of(PLAN, prompts, text)
    header = header_of(PLAN, prompts={f"p{i}": f"{text} asked {i}" for i in range(prompts)}, **more)
    return report(header, rows(records, PLAN), None, records)


def test_no_text_is_interpreted_as_markup() -> None:
    """Covers answers, prompts, categories, ids, the title, the command, the environment and the plan."""
    plan = plan_of(task={"kind": "jsonl", "path": HOSTILE.replace("\x00", ""), "metric": "f1"}, system=HOSTILE)
    records = [
        record.model_copy(update={"problem": record.problem + HOSTILE, "category": record.category + HOSTILE})
        for record in records_of(plan, text=HOSTILE)
    ]
    header = header_of(
        plan,
        title=HOSTILE,
        pair=HOSTILE,
        date=HOSTILE,
        command=HOSTILE,
        environment={HOSTILE: HOSTILE, "device": HOSTILE},
        prompts={record.problem: HOSTILE for record in records},
    )
    page = report(header, rows(records, plan), None, records)
    found = Elements(page)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert not [attributes for _, attributes in found.tags if any(name.startswith("on") for name in attributes)]
    assert found.text.count("<script>window.hacked = 1</script>") > 20
    assert not set(page) & {"\x1b", "\x00", "\u202e"}


def test_half_a_character_in_an_answer_can_be_encoded() -> None:
    page = page_of("a\udc80b")
    assert page.encode() and "a?b asked" in Elements(page).text


def test_the_page_loads_nothing_external() -> None:
    page = page_of()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|<script|<iframe|srcset", page)


def test_the_page_names_the_pair_but_no_local_folder() -> None:
    page = page_of()
    text = Elements(page).text
    assert "mine" in text and "path:large int8" in text and "2026-03-01" in text and "cascli sweep plan.yaml" in text
    assert "/home/somebody/pairs" not in page and "/home/somebody/models" not in page


def test_a_value_its_interval_and_its_difference_are_one_cell_each() -> None:
    [table] = re.findall(r'<table class="wide">.*?</table>', page_of(), re.S)
    headings = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert headings[:3] == ["strategy", "f1", "against target"] and "95%" not in " ".join(headings)
    [line] = [each for each in re.findall(r"<tr>.*?</tr>", table) if "token-v3 α=.5 k=4" in each][:1]
    cells = [Elements(cell).text for cell in re.findall(r"<td.*?</td>", line)]
    assert re.fullmatch(r"0\.\d{3} 95%: 0\.\d\d to 0\.\d\d", cells[0])
    assert re.fullmatch(r"-0\.\d{3} 95%: -0\.\d\d to [+-]0\.\d\d", cells[1])
    assert re.fullmatch(r"-0\.\d{3} 95%: -0\.\d\d to [+-]0\.\d\d", cells[2]) and headings[3] == "against random"
    assert re.fullmatch(r"\d\.\d\dx \d+\.\d tokens/s", cells[3])  # all prompts take equally long: no scatter
    assert table.count('<tr class="group">') == 2  # one per temperature


def test_bounds_on_the_page_are_on_the_side_of_their_verdict() -> None:
    change = {
        "quality_vs_target": -0.0004,
        "quality_vs_target_interval": (-0.1, -0.0002),
        "tested_acceptance_rate": 0.9988,
    }
    speed = {"speed_vs_target": 1.003, "speed_interval": (1.001, 1.0049), "speed_interval_kind": "95%"}
    close = rows(records_of(PLAN), PLAN)[-1].model_copy(update=change | speed)
    text = Elements(strategies_table([close], "f1")).text
    assert "-0.0004 95%: -0.10 to -0.0002" in text and "1.003x 95%: 1.001 to 1.005" in text and "0.999" in text


def test_few_prompts_have_no_interval_on_the_page() -> None:
    text = Elements(page_of(prompts=3)).text
    assert "Only 3 prompts" in text and "prompts 0.80 to 0.90" in text and "95%:" not in text
    assert "of the strategies with at least" not in text


def test_categories_are_shown_only_if_there_are_several() -> None:
    page = page_of()
    [head] = re.findall(r"<thead><tr>((?:(?!</tr>).)*writing.*?)</tr>", page)
    assert re.findall(r"writing<br>4 prompts|maths<br>4 prompts", head) == [
        "writing<br>4 prompts",
        "maths<br>4 prompts",
    ]
    alone = [record for record in records_of(PLAN) if record.category == "maths"]
    assert "Categories" not in report(header_of(PLAN), rows(alone, PLAN), None, alone)


# ---- samples


def answer(strategy: str, problem: str, text: str, quality: float, temperature: float = 0.0) -> Record:
    cell = Cell(strategy=strategy, temperature=temperature, seed=0)
    return Record(cell=cell, problem=problem, text=text, quality=quality)


def test_samples_are_the_answers_that_differ_most() -> None:
    records = [
        answer("target", "same", "one", 1.0),
        answer("draft", "same", "one", 1.0),
        answer("target", "near", "one two", 1.0),
        answer("draft", "near", "one too", 0.9),
        answer("target", "far", "a b c d", 1.0),
        answer("speculative:k=2", "far", "a b c d", 1.0),
        answer("draft", "far", "a b x", 0.0),
        answer("target", "hot", "a", 1.0, 1.0),
        answer("draft", "hot", "b", 0.0, 1.0),
        answer("draft", "alone", "b", 0.0),
    ]
    found = samples(records)
    assert [each.problem for each in found] == ["far", "hot", "near"]
    first, second = found[0].answers
    assert first.strategies == ["target", "speculative:k=2"] and first.text == "a b c d"
    assert second.strategies == ["draft"] and second.text[: second.shared] == "a b "
    failed = records[6].model_copy(update={"error": "RunError: no"})
    assert [each.problem for each in samples([failed, *records[:6]])] == ["near"]


def test_the_texts_shown_are_those_furthest_from_the_target() -> None:
    specs = ["draft", *(f"speculative:k={k}" for k in range(1, 9))]
    scores = [0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.9, 0.6, 0.4]
    records = [answer(spec, "p", f"{spec} says", score) for spec, score in zip(specs, scores, strict=True)]
    [found] = samples([*records, answer("target", "p", "so", 0.9)])
    assert [each.quality for each in found.answers] == [0.9, 0.1, 0.2, 0.3] and found.left_out == 6


def test_text_beyond_the_end_of_the_target_is_not_marked_as_shared() -> None:
    [found] = samples([answer("target", "p", "a b", 1.0), answer("draft", "p", "a b c", 0.5)])
    assert [each.text[: each.shared] for each in found.answers] == ["a b", "a b"]


def test_the_number_of_samples_is_limited() -> None:
    found = samples(records_of(PLAN, prompts=20))
    assert len(found) == MAX_SAMPLES and len({each.problem for each in found}) == MAX_SAMPLES
    for each in found:
        assert len(each.answers) == MAX_ANSWERS and each.left_out > 0 and "target" in each.answers[0].strategies
        assert len({answer.text for answer in each.answers}) == MAX_ANSWERS


def test_an_answer_is_shown_from_where_it_diverges() -> None:
    """The part after a long common beginning is never cut off."""
    begins = "x" * 10_000
    records = [answer("target", "p", f"{begins} yes", 1.0), answer("draft", "p", f"{begins} no!", 0.0)]
    plan = plan_of(strategies=["target", "draft"], temperatures=[0.0])
    page = report(header_of(plan), rows(records, plan), None, records)
    assert "</span>no!</pre>" in page
    assert len(page) < 30_000


# ---- what it is made from


def test_a_compressed_folder_reads_the_same(tmp_path: Path) -> None:
    records = records_of(PLAN, prompts=2)
    folder = folder_of(tmp_path / "out", header_of(PLAN), records)
    lines = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").unlink()
    (folder / "records.jsonl.gz").write_bytes(gzip.compress(lines))
    assert list(Records(folder).read()) == records
    (folder / "records.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])
    with pytest.raises(UsageError, match=r"records\.jsonl\.gz: cannot be read"):
        list(Records(folder).read())


def test_older_records_and_headers_are_read() -> None:
    plan = plan_of()
    old = [
        Record.model_validate(record.model_dump(exclude={"category", "rounds"}))
        for record in records_of(plan, prompts=2)
    ]
    page = report(header_of(plan, date=None, command=""), rows(old, plan), None, old)
    assert "Categories" not in page and "accept length" not in page and "the command was not recorded" in page


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_answers_were_made_does_not_change_the_page(seed: int, tmp_path: Path) -> None:
    """Workers finish in any order, and what was repeated is last: rows and categories are in the plan's order."""
    plan = plan_of(seeds=[0, 1])
    # The first prompt of the second category lacks some answers, as of a sweep in progress.
    made = [each for each in records_of(plan) if each.problem != "p1" or each.cell.strategy != "draft"]
    header = header_of(plan, prompts={f"p{i}": f"asked {i}" for i in range(8)})
    shuffled = random.Random(seed).sample(made, len(made))
    assert report(header, rows(made, plan), None, shuffled) == report(header, rows(made, plan), None, made)
    one, other = (
        SweepTable.of(header, Records(folder_of(tmp_path / name, header, records)))
        for name, records in (("one", made), ("other", shuffled))
    )
    assert list(other.categories) == ["writing", "maths"] and other == one


def test_the_picture_is_part_of_the_page() -> None:
    records = records_of(PLAN)
    drawing = io.StringIO()
    plot_sweep(rows(records, PLAN), "f1", drawing)
    page = report(header_of(PLAN), rows(records, PLAN), drawing.getvalue(), records)
    assert page.count("<svg") == page.count("</svg>") == 1 and "<?xml" not in page


def test_a_sweep_keeps_categories_prompts_and_its_title(tmp_path: Path) -> None:
    """It keeps them even if it is resumed with fewer prompts and without the title."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "pair: tiny-random\nstrategies: [draft, 'speculative:k=2']\nmax_new_tokens: 4\n"
        "task: {kind: jsonl, path: q.jsonl}\n"
    )
    asked = [
        '{"id": "a", "category": "<b>one", "prompt": "first"}',
        '{"id": "b", "category": "two", "turns": ["second", "and third"]}',
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(asked) + "\n")

    def sweep(*arguments: str) -> None:
        ended = CliRunner().invoke(app, ["sweep", str(plan), "-o", str(tmp_path / "out"), *arguments])
        assert ended.exit_code == 0, ended.output

    sweep("--title", "Mine & yours")
    folder = Records(tmp_path / "out")
    folder.write_header(folder.header().model_copy(update={"date": "2026-01-02T03:04:05Z"}))
    sweep("--resume", "--limit", "1")
    assert folder.header().date == "2026-01-02T03:04:05Z"  # when it started
    assert {(each.problem, each.category) for each in folder.read()} == {("a", "<b>one"), ("b", "two")}
    assert folder.header().prompts == {"a": "first", "b": "second\n\nand third"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>Mine &amp; yours</h1>" in page and "&lt;b&gt;one<br>1 prompt" in page
    assert "and third" in page or not samples(folder.read())


def test_categories_do_not_change_the_fingerprint_of_problems() -> None:
    """Answers do not depend on categories."""
    one, other = (Task("f1", [Example("a", "ask", category=name)]) for name in ("x", "y"))
    assert one.problem_hashes() == other.problem_hashes()


def test_speeds_of_categories_show_their_95_percent_interval() -> None:
    known = rows(records_of(PLAN), PLAN)[1]
    for kind, bounds in (("95%", "95%: 0.50 to 0.75"), ("range", ""), ("no scatter", "")):
        cell = _in_category(known.model_copy(update={"speed_interval": (0.5, 0.75), "speed_interval_kind": kind}))
        assert (bounds in Elements(cell).text) and ("0.50 to" in cell) is bool(bounds)
