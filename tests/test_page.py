"""The page of a comparison: one verdict, one table, answers as text; its widths, marks and contrasts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.dom import minidom

import pytest
from rich.cells import cell_len

from cascli import Pair, compare, generate, load_pair
from cascli.analysis.comparison import Comparison, Row, first_divergence
from cascli.errors import UsageError
from cascli.render.answers import AnswerCell, side_by_side, whole_characters
from cascli.render.comparison import print_comparison, prompt_line
from cascli.render.console import WIDEST, SafeConsole, Screen, screen
from cascli.render.marks import short_name
from cascli.render.pairs import pairs_list
from cascli.render.picture import svg
from cascli.render.play import play, timeline
from cascli.render.race import RaceView
from cascli.render.theme import PALETTES, theme
from cascli.render.verdict import verdict
from cascli.trace import Drafted, Emitted, Handover, Round, RoundSeconds
from tests.colours import contrast

SAVED = Path(__file__).parents[1] / "benchmarks" / "results" / "compare-default.json"


@pytest.fixture(scope="module")
def saved() -> Comparison:
    return Comparison.from_json(SAVED.read_bytes())


def console(width: int, *, color: bool = False, height: int = 24, encoding: str = "utf-8") -> SafeConsole:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", write_through=True)
    return SafeConsole(
        file=file, width=width, height=height, force_terminal=color, color_system="truecolor" if color else None
    )


def printed(view: SafeConsole) -> str:
    return view.file.buffer.getvalue().decode(view.file.encoding)


def page(saved: Comparison, width: int, trace: str = "text", **how: object) -> str:
    view = console(width, **how)
    print_comparison(saved, Screen(view, console(width)), trace)
    return printed(view)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("trace", ["text", "tokens"])
def test_no_line_is_wider_than_the_page_and_no_number_is_cut(saved: Comparison, width: int, trace: str) -> None:
    text = page(saved, width, trace)
    table = text[text.index("strategy ") : text.index("qwen2.5-coder:")]
    assert "…" not in table
    for line in text.splitlines():
        assert cell_len(line) <= (width if trace == "tokens" else min(width, WIDEST)), line
    for name in ("speculative k=4", "spec-cascade opt α=.3 k=4", "cascade mean-logprob≥-0.5"):
        assert len(re.findall(rf"^{re.escape(name)} ", table, flags=re.M)) == 1  # one line each
    assert "Who is Buzz Aldrin?" in text and "same" in table
    assert all(f"{row.speed_vs_target:.2f}x" in table for row in saved.summary)


def test_a_prompt_of_wide_characters_takes_one_line(saved: Comparison) -> None:
    asked = [run.model_copy(update={"prompt": "推测解码为什么更快？" * 9}) for run in saved.runs]
    first, *_ = page(saved.model_copy(update={"runs": asked}), 80).splitlines()
    assert first.startswith("推测解码") and first.rstrip().endswith("...") and 60 < cell_len(first.rstrip()) <= 70


def test_the_list_of_pairs_fits_80_columns_with_a_pair_of_which_a_part_is_on_disk() -> None:
    about = {"download_gb": 1.2, "memory_gb": 7, "gated": False, "note": "a note"}
    half = {**about, "name": "qwen2.5-coder-smollm2", "on_disk_bytes": {"draft": 0, "target": 3_600_000_000}}
    pairs = [half | {"licence": "Apache-2.0"}, half | {"licence": "Llama 3 community", "gated": True}]
    for width in (80, 100):
        heading, first, _, second, *_ = str(pairs_list(pairs, "none", console(width))).splitlines()
        assert heading.endswith(" gated") and first.endswith(" no") and second.endswith(" yes")
        assert max(map(len, (heading, first, second))) <= width
        assert ("licence            gated" in heading) == (width == 100)


def test_answers_can_be_left_out(saved: Comparison) -> None:
    told, whole = page(saved, 80, "none"), page(saved, 80)
    for part in ("American", "drafted and rejected"):
        assert part in whole and part not in told
    for part in ("speculative k=4", "What holds it back"):
        assert part in whole and part in told


def test_three_strategies_fit_a_small_terminal(saved: Comparison) -> None:
    few = [row.strategy for row in saved.summary if row.strategy in ("target", "draft", "speculative:k=4")]
    small = saved.model_copy(
        update={
            "runs": [run for run in saved.runs if run.spec in few],
            "summary": [row for row in saved.summary if row.strategy in few],
            "explanation": None,
            "draft_lengths": [],
        }
    )
    assert len(page(small, 80, color=True).splitlines()) <= 24


def test_answers_include_rejected_drafts(saved: Comparison) -> None:
    text = " ".join(AnswerCell.of(saved.runs[4], "speculative").text(console(100)).plain.split())
    assert "Buzz Aldrin is +an American astronaut" in text
    assert "~,~ [who]" in text and "~born~" in text  # a rejected draft, and its replacement
    whole = page(saved, 100)
    assert "≠" in whole and "that differs from target" in whole.replace("\n", " ")
    cell = AnswerCell.of(saved.runs[4], "speculative")
    words = cell.text(console(100, color=True)).plain
    for round_ in saved.runs[4].rounds:
        for token in round_.emitted:
            assert token.text.strip() in words


def answer(*texts: str, event: str = "accepted") -> AnswerCell:
    """A cell with one token per round."""
    rounds = [Round(emitted=[Emitted(id=i, text=text, event=event)]) for i, text in enumerate(texts)]
    return AnswerCell("x", mixed=True, rounds=rounds)


def replaced(draft: str, token: str) -> AnswerCell:
    """An answer in which the draft after a word was rejected and replaced by another token."""
    drafted = [
        Drafted(id=1, text="one", q=0.5, p=0.5, accept_prob=1, pi=0.5, deferred=False, accepted=True),
        Drafted(id=2, text=draft, q=0.5, p=0.1, accept_prob=0, pi=0, deferred=False, accepted=False),
    ]
    emitted = [Emitted(id=1, text="one", event="accepted"), Emitted(id=3, text=token, event="residual")]
    return AnswerCell("x", mixed=True, rounds=[Round(emitted=emitted, drafted=drafted)])


@pytest.mark.parametrize(
    ("draft", "token", "told", "in_color"),
    [
        ("    \n", " two", "one    ~⏎~ [two]", "one    ⏎ two"),
        ("   ", "two", "one~␣␣␣~[two]", "one␣␣␣two"),
        ("two.\n", "\n\n", "one~two.⏎~[⏎⏎]\n\n", "onetwo.⏎⏎⏎\n\n"),
        ("\r", "  ", "one~␍~[␣␣]", "one␍␣␣"),
        ("", "two\n", "one~∅~[two]\n", "one∅two\n"),
    ],
)
def test_rejected_whitespace_is_still_marked(draft: str, token: str, told: str, in_color: str) -> None:
    """Line breaks in rejected drafts do not break the answer's lines, as they are no part of it."""
    cell = replaced(draft, token)
    assert cell.text(console(60)).plain == told
    shown = cell.text(console(60, color=True))
    assert shown.plain == in_color
    struck = "".join(shown.plain[span.start : span.end] for span in shown.spans if "strike" in str(span.style))
    assert struck == told.split("~")[1]


B = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("texts", "whole", "shown"),
    [
        (["a", B, B, B, "b"], "a月b", ["a", "", "", "月", "b"]),
        ([B, B, "\u200d", f" {B}", B, "x"], "🌕\u200d 👧x", ["", "🌕", "\u200d", "", " 👧", "x"]),
        ([f"x{B}", B + "y", "y", "<end>"], "xéyy", ["x", "éy", "y", "<end>"]),  # markup is not part of the answer
        (["<|im_start|>", B, B], "é", ["<|im_start|>", "", "é"]),
        ([B, B, B, B], "éè", ["", "é", "", "è"]),  # a byte each
        ([B, B, B, B], "🌕🌕", ["", "", "", "🌕🌕"]),  # it is not known which of them ends the first
        ([B, "", B, "x"], "éx", [B, "", B, "x"]),
        (["It", "is", "", B, B, "for", "it"], "It is 🌕 for it", ["It", " is", "", "", " 🌕", " for", " it"]),
        ([f" {B}", B] * 3 + ["x"], " 🌕 🌕 🌕x", ["", "", "", "", "", " 🌕 🌕 🌕", "x"]),
        ([f" {B}", B] * 60 + ["x"], " 🌕" * 40, [f" {B}", B] * 60 + ["x"]),  # in a moment, though nothing fits
        ([B, "a", B], f"{B}a{B}", [B, "a", B]),  # what the models wrote is no text
        ([B, B, "a", B, B, "b"], "éa", ["", "é", "a", B, B, "b"]),  # cut before a stop string
        (["ab", B, B, "c"], "abéc", ["ab", "", "é", "c"]),
    ],
)
def test_characters_of_several_tokens_are_shown_whole(texts: list[str], whole: str, shown: list[str]) -> None:
    assert whole_characters(texts, [0] * len(texts), whole) == shown
    cell = AnswerCell("x", mixed=False, rounds=answer(*texts).rounds, answer=whole)
    assert cell.text(console(60)).plain == "".join(shown)


