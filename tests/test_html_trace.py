from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from cascli import Pair, generate
from cascli.analysis.comparison import Comparison
from cascli.cli.app import app
from cascli.jobs.compare import compare
from cascli.prompts import Prompt
from cascli.render import html_trace
from cascli.render.comparison import print_results, remarks
from cascli.render.console import Screen
from cascli.render.html_trace import block, data, of_comparison, of_runs
from cascli.render.marks import short_name
from cascli.render.notebook import of_comparison as of_notebook
from cascli.render.verdict import verdict
from cascli.rules._alphas import rules_in_alpha
from cascli.sampling.distributions import Dists, total_variation
from cascli.trace import Detail, Emitted, ExitInfo, Round, RoundSeconds
from tests.colours import contrast

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>&lt;!--\x1b[31m\u202e\u2028\x00"
)
STRATEGIES = [
    "target", "draft", "cascade:threshold=0", "token-cascade:rule=diff,alpha=0.1", "speculative:k=3",
    "speculative:draft=prompt-lookup,k=2", "speculative-cascade:rule=opt,alpha=0.2,k=3",
    "speculative-cascade:rule=token-v3,alpha=0.9,k=3",
]  # fmt: skip
TEMPLATE = files("cascli.render").joinpath("trace_page.html").read_text(encoding="utf-8")


def found(pair: Pair, prompts: Sequence[str | Prompt], **more: Any) -> Comparison:
    settings = {"max_new_tokens": 16, "temperature": 0.8, "measure": False, "warm_up": False, "top": 3} | more
    return compare(pair, prompts, STRATEGIES, **settings)


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


@pytest.fixture(scope="module")
def comparison(text_pair: Pair) -> Comparison:
    return found(text_pair, [HOSTILE, "one two one two"])


def test_a_page_is_one_file_that_makes_no_requests() -> None:
    assert TEMPLATE.count(html_trace.DATA) == 1
    assert not re.search(
        r"https?://|//[a-z]|url\(|@import|srcset|<iframe|<object|fetch\(|XMLHttpRequest|innerHTML", TEMPLATE
    )
    assert re.findall(r'\b(?:href|src)="([^"]*)"', TEMPLATE) == ["data:,", "#answers"]
    assert "default-src 'none'" in TEMPLATE


def test_hostile_texts_cannot_escape_their_block(comparison: Comparison) -> None:
    page = of_comparison(comparison, f"cascli compare {HOSTILE}")
    assert page.isascii() or set(page) - set(map(chr, range(128))) <= set(TEMPLATE)
    assert page.lower().count("<script") == page.lower().count("</script") == TEMPLATE.lower().count("<script")
    assert "<img" not in page and "\x1b" not in page and "\x00" not in page and "\u202e" not in page
    shown = data_of(page)["prompts"][0]["prompt"]
    assert shown.startswith("</script><script>window.hacked = 1</script><img src=x")
    assert "␛[31m" in shown


def test_a_lone_surrogate_in_a_prompt_is_accepted(text_pair: Pair) -> None:
    run = generate(text_pair, "hi", strategy="target", max_new_tokens=2).model_copy(update={"prompt": "a\udc80b"})
    page = of_runs([run], "cascli")
    assert page.encode() and data_of(page)["prompts"][0]["prompt"] == "a\udc80b"


