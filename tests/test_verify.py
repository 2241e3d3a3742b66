"""cascli verify passes on correct code, and fails on planted bugs."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from cascli import Pair, load_pair, rules
from cascli.audit import WITH_OPTIONS, draws, joint, law, numerics, parity, rounds, tables, tokens
from cascli.audit import run as audit
from cascli.audit.report import Audit, Check, check_of
from cascli.cli.app import app
from cascli.decoding import speculation, thinking
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.runner import Runner
from cascli.models.tokenizer import byte_tokenizer
from cascli.prompts import builtin
from cascli.render.audit import row
from cascli.rules.base import Exact
from cascli.sampling import distributions, rejection
from cascli.sampling.autoregressive import Written
from cascli.strategies import parse
from tests.pairs import EVERY_ARCHITECTURE, model, pair
from tests.tape import TapeCapture
from tests.two_tokenizers import byte_level

RUNS = 1500


@pytest.fixture(scope="module")
def tree(text_pair: Pair) -> tables.Tree:
    return tables.tabulate(text_pair, [72, 105], width=6, depth=1)


def test_the_tree_holds_the_models_own_logits(text_pair: Pair, tree: tables.Tree) -> None:
    assert len(tree.target) == 1 + 6
    with torch.inference_mode():
        whole = text_pair.target.model(torch.tensor([[72, 105]])).logits[0, -1, : text_pair.vocab].double()
    shares = tree.target[()].softmax(-1)
    assert all(float((whole - value).abs().min()) < 1e-4 for value in tree.target[()])
    assert shares.sum() == pytest.approx(1)


def test_tabulated_models_answer_from_the_table(text_pair: Pair, tree: tables.Tree) -> None:
    small = tables.tabulated(text_pair, tree)
    runner = small.draft.runner
    runner.reset()
    rows = runner.forward(torch.tensor([*tables.PROMPT, 3]), 2)
    assert rows.dtype == tree.dtype == torch.float32
    assert torch.equal(rows.double(), torch.stack([tree.draft[()], tree.draft[(3,)]]))
    runner.truncate(len(tables.PROMPT))
    assert torch.equal(runner.forward(torch.tensor([5]), 1)[0].double(), tree.draft[(5,)])
    assert text_pair.draft.runner is not runner


def test_joint_law_is_a_distribution(tree: tables.Tree) -> None:
    found = joint.joint_law(tree, Exact(), 2)
    assert len(found) == 36
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


def test_laws_hold(text_pair: Pair, tree: tables.Tree) -> None:
    exact = list(law.worst_of([tree]))
    assert {check.subject for check in exact} >= {"speculative", "chow", "token-v3"}
    strategies = [parse(text) for text in ("speculative:k=2", "speculative-cascade:rule=token-v1,k=2", "token-cascade")]
    sampled = list(joint.joint_laws(text_pair, tree, strategies, RUNS))
    assert all(check.status == "pass" for check in exact + sampled)
    assert all(check.false_alarm is not None and check.false_alarm < 1e-4 for check in sampled)


def test_options_are_audited(text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option `where` is audited for any pair: two tokens of the tree serve as its thinking tokens."""
    assert text_pair.thinking is None
    loosest = parse("speculative-cascade:rule=token-v3,alpha=1,where=thinking,k=2")
    strategies = [loosest, *(parse(text) for text in WITH_OPTIONS)]
    found = [*rounds.rounds(text_pair, tree, strategies), *joint.joint_laws(text_pair, tree, strategies, RUNS)]
    assert [check.status for check in found] == ["pass"] * 9
    monkeypatch.setattr(thinking, "where", lambda *_: ())
    assert [check.status for check in joint.joint_laws(text_pair, tree, [loosest], RUNS)] == ["fail"] * 2