def test_answers_of_bytes_are_shown_as_written() -> None:
    """A tokenizer of bytes: every letter that is not ASCII takes several tokens."""
    pair = load_pair("tiny-random")
    for seed in range(6):
        run = generate(pair, "héllo 🌕", strategy="speculative:k=3", temperature=1.0, seed=seed, max_new_tokens=40)
        texts = [token.text for round_ in run.rounds for token in round_.emitted]
        shown = whole_characters(texts, range(len(texts)), run.text)
        assert "".join(shown) == run.text or B in run.text
        assert all(
            (mine == own) or B in own or not mine or mine in run.text for mine, own in zip(shown, texts, strict=True)
        )


def test_characters_are_not_joined_over_what_is_shown_between_them() -> None:
    """A rejected draft, the first difference from the target, or another mark."""
    texts, whole = [B] * 6 + ["x"], "éèñx"
    cell = AnswerCell("x", mixed=True, rounds=answer(*texts).rounds, diverges=4, answer=whole)
    assert cell.text(console(60)).plain == "éè≠ñx"  # bytes: it is known where each ends
    texts, whole = [B, B, B, B, "x"], "🌕🌕x"
    cell = AnswerCell("x", mixed=True, rounds=answer(*texts).rounds, answer=whole)
    assert cell.text(console(60)).plain == whole
    cell.diverges = 2
    assert cell.text(console(60)).plain == f"{B}{B}≠{B}{B}x"
    no = Drafted(id=2, text="no", q=0.5, p=0.1, accept_prob=0, pi=0, deferred=False, accepted=False)
    rounds = [Round(emitted=[Emitted(id=1, text=B, event="residual")], drafted=[no]) for _ in range(4)]
    cell = AnswerCell("x", mixed=True, rounds=rounds, answer="🌕🌕")
    assert cell.text(console(60)).plain == f"~no~[{B}]" * 4
    looks = ["accepted", "accepted", "bonus", "bonus", "bonus"]
    assert whole_characters(texts, looks, whole) == texts
    assert whole_characters([B, B, "x"], ["accepted", "bonus", "bonus"], "🌕x") == ["", "🌕", "x"]


def test_whitespace_that_is_part_of_the_answer_is_marked_by_its_state_alone() -> None:
    assert answer("a", "\n", "  b").text(console(60)).plain == "a\n  b"
    assert answer("a", "\n", " b", event="bonus").text(console(60)).plain == "+a+⏎\n +b"
    assert answer("a", "\n", event="target").text(console(60, encoding="ascii")).plain == "^a^\\n\n"
    alone = AnswerCell("target", mixed=False, rounds=answer("a", "\n", event="target").rounds)
    assert alone.text(console(60)).plain == "a\n"


@pytest.mark.parametrize("char", ["\x00", "\x17", "\r", "\x7f", "\x85", "\u202e"])
def test_control_characters_are_measured_as_they_are_drawn(char: str) -> None:
    view = console(24)
    view.print(side_by_side([answer(*[char] * 30, "end", event="residual")], view))
    text = printed(view)
    assert text.count("[") == text.count("]") == 31 and "[end]" in text.replace("\n", "").replace(" ", "")
    assert all(cell_len(line) <= 24 for line in text.splitlines())


def test_the_first_difference_is_marked_once_and_before_its_word(saved: Comparison) -> None:
    target, opt = saved.runs[0], saved.runs[5]
    place = first_divergence(opt, target)
    shown = AnswerCell.of(opt, "opt", diverges=place).text(console(100, color=True))
    assert shown.plain.count("≠") == 1
    assert shown.plain.split("≠")[1].startswith(opt.emitted[place].text.strip())
    styles = {
        span.style
        for span in shown.spans
        if span.start > shown.plain.index("≠") + 1 and "strike" not in str(span.style)
    }
    assert all("bold" in str(style) or style == "dim" for style in styles)