def test_every_token_of_every_answer_is_shown_in_order(comparison: Comparison) -> None:
    page = data_of(of_comparison(comparison, "cascli"))
    assert [len(prompt["runs"]) for prompt in page["prompts"]] == [len(STRATEGIES)] * 2
    shown = [run for prompt in page["prompts"] for run in prompt["runs"]]
    dropped = {"rejected", "untested", "turned-down"}
    for run, view in zip(comparison.runs, shown, strict=True):
        tokens = [token for step in view["rounds"] for token in step["tokens"]]
        assert [each["id"] for each in tokens if each["how"] not in dropped] == run.token_ids
        assert [each["how"] for each in tokens if each["how"] not in dropped] == [each.event for each in run.emitted]
        drafted = [draft.id for step in run.rounds for draft in step.drafted]
        assert [each["id"] for each in tokens if each["how"] in {"accepted", "rejected", "untested"}] == drafted
        assert all(str(each["id"]) in page["texts"] for each in tokens)
        places = [i for i, each in enumerate(tokens) if each["how"] == "rejected"]
        after = [next(each["how"] for each in tokens[i:] if each["how"] not in dropped) for i in places]
        assert set(after) <= {"residual"}
        assert view["before"] == pytest.approx(0, abs=1e-9) or run.handover is not None
        measured = view["before"] + sum(step["seconds"] for step in view["rounds"])
        assert measured == pytest.approx(run.metrics.seconds.total, rel=0.2)
    assert {"rejected", "turned-down", "untested", "accepted", "residual"} <= {
        token["how"] for run in shown for step in run["rounds"] for token in step["tokens"]
    }


def test_table_and_facts(comparison: Comparison) -> None:
    page = data_of(of_comparison(comparison, "cascli compare -o x.html"))
    assert [row[0].removesuffix(" (oracle)") for row in page["table"]["rows"]] == [
        short_name(row.strategy) for row in comparison.summary
    ]
    assert page["verdict"] == verdict(comparison.summary)
    assert all(len(row) == len(page["table"]["headings"]) for row in page["table"]["rows"])
    assert dict(page["facts"])["command"] == "cascli compare -o x.html"
    assert "torch" in dict(page["facts"])["environment"]
    assert page["detail"] is True
    assert [rule["name"] for rule in page["rules"]] == sorted(rules_in_alpha())


def test_a_page_without_detail_is_marked_as_such(text_pair: Pair) -> None:
    page = data_of(of_comparison(found(text_pair, ["hi"], top=0), "cascli"))
    assert page["detail"] is False
    tokens = [t for run in page["prompts"][0]["runs"] for step in run["rounds"] for t in step["tokens"]]
    assert not any("seen" in token or "alphas" in token for token in tokens)


def test_line_breaks_and_control_characters_are_shown() -> None:
    assert block("a\n\n  b\t\x1b") == "a⏎\n⏎\n  b⇥␛"
    assert block("") == "∅"
    assert block("\n") == "⏎\n"


def tokens_of(page: dict[str, Any], prompt: int = 0) -> list[dict[str, Any]]:
    return [token for run in page["prompts"][prompt]["runs"] for step in run["rounds"] for token in step["tokens"]]


def test_texts_can_be_copied_as_they_are(text_pair: Pair) -> None:
    """Spaces of other widths and joiners are a part of a prompt; only what could control a terminal is replaced."""
    text = "no\u00a0break\u3000wide \u0646\u200c\u0646 \U0001f469\u200d\U0001f680\tend\n\nlast"
    run = generate(text_pair, "hi", strategy="target", max_new_tokens=2)
    run = run.model_copy(update={"prompt": text, "system": text, "text": f"{text}\x1b"})
    page = data_of(of_runs([run], f"cascli generate '{text}'"))
    prompt = page["prompts"][0]
    assert prompt["prompt"] == prompt["system"] == text and prompt["runs"][0]["text"] == f"{text}␛"
    assert dict(page["facts"])["command"] == f"cascli generate '{text}'"


def test_a_character_of_several_tokens_is_shown_at_its_last_token(text_pair: Pair) -> None:
    run = generate(text_pair, "hi", strategy="target", max_new_tokens=2)
    pieces = ["a", *["\ufffd"] * 4, "b"]
    rounds = [Round(emitted=[Emitted(id=1000 + i, text=text, event="target")]) for i, text in enumerate(pieces)]
    page = data_of(of_runs([run.model_copy(update={"rounds": rounds, "text": "a\U0001f600b"})], None))
    assert [token.get("text") for token in tokens_of(page)] == [None, "", "", "", "\U0001f600", None]
    page = data_of(of_runs([run.model_copy(update={"rounds": rounds, "text": "something else"})], None))
    assert not any("text" in token for token in tokens_of(page))