def test_rounds_of_every_length_match_the_plain_path(text_pair: Pair, tree: tables.Tree) -> None:
    strategies = [
        parse(text) for text in ("target", "speculative:k=2", "speculative-cascade:rule=opt", "token-cascade")
    ]
    found = list(rounds.rounds(text_pair, tree, strategies))
    assert [check.subject.partition(":")[0] for check in found] == ["speculative", "speculative-cascade"]
    assert all(check.status == "pass" and "cpu, float32, torch" in check.detail for check in found)


def residual_from_pi(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rejection, "residual", lambda pi, q: pi)


def lenient_tests(patch: pytest.MonkeyPatch) -> None:
    right = rejection.acceptance
    patch.setattr(rejection, "acceptance", lambda *given: (right(*given) / 0.8).clamp(max=1))


def draws_of_less(patch: pytest.MonkeyPatch) -> None:
    right = distributions.sample
    patch.setattr(distributions, "sample", lambda probs, u: right(probs, u**0.9))


def top_p_of_less(patch: pytest.MonkeyPatch) -> None:
    right = distributions._nucleus
    patch.setattr(distributions, "_nucleus", lambda logits, top_p: right(logits, top_p - 0.1))


def one_number_for_all(patch: pytest.MonkeyPatch) -> None:
    right = speculation.verify_block
    patch.setattr(speculation, "verify_block", lambda pi, q, x, u, v: right(pi, q, x, u[:1].expand_as(u), v))


PLANTED = [residual_from_pi, lenient_tests, draws_of_less, top_p_of_less, one_number_for_all]