def test_ascii_terminals_get_ascii(saved: Comparison) -> None:
    text = page(saved, 80, encoding="ascii")
    assert text.isascii() and "a=.3" in text and "!=" in text


def rows(**changes: dict[str, object]) -> list[Row]:
    base = {name: None for name, field in Row.model_fields.items() if field.is_required()}
    return [Row(**base | {"strategy": name.replace("_", "-"), "oracle": False, "tokens": 9, "seconds": 1.0} | change)
            for name, change in changes.items()]  # fmt: skip


FAST = {"speed_vs_target": 2.04, "lossless": True, "same_as_target": True}
UNCLEAR = {"speed_vs_target": 1.14, "speed_interval": (0.58, 2.6), "speed_interval_kind": "95%"}
LOOSE = {"speed_vs_target": 2.6, "lossless": False, "same_as_target": False, "first_divergence": 9}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculative": FAST}, "speculative is 2.0x as fast as target, with the same text."),
        (
            {"speculative": FAST, "speculative_cascade": LOOSE},
            "speculative is 2.0x as fast as target, with the same text;"
            " spec-cascade is 2.6x as fast, but its text differs from token 10 onwards.",
        ),
        (
            {"speculative": FAST | {"same_as_target": False}},
            "speculative is 2.0x as fast as target, with the same distribution.",
        ),
        (
            {"speculative": FAST | {"speed_vs_target": 1.02}},
            "speculative is about as fast as target, with the same text.",
        ),
        (
            {"speculative": FAST | UNCLEAR},
            "speculative is 1.14x as fast as target, within chance (95% 0.58-2.60), with the same text.",
        ),
        (
            {"speculative_cascade": LOOSE | {"speed_interval": (0.9, 4.0), "speed_interval_kind": "range"}},
            "spec-cascade is 2.6x as fast as target, within chance (range 0.90-4.00),"
            " but its text differs from token 10 onwards.",
        ),
        (
            {"speculative": FAST | {"speed_interval": (1.2, 3.0), "speed_interval_kind": "95%"}},
            "speculative is 2.0x as fast as target, with the same text.",
        ),
        (
            {"speculative": FAST | {"speed_vs_target": 0.4}},
            "None that calls the target is as fast with the same text (best: speculative, 0.40x).",
        ),
        (
            {"speculative_cascade": LOOSE | {"first_divergence": None}},
            "spec-cascade is 2.6x as fast as target, but its text is not the target's.",
        ),
        (
            {"speculative": FAST | {"speed_vs_target": 0.4}, "speculative_cascade": LOOSE | {"speed_vs_target": 0.8}},
            "None that calls the target is as fast with the same text (best: speculative, 0.40x);"
            " spec-cascade is only 0.80x as fast, and its text differs from token 10 onwards.",
        ),
        (
            {"speculative_cascade": LOOSE | {"speed_vs_target": 0.8}},
            "spec-cascade is only 0.80x as fast as target, and its text differs from token 10 onwards.",
        ),
        (
            {"speculative": FAST, "speculative_cascade": LOOSE | {"speed_vs_target": 1.5}},
            "speculative is 2.0x as fast as target, with the same text.",
        ),
        (  # not lossless, but here with the same text
            {"speculative_cascade": LOOSE | {"same_as_target": True, "first_divergence": None}},
            "spec-cascade is 2.6x as fast as target, with the same text.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_states_the_gain_and_its_cost(changes: dict, said: str) -> None:
    target = {"target": {"speed_vs_target": 1.0, "lossless": True, "same_as_target": True}}
    draft = {"draft": {"speed_vs_target": 9.0, "lossless": None, "same_as_target": False}}
    assert verdict(rows(**target, **draft, **changes)) == said
    assert verdict(rows(**target, **draft)) is None


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("target", "target"),
        ("speculative:k=4", "speculative k=4"),
        ("speculative-cascade:rule=token-v3,alpha=0.3,k=4", "spec-cascade token-v3 α=.3 k=4"),
        ("speculative-cascade:rule=opt,alpha=-10.05,k=4", "spec-cascade opt α=-10.05 k=4"),
        ("speculative-cascade:rule=typical,epsilon=0.09,delta=0.3,k=4", "spec-cascade typical ε=.09 k=4"),
        ("speculative-cascade:rule=typical,epsilon=0.09,delta=0.2,k=4", "spec-cascade typical ε=.09 δ=.2 k=4"),
        ("speculative-cascade:rule=lenience,lenience=0.5,shape=exp,k=4", "spec-cascade lenience l=.5 shape=exp k=4"),
        ("speculative-cascade:rule=fuzzy,threshold=0.1,divergence=js,k=4", "spec-cascade fuzzy t=.1 k=4"),
        ("speculative-cascade:rule=head,alpha=0.3,top=2,k=4", "spec-cascade head α=.3 top=2 k=4"),
        ("speculative-cascade:rule=nobody-knows,n=1,k=4", "spec-cascade nobody-knows n=1 k=4"),
        ("cascade:score=mean-logprob,threshold=-0.5", "cascade mean-logprob≥-0.5"),
        ("speculative:draft=prompt-lookup,max_ngram=3,min_ngram=1,k=4", "speculative by prompt-lookup k=4"),
        ("speculative:draft=prompt-lookup,max_ngram=5,min_ngram=1,k=4", "speculative by prompt-lookup max_ngram=5 k=4"),
        ("speculative:draft=nobody-knows,n=1,k=4", "speculative by nobody-knows n=1 k=4"),
    ],
)
def test_a_strategy_has_one_short_name(spec: str, name: str) -> None:
    assert short_name(spec) == name
    assert short_name(spec, fancy=False).isascii()