def test_only_rules_that_choose_have_kept_or_deferred_a_token(text_pair: Pair) -> None:
    for rule, chooses in (("mentored", False), ("token-v3,alpha=0.5,tail=exact", False), ("token-v3,alpha=0.5", True)):
        run = generate(text_pair, "hi", strategy=f"speculative-cascade:rule={rule},k=3", temperature=0.8, top=2)
        drafts = [token for token in tokens_of(data_of(of_runs([run], None))) if "accept_prob" in token]
        assert drafts and {"deferred" in token for token in drafts} == {chooses}, rule
    exact = generate(text_pair, "hi", strategy="speculative:k=3", temperature=0.8, top=2)
    assert not any("deferred" in token for token in tokens_of(data_of(of_runs([exact], None))))


def test_numbers_are_rounded_once_and_bounds_never(text_pair: Pair) -> None:
    run = generate(text_pair, "hi", strategy="speculative-cascade:rule=diff,alpha=0.05,k=3", temperature=0.8, top=2)
    drafts = [draft for step in run.rounds for draft in step.drafted]
    shown = [token for token in tokens_of(data_of(of_runs([run], None))) if "accept_prob" in token]
    diff = rules_in_alpha()["diff"]
    assert [token["alphas"]["diff"][0] for token in shown] == [diff.keeps(draft.detail).low for draft in drafts]
    for value in (0.9999964, 0.02449993, 0.99999999996, 1 / 3, 3e-12):
        seen = run.rounds[0].drafted[0].model_copy(update={"pi": value})
        step = run.rounds[0].model_copy(update={"drafted": [seen, *run.rounds[0].drafted[1:]]})
        sent = tokens_of(data_of(of_runs([run.model_copy(update={"rounds": [step]})], None)))[0]["pi"]
        assert sent == pytest.approx(value, rel=1e-8) and sent != 1


def test_prompts_are_counted_and_not_their_turns(text_pair: Pair) -> None:
    asked = [Prompt(("one", "two"), "a"), Prompt(("three",), "b")]
    page = data_of(of_comparison(found(text_pair, asked, top=0), None))
    assert page["asked"] == 2
    assert [(each["number"], each["turn"]) for each in page["prompts"]] == [(1, 0), (1, 1), (2, 0)]
    assert page["prompts"][0]["tokens"] == "3 tokens"  # bytes
    runs = found(text_pair, asked, top=0).runs[len(STRATEGIES) :]
    longer = [run.model_copy(update={"prompt_tokens": 20 + i}) for i, run in enumerate(runs[: len(STRATEGIES)])]
    assert data(longer, [], [], None)["prompts"][0]["tokens"] == f"20 to {19 + len(STRATEGIES)} tokens"


def test_what_qualifies_the_numbers_is_said_wherever_they_are_shown(comparison: Comparison) -> None:
    first, *others = comparison.summary
    exit = ExitInfo(layers=1, depth=3, trained=None)
    rows = [first, *(row.model_copy(update={"depends_on_rounds": True, "exit": exit}) for row in others)]
    runs = [run.model_copy(update={"earlier_texts": 1}) for run in comparison.runs]
    limited = runs[0].pair.model_copy(update={"shared_tokens": 7, "draft_tokenizer_size": 300})
    runs[0] = runs[0].model_copy(update={"pair": limited, "finish_reason": "interrupted"})
    qualified = comparison.model_copy(update={"runs": runs, "summary": rows})
    said = remarks(qualified)
    for each in ("ended early: 1 of 16", "the draft can produce 7 of", "law depends on the rounds", "also drafts from",
                 "untrained exit: after 1 of the target's 3 layers"):  # fmt: skip
        assert any(each in line for line in said), each
    shown = data_of(of_comparison(qualified, None))
    assert shown["said"][: len(said) - 1] == [line for line in said if line != shown["pair"]]
    out = io.StringIO()
    print_results(qualified, Screen(Console(file=out, width=100), Console(file=io.StringIO())), "none")
    printed, page = " ".join(out.getvalue().split()), unescape(of_notebook(qualified))
    for line in said:
        assert line in printed and line in page, line