@pytest.mark.parametrize("plant", PLANTED)
def test_the_cpu_path_is_not_compared_with_itself(
    plant: Callable[[pytest.MonkeyPatch], None],
    text_pair: Pair,
    tree: tables.Tree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Faults in the only path of a CPU are detected: the reference that it is compared with shares no line of it."""
    plant(monkeypatch)
    [check] = rounds.rounds(text_pair, tree, [parse("speculative:k=2")])
    assert check.status == "fail", check


@pytest.mark.parametrize("name", ["speculative:k=2", "speculative:k=2,verify=block"])
@pytest.mark.parametrize("at", [5, 8])
def test_a_wrong_token_after_a_long_block_fails(
    name: str, at: int, text_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token after `at` kept drafts comes from the row before, in blocks of this length alone."""
    tree = tables.tabulate(text_pair, [72, 105], width=16, depth=1)
    [check] = rounds.rounds(text_pair, tree, [parse(name)])
    found = re.search(r"(\d+) rounds of up to 8, (\d+) outcomes, all 8 kept in (\d+)", check.detail)
    assert check.status == "pass" and found is not None
    cases, outcomes, whole = map(int, found.groups())
    assert cases >= outcomes > 0.7 * cases and whole > 5
    right = speculation.decide_round

    def wrong(rule: Any, sampling: Any, logits: torch.Tensor, *given: torch.Tensor, **how: Any) -> torch.Tensor:
        rows = torch.cat([logits[:-1], logits[-2:-1]]) if len(logits) == at + 1 else logits
        return right(rule, sampling, rows, *given, **how)

    monkeypatch.setattr(rounds, "decide_round", wrong)
    [check] = rounds.rounds(text_pair, tree, [parse(name)])
    assert check.status == "fail" and check.statistic < 0.2


@pytest.mark.parametrize("name", ["scaled prefixes", "prefixes as tokens"])
def test_block_verification_is_not_compared_with_itself(
    name: str, text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "scaled prefixes":
        right = rejection.prefix_weights
        monkeypatch.setattr(rejection, "prefix_weights", lambda *given: right(*given) ** 2)
    else:
        monkeypatch.setattr(speculation, "verify_prefixes", speculation.verify_block)
    [check] = rounds.rounds(text_pair, tree, [parse("speculative:k=2,verify=block")])
    assert check.status == "fail", check


def test_captured_rounds_are_audited(text_pair: Pair, tree: tables.Tree) -> None:
    """A graph that returns a stale result, which no plain path would reveal, is detected."""
    right = GraphCache(Uncaptured())

    class Stale(GraphCache):
        def run(self, key: Any, function: Any, *inputs: torch.Tensor) -> Any:
            return self._seen.setdefault((key, inputs[1].shape), right.run(key, function, *inputs))

        _seen: ClassVar[dict[Any, Any]] = {}

    stale = replace(text_pair, graphs=Stale(Uncaptured()))
    strategies = [parse("speculative:k=2")]
    [check] = rounds.rounds(stale, tree, strategies)
    assert check.status == "fail" and "captured rounds" in check.detail
    assert "fail" in {check.status for check in joint.joint_laws(stale, tree, strategies, 300)}
    [check] = rounds.rounds(replace(text_pair, graphs=right), tree, strategies)
    assert check.status == "pass"


def test_captured_rounds_are_replayed(text_pair: Pair, tree: tables.Tree) -> None:
    """A graph that computes nothing on replay, and always returns the result of its capture, is detected."""

    class Frozen(Uncaptured):
        def __call__(self, compute: Any) -> Any:
            result = compute()
            return lambda: result

    frozen = replace(text_pair, graphs=GraphCache(Frozen()))
    strategies = [parse(text) for text in ("speculative:k=2", "speculative-cascade:rule=lenience")]
    assert [check.status for check in rounds.rounds(frozen, tree, strategies)] == ["fail", "fail"]
    taped = GraphCache(TapeCapture())
    [check] = rounds.rounds(replace(text_pair, graphs=taped), tree, strategies[:1])
    assert check.status == "pass" and taped.seconds > 0


def test_rounds_are_also_checked_over_the_whole_vocabulary(
    text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault beyond a tree's few tokens is detected, as it would be in the second part of a kernel."""
    right = speculation.decide_round

    def wrong(rule: Any, sampling: Any, logits: torch.Tensor, *given: torch.Tensor, **how: Any) -> torch.Tensor:
        return right(rule, sampling, logits.index_fill(1, torch.arange(6, logits.shape[1]), -9.0), *given, **how)

    monkeypatch.setattr(rounds, "decide_round", wrong)
    [check] = rounds.rounds(text_pair, tree, [parse("speculative:k=2")])
    assert check.status == "fail" and check.statistic < 0.1


def test_drafts_are_drawn_from_their_reported_distributions(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions of another step (probs or base) and the token of another random number are detected."""
    assert [check.status for check in draws.draws(text_pair)] == ["pass"] * 2
    runner, right = type(text_pair.target.runner), Runner.write

    def bug(change: Callable[[Written], Written]) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "write", lambda *given, **how: change(right(*given, **how)))
            return [check.status for check in draws.draws(text_pair)]

    assert bug(lambda w: w) == ["pass"] * 2
    assert bug(lambda w: w._replace(probs=w.probs.roll(1, 0))) == ["fail"] * 2
    assert bug(lambda w: w._replace(base=w.base.roll(1, 0))) == ["fail"] * 2
    assert bug(lambda w: w._replace(tokens=w.tokens.roll(1))) == ["fail"] * 2


def test_captured_drafts_are_audited(text_pair: Pair) -> None:
    """Captured drafts are audited with a tape in place of CUDA graphs."""
    model, cpu = load_pair(pair(300)).target, torch.device("cpu")
    runner = GraphRunner(model.model, text_pair.vocab, cpu, TapeCapture())
    found = list(draws.draws(replace(text_pair, draft=None, target=replace(model, runner=runner))))
    assert [check.status for check in found] == ["pass"] and "captured" in found[0].detail and runner.graphs > 0


def test_a_wrong_residual_fails_the_exact_law(tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "residual", lambda pi, q: pi)
    assert any(check.status == "fail" for check in law.worst_of([tree]))


def test_a_law_that_is_not_finite_fails(tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A law that is not finite at one alpha fails, even if it is at those before and after."""
    kind = rules.load("min-p")
    right = kind.apply
    monkeypatch.setattr(kind, "apply", lambda self, d: right(self, d) * (float("nan") if self.alpha == 0.3 else 1.0))
    [check] = law.worst_of([tree], ["min-p"])
    assert check.status == "fail" and "6 settings" in check.detail


def test_a_wrong_acceptance_fails_the_joint_law(
    text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejection, "acceptance", lambda pi, q, drafted: torch.ones(len(drafted), dtype=pi.dtype))
    assert [check.status for check in joint.joint_laws(text_pair, tree, [parse("speculative:k=2")], RUNS)] == [
        "fail"
    ] * 2


def test_an_impossible_text_fails_whatever_its_count() -> None:
    from collections import Counter

    assert joint.deviation(Counter({(1,): 1}), {(0,): 1.0, (1,): 0.0}, 1) == float("inf")


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_numerics_pass_on_every_architecture(name: str) -> None:
    shape = EVERY_ARCHITECTURE[name]
    loaded = load_pair({"draft": model(1, 300, **shape), "target": model(2, 300, **shape)})
    checks = list(numerics.numerics(loaded, steps=8))
    assert [check.status for check in checks] == ["pass"] * 4
    if "sliding_window" in shape:
        assert "beyond its window" in checks[0].detail
        assert "not beyond" not in checks[0].detail


def test_a_rewind_that_is_off_by_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_pair(pair(300))
    honest = loaded.target.runner.truncate
    monkeypatch.setattr(loaded.target.runner, "truncate", lambda length: honest(max(length - 1, 0)))
    assert numerics.cache("target", loaded.target, loaded.vocab, 4).status == "fail"


def test_parity_locates_a_difference_and_classifies_it(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = builtin()[:2]
    [same] = parity.parity(text_pair, prompts, 12, 1e-3)
    assert same.status == "pass"
    assert "no difference" in same.detail
    monkeypatch.setattr(rejection, "acceptance", lambda pi, q, drafted: torch.ones(len(drafted), dtype=pi.dtype))
    [other] = parity.parity(text_pair, prompts, 12, 1e-3)
    assert other.status == "fail"
    assert "instead of" in other.detail
    assert "real" in other.detail
    assert (parity.verdict(0, 1e-3), parity.verdict(1e-4, 1e-3), parity.verdict(1e-2, 1e-3)) == (
        "tie",
        "numerical",
        "real",
    )


def test_not_a_number_is_a_failure() -> None:
    assert check_of("cache", "x", float("nan"), 1.0, 0.0).status == "fail"


def test_audit_without_a_tokenizer_skips_what_needs_one(id_pair: Pair) -> None:
    small = replace(audit.QUICK, runs=200)
    found = list(audit._checks(id_pair, [parse("speculative")], small, lambda _: None))
    assert [check.kind for check in found if check.status == "skipped"] == ["tokenizer", "parity"]
    assert all(check.status != "fail" for check in found)


def like_t5(known: str) -> Any:
    """A tokenizer that splits at white space, and has these characters and a token for all others."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((each, -3.0) for each in sorted(known))]
    core = Tokenizer(Unigram(pieces, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("tokenizer", "result"),
    [
        (byte_tokenizer(), ("pass", "6 texts")),
        (
            like_t5("".join("".join(tokens.SAMPLES).split())),
            ("pass", "6 texts; the tokenizer normalises white space or characters in 2"),
        ),
        (
            like_t5(printable := "".join(map(chr, range(33, 127)))),
            ("pass", "6 texts; the tokenizer normalises white space or characters in 3; it lacks characters of 1"),
        ),
        (byte_level(printable + "Ġ"), ("fail", f"6 texts; not restored: {tokens.SAMPLES[1]!r}")),
    ],
)
def test_a_tokenizer_restores_what_it_reads(tokenizer: Any, result: tuple[str, str]) -> None:
    """One that drops bytes without saying so fails: it neither normalises nor has a token for what it lacks."""
    found = tokens._round_trips(tokenizer)
    assert (found.status, found.detail) == result


def test_a_tokenizer_that_normalises_is_caught_if_it_reads_its_own_texts_otherwise() -> None:
    tokenizer = like_t5("".join("".join(tokens.SAMPLES).split()))
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Replace("s", "x")])
    assert tokens._round_trips(tokenizer).status == "fail"


def test_the_command(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setattr(audit, "QUICK", replace(audit.QUICK, runs=200))
    run = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick", "--json"])
    assert run.exit_code == 0
    found = Audit.model_validate_json(run.stdout)
    assert found.passed
    assert {check.kind for check in found.checks} == {
        "weights",
        "tokenizer",
        "cache",
        "block",
        "draw",
        "law",
        "round",
        "answer",
        "drafter",
        "joint law",
        "joint fit",
        "parity",
    }
    assert json.loads(run.stdout)["schema"] == "cascli.verify/1.2"
    table = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2"])
    assert table.exit_code == 0
    assert "joint law" in table.stdout
    assert "none failed" in table.stderr
    quiet = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2", "-q"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert re.fullmatch(r"\d+ checks in \d+ s: none failed; 2 could not be made\n", quiet.stdout)


def test_a_failed_check_exits_1(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setattr(audit, "QUICK", replace(audit.QUICK, runs=200))
    clean_env.setattr(rejection, "residual", lambda pi, q: pi)
    run = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick"])
    assert run.exit_code == 1
    assert "failed: law of" in run.stderr
    assert "fail" in run.stdout
    quiet = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2", "-q"])
    assert (quiet.exit_code, quiet.stderr) == (1, "") and "failed: law of" in quiet.stdout


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("chosen", [None, ["target", "speculative:k=2", "cascade", "token-cascade"]])
def test_every_check_is_counted_and_reported_as_it_runs(
    text_pair: Pair, chosen: list[str] | None, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "QUICK", replace(audit.QUICK, runs=20, deep=deep, rewinds=2, tokens=2))
    strategies = None if chosen is None else [parse(text) for text in chosen]
    told: list[Any] = []
    found = audit.audit(
        text_pair, strategies, quick=True, on_progress=lambda *what: told.append(what), on_check=told.append
    )
    checks = [each for each in told if isinstance(each, Check)]
    places = [each for each in told if not isinstance(each, Check)]
    assert checks == found.checks
    assert {total for _, _, total in places} == {len(checks)}
    assert [done for _, done, _ in places] == sorted(done for _, done, _ in places)
    assert places[-1][1] == len(checks) and told.index(checks[0]) < len(told) - len(checks)


@pytest.mark.parametrize("width", [80, 110, 160])
def test_lines_of_an_audit_break_between_words(width: int) -> None:
    """They fit the width, and a check takes at most two lines."""
    names = [*audit.default_strategies(), *audit.default_strategies(draft=False), "draft (float32)"]
    names.append("speculative:draft=prompt-lookup,k=4 against target")
    view = Console(file=io.StringIO(), width=width, color_system=None)
    for place, name in enumerate(names):
        check = check_of("joint law", name, 1.23e-16, 6.0, 1.9e-7, "3000 runs of 2 tokens, 256 texts")
        view.print(row(check.model_copy(update={"status": ("pass", "fail", "skipped")[place % 3]}), view))
    lines = view.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = set(view.file.getvalue().split())
    assert {"speculative", "spec-cascade", "token-cascade", "token-v3", "k=2", "1.2e-16", "1.9e-07", "texts"} <= words
    assert len(lines) <= 2 * len(names)


def test_the_engine_and_the_audit_share_one_distributions_module() -> None:
    """Planted bugs above replace functions of these modules; the engine must look them up there."""
    assert rejection.distributions is joint.distributions
    assert Check.__module__ == "cascli.audit.report"


def test_a_target_alone_is_audited() -> None:
    """With prompt lookup: exact laws with a draft that differs, rounds, the lossless strategy's joint law, parity."""
    alone = load_pair({"name": "alone", "target": model(2, 300, max_position_embeddings=1024)})
    checks = audit.audit(alone, quick=True).checks
    assert all(check.status != "fail" for check in checks), [check for check in checks if check.status == "fail"]
    by_kind = {(check.kind, check.subject.partition(":")[0]): check.status for check in checks}
    assert by_kind["joint law", "speculative"] == by_kind["round", "speculative-cascade"] == "pass"
    assert by_kind["parity", "speculative"] == "pass" and by_kind["cache", "target (float32)"] == "pass"
    assert by_kind["joint law", "speculative-cascade"] == "skipped"  # it depends on where rounds begin


def test_texts_that_occur_too_rarely_also_deviate() -> None:
    law = {(i,): 0.8999 / 89 for i in range(89)} | {(99,): 0.1001}
    seen = Counter({(i,): 112 for i in range(89)}) + Counter({(99,): 1})
    assert joint.deviation(seen, law, seen.total()) > 20


def test_parity_is_judged_by_the_widest_margin(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tie at the last prompt does not excuse a difference at the first."""
    margins = iter([0.5, 0.0])
    monkeypatch.setattr(parity, "margin", lambda *_: next(margins))
    monkeypatch.setattr(parity, "first_divergence", lambda *_: 0)
    [found] = parity.parity(text_pair, builtin()[:2], 2, 1e-3)
    assert found.status == "fail" and found.statistic == 0.5


def test_rounding_of_logits_does_not_fail_parity(text_pair: Pair) -> None:
    """The tolerance is twice the target's block error, as a share of its largest logits."""
    target = replace(text_pair.target, dtype="bfloat16")
    seen = [check_of("block", f"{role} (bfloat16)", off, 0.1, 0.0) for role, off in (("draft", 0.09), ("target", 0.02))]
    assert audit._tolerance(replace(text_pair, target=target), seen) == pytest.approx(2 * 0.02 * 30)
    assert audit._tolerance(text_pair, seen) == parity.REAL_IN_FLOAT32


def test_the_difference_of_logits_is_that_of_the_worst_row() -> None:
    """A fault at one position in a hundred is not averaged away."""
    rows = torch.tensor([1.0, -1.0]).repeat(100, 2)
    off = rows.clone()
    off[7] *= 1.5
    assert numerics.difference(off, rows) == pytest.approx(0.5)


def test_what_is_added_to_all_logits_of_a_row_is_no_difference() -> None:
    """No probability depends on it, and a large one would hide every other difference."""
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 7] = -torch.inf
    assert numerics.difference(rows, rows - 100) < 1e-12
    off = rows.clone()
    off[1] = 1.5 * rows[1]
    assert numerics.difference(off + 100, rows + 100) == pytest.approx(0.5)


def test_logits_that_are_not_numbers_pass_no_bound() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    off = rows.clone()
    off[2, 0] = torch.nan
    assert not numerics.difference(off, rows) <= 1.0


def test_a_cache_of_experts_is_judged_by_its_middle_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 rounding chooses between nearly equal experts, and moves a few rows; a wrong rewind moves all."""
    shape = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 6}
    mixture = pair(300, **shape, initializer_range=0.5, hidden_size=128, intermediate_size=128)
    for role in ("draft", "target"):
        mixture[role]["dtype"] = "bfloat16"
    loaded = load_pair(mixture)
    found = numerics.cache("target", loaded.target, loaded.vocab, 12)
    beyond = re.search(r"(\d+) are beyond the bound", found.detail)
    assert found.status == "pass" and beyond is not None and int(beyond[1]) > 0, found
    honest = loaded.target.runner.truncate
    monkeypatch.setattr(loaded.target.runner, "truncate", lambda length: honest(max(length - 1, 0)))
    assert numerics.cache("target", loaded.target, loaded.vocab, 4).status == "fail"


def test_a_cache_is_judged_by_its_worst_rewind(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([0.0, 0.5, 0.0, 0.0])
    monkeypatch.setattr(numerics, "difference", lambda *_: next(seen))
    found = numerics.cache("target", text_pair.target, text_pair.vocab, 4)
    assert (found.statistic, found.status) == (0.5, "fail")
