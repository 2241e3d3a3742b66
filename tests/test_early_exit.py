"""What is measured, counted and reported of early exits; their laws are in `laws/test_early_exit.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cascli import Pair, compare, generate, load_pair
from cascli.analysis import theory
from cascli.analysis.bench import Bench
from cascli.analysis.cost import part_of
from cascli.analysis.early_exit import exit_point
from cascli.analysis.profile import Profile, timing
from cascli.cli.app import app
from cascli.decoding.step_by_step import by_steps
from cascli.engine import Request
from cascli.jobs.bench import bench
from cascli.jobs.early_exit import acceptances
from cascli.models.split import trained_for_exits
from cascli.models.step_costs import step_costs
from cascli.render import early_exit as rendering
from cascli.render.summary import lines
from cascli.sampling import distributions
from cascli.sampling.parameters import Sampling
from cascli.trace import ExitInfo
from tests.laws.test_early_exit import fresh, left_early
from tests.pairs import ARCHITECTURES, model, pair

EXIT = ExitInfo(layers=2, depth=8, trained=None)


@pytest.fixture
def alone() -> Pair:
    return load_pair({"name": "alone", "target": model(2, 300, num_hidden_layers=4)})


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_acceptance_per_exit_equals_that_of_a_model_with_those_layers(name: str, temperature: float) -> None:
    """Position by position, by full forwards without a cache; the answer is longer than what is held at a time."""
    kind = {"num_hidden_layers": 4} | ARCHITECTURES[name] | {"initializer_range": 0.2}
    kind |= {"n_layer": 4} if name == "gpt2" else {}
    target = load_pair({"target": model(2, 20, **kind)})
    sampling = Sampling(temperature=temperature)
    prompt, answer = [1, 2, 3], [i * i % 20 for i in range(70)]
    found = acceptances(target, Request(prompt, sampling, 70), answer)
    whole = target.target.model
    p = distributions.warp(fresh(whole, [*prompt, *answer])[2:-1], sampling)
    assert [*found] == [1, 2, 3]
    for n, values in found.items():
        q = distributions.warp(fresh(left_early(whole, n), [*prompt, *answer])[2:-1], sampling)
        assert values == pytest.approx(torch.minimum(p, q).sum(-1).tolist(), abs=1e-4)
    assert len({tuple(values) for values in found.values()}) == 3


def profile_of(step: float, exits: dict[int, float], widening: float = 0.1) -> Profile:
    target = {n: timing([step * (1 + widening * (n - 1))]) for n in range(1, 10)}
    return Profile(context=8, draft={1: timing([9.0])}, target=target, exits={n: timing([s]) for n, s in exits.items()})


def test_an_exit_costs_its_layers_and_the_head() -> None:
    """With 8 layers of 1 ms each and a head of 2 ms, a draft after 2 layers takes 4 ms of 10."""
    costs = profile_of(10.0, {1: 3.0, 4: 6.0, 7: 9.0}).leaving(EXIT)
    assert costs is not None and costs.c == pytest.approx(0.4)
    # The exit's two layers, 0.2 of a step, read one token; the other layers and the head grow with the block.
    assert costs.v(5) == pytest.approx(0.2 + 0.8 * 1.4) and costs.v(1) == 1.0
    assert profile_of(10.0, {}).leaving(EXIT) is None
    assert profile_of(10.0, {2: 4.0}).leaving(EXIT.model_copy(update={"uncaptured": True})) is None


def test_the_gain_of_an_exit_follows_its_acceptance_at_every_position() -> None:
    costs = profile_of(10.0, {2: 4.0}, widening=0.0).leaving(EXIT)
    assert costs is not None
    sure, half = exit_point(2, [[1.0] * 32] * 2, costs), exit_point(2, [[1.0] * 16 + [0.0] * 16], costs)
    for each, answers in ((sure, [[1.0] * 32] * 2), (half, [[1.0] * 16 + [0.0] * 16])):
        rounds = sum(theory.expected_rounds(answer, each.best_k) for answer in answers)
        assert each.tokens_per_round == pytest.approx(sum(map(len, answers)) / rounds)
        assert each.speed_up == pytest.approx(each.tokens_per_round / (0.4 * each.best_k + 1))
    assert sure.acceptance == 1 and half.acceptance == 0.5 and sure.speed_up > half.speed_up
    assert exit_point(2, [[0.0] * 9], costs).speed_up == pytest.approx(1 / 1.4)
    noisy = profile_of(10.0, {2: 4.0}, widening=-0.05).leaving(EXIT)
    assert noisy is not None and noisy.v(5) < 1
    assert exit_point(2, [[0.0] * 9], noisy).speed_up == pytest.approx(1 / 1.4)


def test_a_stop_uses_timed_exits_or_else_their_bytes(alone: Pair) -> None:
    exit = ExitInfo(layers=1, depth=4, trained=None)
    assumed = step_costs(alone, 4, 0.0, reads_last=False, exit=exit)
    info = alone.info.target
    assert not assumed.measured and assumed.c == part_of(info, exit).weight_bytes / info.weight_bytes
    head = info.output_parameters / info.parameters
    assert assumed.c == pytest.approx(head + (1 - head) / 4, rel=1e-3)
    alone.steps = profile_of(10.0, {1: 4.0})
    timed = step_costs(alone, 4, 0.0, reads_last=True, exit=exit)
    assert timed.measured and timed.c == pytest.approx(0.4) and timed.v[0] == 1.0


def test_work_is_counted_once(alone: Pair) -> None:
    """Operations are those of all layers for the tokens that the target reads, and of both models' rows of logits."""
    ask: dict[str, Any] = {"prompt_ids": [5, 6, 7], "max_new_tokens": 12, "temperature": 0.0}
    run = generate(alone, strategy="speculative:draft=early-exit,layers=1,k=2", **ask)
    m, info = run.metrics, alone.info.target
    assert m.draft_calls == m.draft_tokens_read == m.num_draft_tokens
    assert m.seconds.draft > 0 and m.seconds.verify > 0
    target = generate(alone, strategy="target", **ask).metrics
    bytes_of_exit = part_of(info, run.exit).weight_bytes * m.draft_calls
    passes = m.target_calls + 1  # including that of the prompt
    assert m.weight_bytes_read == info.weight_bytes * passes + bytes_of_exit
    assert target.weight_bytes_read == info.weight_bytes * (target.target_calls + 1)
    # All layers eventually read every drafted token, and no layer reads one twice.
    products = (info.parameters - info.output_parameters) * m.target_tokens_read
    rows = 1 + m.target_calls + 2 * m.num_draft_tokens
    assert m.total_flops - 2 * (products + info.output_parameters * rows) < 0.1 * m.total_flops
    assert m.total_flops > 2 * (products + info.output_parameters * rows)


