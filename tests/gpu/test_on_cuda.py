"""What only a GPU can show: recorded steps compared with eager ones, and the laws on the device."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from typer.testing import CliRunner

from cascli import generate, kernels, load_pair
from cascli.cli.app import app
from cascli.errors import PairWarning
from cascli.models.batch.lanes import Lanes
from cascli.models.calls import Calls
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.merged import FAMILIES
from tests.laws.of_recorded import CASES, DEEP, MIDDLE, SHAPE, alarms
from tests.pairs import ARCHITECTURES, answers_of_many_kinds, of_ids, pair
from tests.reference.process import Target

AUDITED = (
    "speculative:k=3",
    "speculative:k=3,verify=block",
    *(f"speculative-cascade:rule={rule},alpha=0.3,k=3" for rule in ("opt", "token-v3", "head")),
)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_recorded_steps_equal_eager_ones(name: str, dtype: str, bound: float) -> None:
    config = pair(**ARCHITECTURES[name])
    plain = load_pair(config, dtype=dtype, device="cuda", cuda_graphs=False).target.runner
    taped = load_pair(config, dtype=dtype, device="cuda").target.runner
    assert isinstance(taped, GraphRunner) and (taped.unfused_because is None) is (name in FAMILIES)
    rng = random.Random(0)
    text = torch.randint(0, plain.vocab, (250,), generator=torch.Generator().manual_seed(0)).cuda()
    taped.prepare(20, 230, Calls(reads=[(n, n) for n in range(6, 0, -1)]))
    plain.forward(text[:20], 1), taped.forward(text[:20], 1)
    for n in [1, 2, 3, 4, 5, 6] * 6:
        start = rng.randint(max(plain.length - 7, 20), plain.length)
        plain.truncate(start), taped.truncate(start)
        wanted, found = (runner.forward(text[start : start + n], n).float() for runner in (plain, taped))
        difference = (found - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
        assert float(difference) < bound, (n, start)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_strategies_agree_with_and_without_graphs(name: str) -> None:
    config = pair(**ARCHITECTURES[name])
    found = []
    for graphs in (True, False):
        loaded = load_pair(config, dtype="float32", device="cuda", cuda_graphs=graphs)
        for strategy in ("target", "speculative:k=3", "speculative:draft=early-exit,layers=1,k=3"):
            run = generate(loaded, prompt_ids=[5] * 9, strategy=strategy, temperature=0.0, max_new_tokens=32)
            found.append(run.token_ids)
    assert all(each == found[0] for each in found)


def test_dropped_graphs_leave_others_intact() -> None:
    """Dropping graphs must not free memory pools and workspaces that live graphs use: see CudaCapture."""
    config, texts = pair(max_position_embeddings=4096), []
    for graphs in (True, False):
        loaded = load_pair(config, dtype="float32", device="cuda", cuda_graphs=graphs)
        if loaded.graphs.captures:
            loaded.graphs._most = 7
        texts.append(answers_of_many_kinds(loaded))
    assert texts[0] == texts[1]


def test_the_laws_hold_on_the_device() -> None:
    """One strategy per kind of kernel; an audit of all of them is a separate command and takes minutes."""
    chosen = [flag for each in AUDITED for flag in ("-s", each)]
    run = CliRunner().invoke(app, ["verify", "-c", "tiny-random", "--quick", "--device", "cuda", *chosen])
    assert run.exit_code == 0, run.output


@pytest.mark.parametrize(("strategy", "rule", "sampling"), CASES, ids=[case[0] for case in CASES])
def test_recorded_rounds_follow_their_law(strategy: str, rule: Target, sampling: dict) -> None:
    loaded = load_pair(pair(5, **SHAPE), dtype="float32", device="cuda")
    assert isinstance(loaded.target.runner, GraphRunner)
    assert alarms(loaded, strategy, rule, sampling, 1500) == []


@pytest.mark.parametrize(("strategy", "rule", "sampling"), DEEP, ids=[case[0] for case in DEEP])
def test_five_tokens_of_captured_rounds_follow_their_law(strategy: str, rule: Target, sampling: dict) -> None:
    """The third test of a round once read another test's number: see tests/kernels/test_law_in_decoding."""
    loaded = load_pair(pair(3, **MIDDLE), dtype="float32", device="cuda")
    assert loaded.graphs.captures
    assert alarms(loaded, strategy, rule, sampling, 2000, length=5) == []


