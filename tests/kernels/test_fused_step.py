"""The fused step compared with transformers' module: every family, every block, after rewinds, with windows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cascli import generate, load_pair
from cascli.models.calls import Calls, Write
from cascli.models.choose_runner import choose_runner
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.merged import FAMILIES
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.pairs import ARCHITECTURES, pair
from tests.tape import TapeCapture

VOCAB = 48
"""Small, like all sizes here: the interpreter takes 2 ms per program."""
FUSED: dict[str, dict[str, Any]] = {name: dict(shape) for name, shape in ARCHITECTURES.items() if name in FAMILIES}
FUSED["gemma2"] |= {"num_hidden_layers": 2, "query_pre_attn_scalar": 24}
FUSED["gemma3_text"] |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
FUSED["gemma"] = {"model_type": "gemma", "head_dim": 16}
FUSED["llama with biases"] = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}
FUSED["llama of odd sizes"] = {"hidden_size": 48, "intermediate_size": 40, "head_dim": 24, "num_attention_heads": 3}
EPSILON = {"rms_norm_eps": 0.05}
"""Larger than any real model's: with realistic values, a wrong epsilon would not show."""


def model(name: str, where: torch.device, dtype: torch.dtype, **more: Any) -> Any:
    """A model of torch's own layers, with random norms and biases as after training; new ones are all equal."""
    made = load_pair(
        {"target": pair(VOCAB, **FUSED[name] | EPSILON | more)["target"]},
        dtype="float32",
        device=where.type,
        cuda_graphs=False,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in made.target.model.parameters():
            if each.dim() == 1:
                each.add_(0.3 * torch.randn(each.shape, generator=generator).to(each))
    return made.target.model.to(torch.bfloat16).to(dtype)


def runners(
    name: str, where: torch.device, dtype: torch.dtype = torch.float32, *, captured: bool = True, **more: Any
) -> tuple[EagerRunner, GraphRunner]:
    """Transformers' own steps and the fused ones; capturing them takes the interpreter twice as long."""
    device = torch.device(where.type, 0) if where.type == "cuda" else where
    capture = None if captured and where.type == "cuda" else TapeCapture() if captured else Uncaptured()
    fused, why = choose_runner(model(name, where, dtype, **more), VOCAB - 3, device, graphs=True, capture=capture)
    assert isinstance(fused, GraphRunner) and why is None and fused.unfused_because is None
    return EagerRunner(model(name, where, dtype, **more), VOCAB - 3, device), fused


BOTH_KINDS = ("qwen2", "gemma3_text")
"""Together they have biases, norms of heads and of sublayers, an offset, windows, and both activations."""


@pytest.fixture(autouse=True)
def kernels(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr("cascli.kernels.attention._MOST_PARTS", 2)
    if where.type != "cuda":  # these tests compare more, and the interpreter takes seconds for the self-test
        monkeypatch.setattr("cascli.models.gpu.self_test.StepTest.failure", lambda *_: None)


@pytest.mark.parametrize("name", FUSED)
def test_steps_equal_transformers(name: str, where: torch.device) -> None:
    """Blocks of one to nine tokens, returning all rows or the last, after rewinds; texts longer than windows."""
    plain, fused = runners(name, where)
    text = torch.randint(0, plain.vocab, (100,), generator=torch.Generator().manual_seed(0)).to(where)
    blocks = [(1, 1), (3, 3), (5, 1), (9, 9)]
    fused.prepare(20, 80, Calls(reads=blocks))
    plain.forward(text[:20], 1), fused.forward(text[:20], 1)
    rng = random.Random(0)
    for n, rows in blocks * 2:
        start = rng.randint(max(plain.length - 4, 20), plain.length)
        plain.truncate(start), fused.truncate(start)
        wanted, found = (runner.forward(text[start : start + n], rows) for runner in (plain, fused))
        assert found.shape == (rows, plain.vocab)
        bound = 1e-3 if where.type == "cuda" else 1e-4  # caps use a GPU's approximate exponentials
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


@pytest.mark.usefixtures("sound_products")
@pytest.mark.parametrize(("name", "dtype"), [*zip(BOTH_KINDS, (torch.bfloat16, torch.float32), strict=True)])
def test_a_token_has_the_same_bits_in_any_block(name: str, dtype: torch.dtype, where: torch.device) -> None:
    _, fused = runners(name, where, dtype, captured=False, head_dim=64)  # smallest width with this guarantee on a GPU
    text = torch.randint(0, fused.vocab, (40,), generator=torch.Generator().manual_seed(0)).to(where)
    fused.prepare(20, 20, Calls(reads=[(n, n) for n in (9, 5, 3, 1)]))
    fused.forward(text[:20], 1)
    whole = fused.forward(text[20:29], 9).clone()
    fused.truncate(20)
    for start, n in ((20, 3), (23, 5), (28, 1)):  # after states that other blocks have written
        assert torch.equal(fused.forward(text[start : start + n], n), whole[start - 20 :][:n]), n


@pytest.mark.usefixtures("sound_products")
@pytest.mark.parametrize("name", FUSED)
def test_half_precision_errs_no_more_than_transformers_does(name: str, where: torch.device) -> None:
    """Errors relative to the same weights in float32, over the tokens of a text."""
    exact = runners(name, where)[0]
    text = torch.randint(0, exact.vocab, (40,), generator=torch.Generator().manual_seed(0)).to(where)
    wanted, theirs, mine = [], [], []
    for runner, found in zip(
        (exact, *runners(name, where, torch.bfloat16, captured=False)), (wanted, theirs, mine), strict=True
    ):
        runner.prepare(20, 20, Calls(reads=[(4, 4)]))
        runner.forward(text[:20], 1)
        found += [runner.forward(text[i : i + 4], 4).float() for i in range(20, 32, 4)]
    errors = [torch.cat(each).sub(torch.cat(wanted)).norm() for each in (theirs, mine)]
    assert errors[1] < 1.3 * errors[0] < 0.3 * torch.cat(wanted).norm()


def test_a_captured_draft_equals_single_steps(where: torch.device) -> None:
    """Whole drafts in one graph, which advance their write position, and others token by token, with rewinds."""
    plain, fused = runners("qwen3", where)
    sampler, generator = Sampler(Sampling(), reads_base=True), torch.Generator().manual_seed(0)
    writes = [Write(1, 3, True), Write(2, 2), Write(1, 1)]
    text = torch.randint(0, plain.vocab, (60,), generator=generator).to(where)
    fused.prepare(20, 40, Calls(writes=writes), sampler)
    plain.forward(text[:20], 1), fused.forward(text[:20], 1)
    for unread, drawn, read_last in [*writes, Write(2, 0, True)]:
        for runner in (plain, fused):
            runner.truncate(20)
        u = torch.rand(drawn, generator=generator, dtype=torch.float64).to(where)
        wanted, found = (each.write(text[20 : 20 + unread], sampler, u, read_last=read_last) for each in (plain, fused))
        assert found.tokens.tolist() == wanted.tokens.tolist()
        torch.testing.assert_close(found.probs, wanted.probs, rtol=1e-4, atol=1e-5)


def test_a_text_may_outgrow_the_cache(where: torch.device) -> None:
    """Angles exist for as many positions as the cache has; a second text has its own cache and angles."""
    plain, fused = runners("llama", where)
    text = torch.arange(270, device=where) % plain.vocab
    for before in (20, 258):  # the cache grows at 256
        fused.prepare(before, 6, Calls(reads=[(2, 2)]))
        plain.reset()
        for runner in (plain, fused):
            runner.forward(text[:before], 1)
        wanted, found = (runner.forward(text[before : before + 2], 2) for runner in (plain, fused))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    other = fused.fresh()
    other.prepare(before, 6, Calls(reads=[(2, 2)]))
    other.forward(text[:before], 1)
    assert other.unfused_because is None and torch.equal(other.forward(text[before : before + 2], 2), found)


def test_strategies_write_the_same_with_fused_steps(where: torch.device) -> None:
    """A pair as loaded where kernels exist, including drafts and verification."""
    texts = []
    for fused in (False, True):
        loaded = load_pair(pair(VOCAB), dtype="float32", device=where.type, cuda_graphs=False)
        for each in (loaded.draft, loaded.target):
            capture = TapeCapture() if where.type == "cpu" else None
            if fused:
                each.runner, _ = choose_runner(each.model, VOCAB, each.device, graphs=True, capture=capture)
                assert each.unfused_because is None
        texts.append(generate(loaded, prompt_ids=[5, 6, 7], strategy="speculative:k=2", max_new_tokens=4).token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", BOTH_KINDS)
def test_a_layer_is_eight_launches(name: str, where: torch.device) -> None:
    """A step has two more, for the first norm and the logits; torch adds the embedding, which Gemma scales."""
    _, fused = runners(name, where)
    fused.prepare(9, 9, Calls(reads=[(3, 3)]))
    launches = []
    launcher = "interpreter.GridExecutor.__call__" if where.type == "cpu" else "jit.JITFunction.run"
    with Operations() as torchs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"triton.runtime.{launcher}", lambda *_, **__: launches.append(1))
        fused._forward(fused._ids[:3], 3)
    assert len(launches) == 8 * fused.model.config.num_hidden_layers + 2
    assert torchs.names == ["embedding"] + ["mul"] * name.startswith("gemma")


class Operations(TorchDispatchMode):
    """Names of torch operations that launch kernels: no views, and no plain allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and "empty" not in name and name not in ("_unsafe_view", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