@pytest.mark.parametrize(("draft", "reads"), [("model", False), ("early-exit", False), ("suffix", True)])
def test_tokens_go_to_the_host_only_for_drafters_that_read_there(
    draft: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each of them would be waited for; an exit of the target reads them where they were drawn."""
    seen = list[bool]()

    def watched(*args: Any, on_host: bool, **more: Any) -> Any:
        seen.append(on_host)
        return by_steps(*args, on_host=on_host, **more)

    monkeypatch.setattr("cascli.decoding.speculation.by_steps", watched)
    strategy = f"speculative:draft={draft},stop=max-q,k=3"
    generate(load_pair(pair(300)), prompt_ids=[5, 6] * 4, strategy=strategy, max_new_tokens=6)
    assert set(seen) == {reads}


def test_exits_are_labelled_untrained_unless_the_checkpoint_shows_otherwise(alone: Pair) -> None:
    assert trained_for_exits(alone.target) is None
    alone.target.source = "facebook/layerskip-llama3.2-1B#abc"
    assert trained_for_exits(alone.target) == "LayerSkip, by its name"
    alone.target.source = "else"
    alone.target.model.generation_config.assistant_early_exit = 2
    assert trained_for_exits(alone.target) == "its generation config exits after 2 layers"


def test_results_carry_the_label(alone: Pair) -> None:
    spec = "speculative:draft=early-exit,layers=1,k=2"
    run = generate(alone, prompt_ids=[5, 6], strategy=spec, max_new_tokens=6)
    assert "untrained exit: after 1 of the target's 4 layers" in "\n".join(lines(run))
    assert json.loads(run.to_json())["exit"] == {"layers": 1, "depth": 4, "trained": None, "uncaptured": False}
    done = compare(load_pair("tiny-random"), ["hello"], strategies=["target", spec], max_new_tokens=12, temperature=0.0)
    assert done.summary[1].exit is not None and done.summary[0].exit is None
    assert done.explanation is not None and done.explanation.strategy == spec
    assert done.explanation.c > 0 and done.explanation.measured_alone


def test_bench_shows_every_exit(alone: Pair) -> None:
    requests = [Request([1, 2, 3], Sampling(temperature=0.0), 9), Request([4], Sampling(temperature=0.0), 9)]
    found = bench(alone, contexts=[20], blocks=(1, 2, 3, 4), repeats=2, early_exit=requests)
    curve = found.early_exit
    assert curve is not None and curve.measured and curve.trained is None
    assert (curve.depth, curve.answers, curve.tokens) == (4, 2, 18)
    assert [each.layers for each in curve.exits] == [1, 2, 3]
    assert all(0 <= each.acceptance <= 1 and 1 <= each.best_k <= 3 and each.c > 0 for each in curve.exits)
    assert Bench.from_json(found.to_json()) == found
    said = "\n".join(rendering.lines(curve))
    assert "untrained exit" in said and f"layers={curve.best.layers},k={curve.best.best_k}" in said


def test_deep_models_show_some_of_their_exits_and_the_best() -> None:
    costs = profile_of(10.0, {2: 4.0}).leaving(EXIT)
    point = exit_point(2, [[0.5] * 4], costs)
    points = [point.model_copy(update={"layers": n, "speed_up": float(n == 38)}) for n in range(1, 80)]
    from cascli.analysis.early_exit import ExitCurve

    curve = ExitCurve(
        depth=80, trained=None, temperature=0.0, answers=1, tokens=4, context=8, measured=True, exits=points
    )
    there = [each.layers for each in rendering.shown(curve)]
    assert len(there) <= 32 and 38 in there and 3 in there


def test_the_command_line() -> None:
    done = CliRunner().invoke(
        app, ["bench", "-c", "tiny-random", "--early-exit", "--context", "8", "--repeats", "1", "--max-new-tokens", "6"]
    )
    assert done.exit_code == 0, done.output
    assert "early exit after n of" in done.output and "untrained exit" in done.output
    refused = CliRunner().invoke(app, ["bench", "-c", "tiny-random", "--prompts", "x.jsonl"])
    assert refused.exit_code == 2