@pytest.mark.parametrize(("strategy", "rule", "sampling"), DEEP, ids=[case[0] for case in DEEP])
def test_five_tokens_without_graphs_follow_their_law(strategy: str, rule: Target, sampling: dict) -> None:
    """Fewer runs, as each takes ten times as long; a hundred would be enough to show the bug."""
    loaded = load_pair(pair(3, **MIDDLE), dtype="float32", device="cuda", cuda_graphs=False)
    assert not loaded.graphs.captures
    assert alarms(loaded, strategy, rule, sampling, 1000, length=5) == []


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (pair(12, **MIDDLE), {}),
        (pair(12, **MIDDLE), {"top_k": 8, "top_p": 0.9}),
        (of_ids(151_665, **SHAPE), {"top_k": 5000, "top_p": 0.9}),  # where a sort inside a capture would show
    ],
    ids=["all tokens", "truncated", "a whole vocabulary"],
)
@pytest.mark.parametrize("strategy", ["speculative:k=4", "speculative-cascade:rule=token-v3,alpha=0.3,k=5"])
def test_texts_are_the_same_with_and_without_graphs_and_kernels(
    strategy: str, config: dict, sampling: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third test of a round once read another test's number: see tests/kernels/test_law_in_decoding."""
    texts = []
    for graphs, with_kernels in ((True, True), (False, True), (False, False)):
        if not with_kernels:
            monkeypatch.setattr("cascli.kernels.serve", lambda _: False)
        loaded = load_pair(config, dtype="float32", device="cuda", cuda_graphs=graphs)
        assert loaded.vocab == config["target"]["source"]["random"]["vocab_size"]
        ask = {"prompt_ids": [1, 2], "strategy": strategy, "max_new_tokens": 7, "temperature": 1.0, **sampling}
        texts.append([generate(loaded, seed=seed, **ask).token_ids for seed in range(30)])
    for other in texts[1:]:
        same = sum(a == b for a, b in zip(texts[0], other, strict=True))
        assert same >= 29, same  # a draw at the very edge of a token's interval may fall on the other side


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_compiled_steps_write_the_same(name: str) -> None:
    config = pair(**ARCHITECTURES[name])
    texts = []
    for compiled in (False, True):
        loaded = load_pair(config, dtype="float32", device="cuda", compile=compiled)
        run = generate(loaded, prompt_ids=[5] * 9, strategy="speculative:k=3", temperature=0.0, max_new_tokens=32)
        assert loaded.target.info.compiled is compiled and loaded.target.info.cuda_graphs
        texts.append(run.token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_equal_transformers(name: str) -> None:
    loaded = load_pair(pair(**ARCHITECTURES[name]), dtype="float32", device="cuda")
    run = generate(loaded, prompt_ids=[5] * 9, strategy="speculative:k=3", temperature=0.0, max_new_tokens=32)
    ids = torch.tensor([[5] * 9], device="cuda")
    model = loaded.target.model
    model.set_attn_implementation("eager")
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32, pad_token_id=0
    )
    assert run.token_ids == wanted[0, 9:].tolist()


@pytest.mark.parametrize("sampling", [{}, {"top_k": 20, "top_p": 0.9}], ids=["all tokens", "truncated"])
@pytest.mark.parametrize("graphs", [True, False], ids=["captured", "eager"])
def test_one_transfer_a_round(graphs: bool, sampling: dict) -> None:
    loaded = load_pair(pair(), dtype="float32", device="cuda", cuda_graphs=graphs)
    ask = {"prompt_ids": [5] * 9, "strategy": "speculative:k=3", "max_new_tokens": 32, "temperature": 1.0, **sampling}
    generate(loaded, **ask)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = generate(loaded, **ask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "synchroniz" in str(each.message)]
    at_the_ends = 6  # uploads of the prompt and the uniforms; the clock's start and end
    assert len(waits) <= len(run.rounds) + at_the_ends


def test_kernels_and_steps_pass_their_self_test() -> None:
    """Otherwise a run would quietly measure torch's operations; other tests ask each model for its reasons."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        loaded = load_pair(of_ids(151_665, **SHAPE), dtype="bfloat16", device="cuda")
        assert not Lanes(loaded, 2).alone_because  # a warning says what passes over several texts fail at
    assert kernels.missing(loaded.device) is None
    assert all(each.eager_because is None and each.unfused_because is None for each in loaded.models.values())