def test_the_verdict_counts_how_many_answers_differ() -> None:
    many = {"answers": 6, "answers_same": 4, "first_divergence": 2}
    target = {"target": {"speed_vs_target": 1.0, "lossless": True, "same_as_target": True}}
    said = verdict(rows(**target, speculative_cascade=LOOSE | many))
    assert said == "spec-cascade is 2.6x as fast as target, but its text differs in 2 of 6 answers."


@pytest.mark.parametrize("width", [30, 40])
def test_on_a_narrow_terminal_names_wrap_and_numbers_do_not(saved: Comparison, width: int) -> None:
    text = page(saved, width)
    table = text[text.index("strategy ") : text.index("qwen2.5-coder:")]
    assert "…" not in table and all(f"{row.speed_vs_target:.2f}x" in table for row in saved.summary)


@pytest.mark.parametrize(
    ("palette", "grounds"),
    [("any", ["#000000", "#ffffff"]), ("dark", ["#000000", "#1e1e1e", "#292929"]), ("light", ["#ffffff", "#fafafa"])],
)
def test_text_has_enough_contrast_with_its_background(palette: str, grounds: list[str]) -> None:
    assert PALETTES[palette].keys() == PALETTES["any"].keys()
    for color in PALETTES[palette].values():
        assert all(contrast(color, ground) >= 4.5 for ground in grounds), color


def test_an_unknown_theme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert theme({}) == theme({"CASCLI_THEME": ""}) == "any"
    assert theme({"CASCLI_THEME": "light"}) == "light"
    monkeypatch.setenv("CASCLI_THEME", "ligth")
    with pytest.raises(
        UsageError, match=r"CASCLI_THEME: unknown theme 'ligth'; did you mean 'light'\? Known: any, dark"
    ):
        screen()


def test_an_svg_shows_the_page(saved: Comparison) -> None:
    picture = svg(saved)
    text = re.sub(r"<[^>]+>", "", picture).replace("&#160;", " ")
    exact = next(row for row in saved.summary if row.strategy == "speculative:k=4")
    assert (
        f"speculative k=4 is {exact.speed_vs_target:.1f}x as fast as target" in text
        and PALETTES["dark"]["accepted"] in picture
    )
    assert not re.search(r"<script|on\w+=", picture)


def test_an_svg_loads_nothing_when_it_is_opened(saved: Comparison) -> None:
    for picture in (svg(saved), (SAVED.parents[2] / "docs" / "answers.svg").read_text(encoding="utf-8")):
        assert not re.search(r"@font-face|@import|url\((?!#)|<image|href=", picture)
        assert re.findall(r"https?://[^\s\"]+", picture) == ["http://www.w3.org/2000/svg"]  # a name, not an address