# --- which rules keep a draft, and at which alphas ---


def dists(generator: torch.Generator, sharpness: float) -> Dists:
    """One position of two models that agree in part, as float64."""
    common = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    q, p = (common + torch.randn(1, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    return Dists(*(torch.softmax(x, dim=-1) for x in (sharpness * q, sharpness * p, q, p)))


def seen(d: Dists, token: int) -> Detail:
    return Detail(
        q1=d.q1[0, token].item(),
        p1=d.p1[0, token].item(),
        max_q1=d.q1.max().item(),
        max_p1=d.p1.max().item(),
        disagreement=total_variation(d.p, d.q).item(),
    )


def kept(kind: type, alpha: float, d: Dists, token: int) -> bool:
    keep = kind(alpha=alpha).keep(d)[0]
    return bool(keep[0] if keep.numel() == 1 else keep[token])


@pytest.mark.parametrize("name", ["chow", "diff", "opt", "token-v1", "token-v2", "token-v3"])
def test_closed_forms_match_the_rules(name: str) -> None:
    line = rules_in_alpha()[name]
    generator = torch.Generator().manual_seed(0)
    outcomes = []
    for _ in range(200):
        d = dists(generator, float(torch.rand(1, generator=generator) * 3 + 0.2))
        token = int(torch.multinomial(d.q[0], 1, generator=generator))
        alphas = line.keeps(seen(d, token))
        assert alphas is not None
        tried = torch.rand(8, generator=generator).mul(2).sub(1).tolist()
        tried += [alphas.low - 1e-6, alphas.low + 1e-6]  # where the decision changes
        for alpha in tried:
            outcomes.append(alpha in alphas)
            assert kept(line.kind, alpha, d, token) is outcomes[-1], (name, alpha, alphas)
    assert 200 < sum(outcomes) < len(outcomes) - 200


def test_a_draft_is_kept_at_every_alpha_or_at_none_if_the_models_agree() -> None:
    """TV(p, q) is 0, as often when greedy: opt then compares only the models' confidence, whatever its alpha."""
    opt = rules_in_alpha()["opt"]
    assert opt.keeps(Detail(max_q1=0.7, max_p1=0.6, disagreement=0.0)) == (float("-inf"), float("inf"))
    never = opt.keeps(Detail(max_q1=0.5, max_p1=0.6, disagreement=0.0))
    assert never is not None and never.empty
    assert opt.keeps(Detail(max_q1=0.5, max_p1=0.6)) is None


def test_decisions_that_need_only_one_model() -> None:
    draft_alone, target_alone = Detail(q1=0.2, max_q1=0.6), Detail(p1=0.2, max_p1=0.6)
    known = {name: (line.keeps(draft_alone), line.keeps(target_alone)) for name, line in rules_in_alpha().items()}
    assert known.pop("chow") == ((0.4, float("inf")), None)
    assert known.pop("token-v2")[0] is None
    assert known.pop("token-v3")[1] == (pytest.approx(2 / 3), float("inf"))
    assert set(known.values()) == {(None, None)}


# --- colours ---


def test_all_text_has_enough_contrast_on_every_background() -> None:
    themes = re.findall(r":root \{(.*?)\}", TEMPLATE, re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", theme))
        grounds = [value for name, value in colours.items() if name.startswith("ground")]
        texts = [value for name, value in colours.items() if name.startswith("text")]
        assert len(grounds) == 3 and len(texts) == 9
        assert min(contrast(text, ground) for text in texts for ground in grounds) >= 4.5
        assert contrast(colours["line-strong"], colours["ground"]) >= 3  # borders of controls
    outside = re.sub(r":root \{.*?\}", "", TEMPLATE, flags=re.S)
    assert not re.search(r"#[0-9a-f]{6}\b|rgb|\bopacity", outside)


# --- the command line ---


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_commands_write_pages(clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = ["-c", "tiny-random", "--max-new-tokens", "5", "-q"]
    page, kept_page, document = tmp_path / "a.html", tmp_path / "b.html", tmp_path / "c.json"
    compared = ["compare", "hi <b>", *short, "-s", "target", "-s", "speculative:k=2", "--no-measure"]
    assert run(*compared, "-o", str(page)).exit_code == 0
    shown = data_of(page.read_text(encoding="utf-8"))
    top = shown["prompts"][0]["runs"][0]["rounds"][0]["tokens"][0]["seen"]["target_top"]
    assert len(top) == 5
    assert run(*compared, "-o", str(document), "--top", "2").exit_code == 0
    assert run("show", str(document), "-o", str(kept_page)).exit_code == 0
    again = data_of(kept_page.read_text(encoding="utf-8"))
    assert len(again["prompts"][0]["runs"][0]["rounds"][0]["tokens"][0]["seen"]["target_top"]) == 2
    assert run("generate", "hi", *short, "-o", str(page), "--top", "0").exit_code == 0
    assert data_of(page.read_text(encoding="utf-8"))["detail"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "none.json", "-o", "x.xls"], "unknown suffix '.xls'"),
        (["show", "none.json", "-o", "/nowhere/x.html"], "no such folder"),
        (["generate", "hi", "--top", "21"], "--top"),
        (["compare", "hi", "-o", "x.htm"], "did you mean '.html'?"),
    ],
)
def test_impossible_outputs_are_refused_before_loading(
    arguments: list[str], says: str, clean_env: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascli.cli.common.Plan.load", lambda plan: pytest.fail("loaded"))
    ended = run(*arguments)
    assert ended.exit_code == 2 or says in str(ended.exception)
    assert says in ended.output or says in str(ended.exception)


def test_a_document_without_traces_makes_no_page(clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    file.write_text('{"schema": "cascli.verify/1"}')
    ended = run("show", str(file), "-o", str(tmp_path / "a.html"))
    assert "has no traces" in ended.output or "has no traces" in str(ended.exception)


def test_a_round_that_ends_inside_its_block(text_pair: Pair) -> None:
    """If the text ends at an accepted draft, the page shows neither a rejected draft nor a bonus."""
    whole = generate(text_pair, "hi", strategy="speculative-cascade:rule=chow,alpha=1,k=4", max_new_tokens=10, top=1)
    step = whole.rounds[0]
    cut = Round(drafted=step.drafted[:2], emitted=step.emitted[:2], seconds=RoundSeconds(total=1))
    shown = data([whole.model_copy(update={"rounds": [cut]})], [], [], "")["prompts"][0]["runs"][0]["rounds"][0][
        "tokens"
    ]
    assert [each["how"] for each in shown] == ["accepted", "accepted"]
    alone = Round(emitted=[Emitted(id=1, text="x", event="bonus")])
    assert [
        each["how"]
        for each in data([whole.model_copy(update={"rounds": [alone]})], [], [], "")["prompts"][0]["runs"][0]["rounds"][
            0
        ]["tokens"]
    ] == ["bonus"]


def test_several_runs_of_one_strategy_are_shown_as_several_prompts(text_pair: Pair) -> None:
    runs = [generate(text_pair, text, strategy="speculative:k=2", max_new_tokens=5) for text in ("one", "two")]
    page = data_of(of_runs(runs, "cascli generate --prompts two.jsonl"))
    assert [prompt["prompt"] for prompt in page["prompts"]] == ["one", "two"]
    assert [row[0] for row in page["table"]["rows"]] == ["speculative k=2"]
    assert page["table"]["rows"][0][3:5] == ["10", "length 2"]