def test_an_svg_is_valid_xml_whatever_the_text(saved: Comparison) -> None:
    hostile = "a\x1b]0;hi\x07\x00\u202e<b>&\ufffe\ud800"
    token = Emitted(id=1, text=hostile, event="target")
    run = saved.runs[0].model_copy(update={"prompt": hostile, "rounds": [Round(emitted=[token] * 3)]})
    picture = svg(saved.model_copy(update={"runs": [run, *saved.runs[1:]]}))
    minidom.parseString(picture.encode())
    assert "\u202e" not in picture


# ---------------------------------------------------------------- while strategies run


def test_columns_fill_side_by_side(text_pair: Pair) -> None:
    specs = ["target", "speculative:k=2", "cascade:threshold=5"]
    view = console(80, color=True, height=12)
    screen = Screen(view, console(80))
    with RaceView(screen, specs) as race:
        compare(text_pair, "hello", specs, max_new_tokens=30, measure=False, on_event=race.event, seed=3)
        cells = race._cells
    assert [cell.note.rsplit(" · ", 1)[-1] for cell in cells] == ["done"] * 3
    assert [sum(len(round_.emitted) for round_ in cell.rounds) for cell in cells] == [
        30
    ] * 3  # the cascade's draft is gone
    drawn = side_by_side(cells, view, 2)
    fresh = console(80, color=False)
    fresh.print(drawn)
    assert len(printed(fresh).splitlines()) <= 2 * (2 + 2) + 2  # heading, note and two lines, in at most two rows


def test_only_the_end_of_a_long_answer_is_drawn() -> None:
    """The visible part is the same whatever came before it, and little of that is processed."""
    view = console(30, color=True)
    rounds = [Round(emitted=[Emitted(id=i, text=f" {i:05}", event="accepted")]) for i in range(2000)]
    cell = AnswerCell("x", mixed=True, rounds=rounds)
    part = cell.text(view, 100).plain
    assert cell.text(view).plain.endswith(part) and 100 * 6 <= len(part) < 170 * 6
    shown = console(30)
    shown.print(side_by_side([cell], view, 4))
    assert " ".join(printed(shown).split()).endswith("01997 01998 01999")
    assert len(printed(shown).splitlines()) <= 4 + 2


@pytest.mark.parametrize(("width", "height"), [(20, 5), (30, 3), (200, 60)])
def test_odd_terminals_survive(width: int, height: int) -> None:
    view = console(width, color=True, height=height)
    token = Emitted(id=1, text=" word", event="accepted")
    with RaceView(Screen(view, view), ["target", "speculative:k=4", "draft"]) as race:
        for _ in range(60):
            for place in range(3):
                race.round(place, Round(emitted=[token], seconds=RoundSeconds(total=0.1)))
        race.handover(0, Handover(score="x", value=0, threshold=1, deferred=True, draft_token_ids=[1], draft_text="",
                                  draft_finish_reason="eos"))  # fmt: skip
        race._draw()
    assert printed(view)


def test_a_saved_race_is_replayed_at_its_measured_times(saved: Comparison) -> None:
    events = list(timeline(saved.runs))
    assert [moment for moment, _, _ in events] == sorted(moment for moment, _, _ in events)
    for place, run in enumerate(saved.runs):
        last = max(moment for moment, whose, _ in events if whose == place)
        assert last == pytest.approx(run.metrics.seconds.total)
    slept: list[float] = []
    view = console(100, color=True, height=30)
    play(saved, Screen(view, view), 2.0, sleep=slept.append)
    longest = max(run.metrics.seconds.total for run in saved.runs)
    assert sum(slept) == pytest.approx(longest / 2 + 0.5)
    assert "shares of the time" not in printed(view)


def test_a_replay_of_a_batch_is_called_one_of_shares(saved: Comparison) -> None:
    runs = [run.model_copy(update={"batch_size": 4}) for run in saved.runs]
    view = console(100, color=True, height=30)
    play(saved.model_copy(update={"runs": runs}), Screen(view, view), sleep=lambda _: None)
    assert "played at their shares of the time of 4 answers at once" in printed(view)


def test_the_prompt_is_shown(saved: Comparison) -> None:
    assert prompt_line([saved.runs]) == "Who is Buzz Aldrin?"
    assert prompt_line([saved.runs, saved.runs]).endswith("and 1 more")
