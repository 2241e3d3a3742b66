"""What fails its self-test on a GPU is not used: bugs planted as another card or version might have them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cascli import kernels, load_pair
from cascli.errors import RunError
from cascli.models.calls import Calls
from cascli.models.choose_runner import choose_runner
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu import decode_attention, graph_runner, self_test
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.self_test import StepTest, check_kernels
from cascli.models.gpu.static_cache import StaticCache
from cascli.models.runner import Runner
from tests.pairs import ARCHITECTURES, pair
from tests.tape import TapeCapture

VOCAB = 48
SHARP = {"initializer_range": 0.15}
"""With the small weights of a new model, attention hardly changes logits, and an error in it hides in rounding."""


def model(name: str, where: torch.device, dtype: str = "float32", **values: Any) -> Any:
    shape = ARCHITECTURES[name] | SHARP | values
    loaded = load_pair(pair(VOCAB, **shape), dtype="float32", device=where.type, cuda_graphs=False)
    return loaded.target.model.to(getattr(torch, dtype))


def chosen(module: Any, where: torch.device) -> tuple[Any, str | None]:
    capture = None if where.type == "cuda" else TapeCapture()
    device = torch.device("cuda", 0) if where.type == "cuda" else where
    return choose_runner(module, VOCAB - 3, device, graphs=True, capture=capture)


def logits(runner: Any, where: torch.device) -> Tensor:
    text = torch.arange(20, device=where) * 7 % runner.vocab
    runner.prepare(12, 8, Calls(reads=[(4, 4)]))
    runner.forward(text[:12], 1)
    return runner.forward(text[12:16], 4).clone()


@pytest.fixture(autouse=True)
def served(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    if where.type != "cuda":  # the interpreter takes milliseconds for a row of a kernel
        monkeypatch.setattr(self_test, "PROMPT", 12)


@pytest.fixture
def withdrawn(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, str]:
    """Why kernels were withdrawn, by device; they serve the CPU too, through Triton's interpreter."""
    reasons: dict[torch.device, str] = {}
    monkeypatch.setattr("cascli.kernels._withdrawn", reasons)
    monkeypatch.setattr("cascli.kernels.missing", reasons.get)
    return reasons


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Replace a function of a kernel module by `change(function, *args, **named)`."""
    module, _, function = f"cascli.kernels.{name}".rpartition(".")
    stock = getattr(__import__(module, fromlist=[function]), function)
    monkeypatch.setattr(f"{module}.{function}", lambda *args, **named: change(stock, *args, **named))


def next_position(rotate: Any, states: Tensor, cos: Tensor, sin: Tensor, at: Tensor, *more: Any) -> Tensor:
    """Rotates each token as the next one; the written place stays right."""
    return rotate(states, cos.roll(-1, 0), sin.roll(-1, 0), at, *more)


def without_bias(product: Any, x: Tensor, weight: Tensor, bias: Tensor | None, **more: Any) -> Tensor:
    return product(x, weight, None, **more)


def no_compiler(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("PassManager::run failed")


BUGS = {
    "a bias is forgotten": ("products.product", without_bias, "logits differ from those of the model's own layers by"),
    "a kernel does not compile": ("products.product", no_compiler, "RuntimeError: PassManager::run failed"),
    "NaN": (
        "norms.add_norm",
        lambda norm, *args: tuple(each * torch.nan for each in norm(*args)),
        "their logits are not numbers",
    ),
    "the rotary angle is the next token's": ("rotation.rotate_and_store", next_position, "layers by"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_fused_steps_that_fail_are_replaced_by_captured_layers(
    bug: str, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, change, why = BUGS[bug]
    module = model("qwen2", where)
    with torch.no_grad():
        for key, each in module.named_parameters():
            if key.endswith("bias"):
                each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(0)).to(each))
    expected = logits(EagerRunner(module, VOCAB - 3, where), where)
    replaced(monkeypatch, name, change)
    runner, graphless = chosen(module, where)
    assert isinstance(runner, GraphRunner) and graphless is None
    assert runner.unfused_because is not None and runner.unfused_because.startswith(
        "fused steps failed their self-test"
    )
    assert why in runner.unfused_because
    torch.testing.assert_close(logits(runner, where), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qwen2", "float32"), ("gemma3_text", "float32"), ("gpt_neox", "float32"), ("gpt_neox", "bfloat16")],
)
def test_captured_steps_that_fail_are_replaced_by_the_untouched_model(
    name: str, dtype: str, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "gpt_neox":  # without fused layers, a prompt longer than any block is read in little time
        monkeypatch.setattr(self_test, "PROMPT", 80)
    module = model(name, where, dtype)
    before = {key: type(each) for key, each in module.named_modules()}
    attention = module.config._attn_implementation
    expected = logits(EagerRunner(module, VOCAB - 3, where), where)
    place = StaticCache.place

    def displaced(cache: StaticCache, n: int) -> Tensor:
        """Reads positions off by one after the first block, as if a captured length were stale."""
        positions = place(cache, n)
        return positions + (cache.at > 0)

    monkeypatch.setattr(StaticCache, "place", displaced)
    replaced(monkeypatch, "rotation.rotate_and_store", next_position)
    runner, why = chosen(module, where)
    assert isinstance(runner, EagerRunner)
    assert why is not None and why.startswith(
        "steps with cascli's attention failed their self-test: their logits differ"
    )
    assert {key: type(each) for key, each in module.named_modules()} == before
    assert not any("forward" in vars(each) for each in module.modules())
    assert module.config._attn_implementation == attention
    assert torch.equal(logits(runner, where), expected)


KEYS = 32
"""Keys per block of attention in float32."""


def attends_to_few(attend: Any, query: Tensor, key: Tensor, value: Tensor, at: Tensor, **how: Any) -> Tensor:
    """Forgets all blocks of keys but the first of each of two parts."""
    return attend(query, key, value, at.clamp(max=2 * KEYS - query.shape[-2]), **how)


def without_window(attend: Any, query: Tensor, key: Tensor, value: Tensor, at: Tensor, **how: Any) -> Tensor:
    """Forgets what makes a difference only where a text is longer than a window."""
    return attend(query, key, value, at, **how | {"window": 0})


def in_layers(bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug of the kernel where a model's own layers attend."""
    stock = decode_attention.decode_attention

    def changed(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **more: Any) -> Any:
        def attend(query: Tensor, key: Tensor, value: Tensor, at: Tensor, window: int) -> Any:
            return stock(module, query, key, value, at.expand(window) if window else at, **more)

        if mask.dim() > 1:
            return stock(module, query, key, value, mask, **more)
        at, window = (mask[0], mask.shape[0]) if mask.dim() else (mask, 0)
        return bug(attend, query, key, value, at, window=window)

    monkeypatch.setattr(decode_attention, "decode_attention", changed)


@pytest.mark.parametrize(
    ("name", "bug", "window"),
    [("gpt_neox", attends_to_few, None), ("mistral", without_window, 30), ("gemma3_text", without_window, 30)],
)
def test_errors_that_begin_far_into_a_text_are_found(
    name: str, bug: Callable[..., Any], window: int | None, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the long text alone, which attention without errors passes."""
    monkeypatch.setattr(self_test, "BEYOND", 10)
    module = model(name, where, **{} if window is None else {"sliding_window": window})
    long = {"WIDEST": window} if window else {"LONG": 3 * KEYS}
    for changed, longs, fails in [(True, {}, False), (False, long, False), (True, long, True)]:
        with monkeypatch.context() as planted:
            for constant, length in longs.items():
                planted.setattr(self_test, constant, length)
            test = StepTest(module, VOCAB - 3, where)
            if changed:
                in_layers(bug, planted)
            wrong = test.failure(GraphRunner(module, VOCAB - 3, where, Uncaptured()))
            module.set_attn_implementation("sdpa")
        assert (wrong is not None) is fails, (changed, longs, wrong)
        assert wrong is None or wrong.startswith(f"their logits after {3 * KEYS if window is None else 40} tokens")


def test_attention_of_fused_steps_is_tested_far_into_a_text(
    where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "LONG", 3 * KEYS)
    replaced(monkeypatch, "attention.attend", attends_to_few)
    runner, why = chosen(model("llama", where), where)
    assert isinstance(runner, GraphRunner) and why is None
    assert runner.unfused_because is not None and f"their logits after {3 * KEYS} tokens" in runner.unfused_because


def test_long_texts_are_left_out_where_memory_does_not_suffice(
    where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "LONG", 40)
    module = model("gpt_neox", where)
    test = StepTest(module, VOCAB - 3, where)
    runner = GraphRunner(module, VOCAB - 3, where, Uncaptured())
    reserve = runner._reserve

    def full(length: int) -> None:
        if length > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        reserve(length)

    monkeypatch.setattr(runner, "_reserve", full)
    assert test.failure(runner) is None and runner.length == 0


@pytest.mark.parametrize("guilty", [True, False])
def test_steps_that_fail_only_with_early_launches_do_without_them(
    guilty: bool, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they fail without them too, the next simpler steps are tried with them, as they are faster."""
    early = pytest.importorskip("cascli.kernels.early")
    tests: list[bool] = []

    def failure(_: StepTest, runner: Runner) -> str | None:
        assert isinstance(runner, GraphRunner)
        tests.append(early.used(where))
        return "RuntimeError: invalid resource handle" if tests[-1] or not guilty else None

    monkeypatch.setattr(early, "_off", set())
    monkeypatch.setattr(early, "used", cache(lambda device: device not in early._off))
    monkeypatch.setattr(StepTest, "failure", failure)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        runner, why = chosen(model("gpt_neox", where), where)
    said = [str(note.message) for note in notes if "programmatic dependent launch" in str(note.message)]
    assert tests == [True, False]
    assert isinstance(runner, GraphRunner if guilty else EagerRunner) and (why is None) is guilty
    assert early.used(where) is not guilty and len(said) == guilty
    assert not guilty or said[0].endswith(
        "with which steps failed their self-test: RuntimeError: invalid resource handle"
    )


@pytest.mark.parametrize(("value", "used"), [("0", False), ("", True)])
def test_a_variable_switches_early_launches_off(value: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    early = pytest.importorskip("cascli.kernels.early")
    monkeypatch.setenv("CASCLI_PDL", value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert early.used.__wrapped__(torch.device("cuda", 0)) is used
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert not early.used.__wrapped__(torch.device("cuda", 0))


def each_reads_the_first(write: Any, read: Any, ids: Tensor, sampler: Any, u: Tensor, **how: Any) -> Any:
    return write(lambda _: read(ids), ids, sampler, u, **how)


def numbers_from_the_end(write: Any, read: Any, ids: Tensor, sampler: Any, u: Tensor, **how: Any) -> Any:
    return write(read, ids, sampler, u.flip(0), **how)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (each_reads_the_first, "the logits of their drafts differ from those of the model's own layers by"),
        (numbers_from_the_end, "their drafts are not drawn from their distributions"),
    ],
)
def test_captured_drafts_that_fail_are_not_used(
    change: Callable[..., Any], why: str, where: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = graph_runner.write_by_steps
    monkeypatch.setattr(graph_runner, "write_by_steps", lambda *args, **how: change(write, *args, **how))
    runner, found = chosen(model("gpt_neox", where), where)
    assert isinstance(runner, EagerRunner) and found is not None
    assert found.startswith(f"steps with cascli's attention failed their self-test: {why}")


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2"])
@pytest.mark.parametrize("dtype_", ["bfloat16", "float16", "float32"])
def test_sound_steps_pass_in_every_precision(name: str, dtype_: str, where: torch.device) -> None:
    """Models without fused layers, whose steps need no products that the interpreter lacks."""
    runner, why = chosen(model(name, where, dtype_), where)
    assert isinstance(runner, GraphRunner) and why is None


@pytest.mark.parametrize("scale", [40.0, 1000.0, torch.inf])
@pytest.mark.parametrize("dtype_", ["bfloat16", "float32"])
def test_sound_steps_pass_whatever_the_size_of_logits(scale: float, dtype_: str, where: torch.device) -> None:
    """Where the model's own layers overflow, there is nothing to compare with, and steps are used as they are."""
    module = model("gpt_neox", where, dtype_)
    with torch.no_grad():
        head = module.get_output_embeddings().weight
        if scale == torch.inf:
            head[3] = scale
        else:
            head.mul_(scale)
    runner, why = chosen(module, where)
    assert isinstance(runner, GraphRunner) and why is None


@pytest.mark.parametrize(("vocab", "rows"), [(5, None), (700, 704)])
def test_sound_kernels_pass(
    vocab: int,
    rows: int | None,
    where: torch.device,
    dtype: torch.dtype,
    withdrawn: dict[Any, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if where.type != "cuda":  # the interpreter takes seconds for a round
        monkeypatch.setattr(self_test, "SEEDS", 1)
    assert check_kernels(where, vocab, dtype, rows) is None and not withdrawn


def swapped(verify: Any, *given: Any, **how: Any) -> Tensor:
    """The first GPU bug of this project: tests read numbers that belong to something else."""
    *rest, u_accept, u_next = given
    return verify(*rest, u_next[: len(u_accept)], u_next, **how)


def at_another_temperature(draw: Any, logits: Tensor, temperature: float, **how: Any) -> Any:
    return draw(logits, temperature * 1.01, **how)


def from_other_numbers(draw: Any, logits: Tensor, u: Tensor, **how: Any) -> Any:
    return draw(logits, u=u.flip(0), **how)


def of_rows_in_a_row(draw: Any, logits: Tensor, **how: Any) -> Any:
    """Reads logits as if there were none between those of two rows."""
    return draw(logits.as_strided(logits.shape, (logits.shape[1], 1)), **how)


def first_token_of_none(draw: Any, logits: Tensor, *, with_base: bool, **how: Any) -> Any:
    tokens, *more = draw(logits, with_base=with_base, **how)
    return tokens if with_base else torch.zeros_like(tokens), *more


def least_likely(draw: Any, logits: Tensor, temperature: float, **how: Any) -> Any:
    return draw(logits if temperature else -logits, temperature=temperature, **how)


def bonus_from_the_draft(verify: Any, logits: Tensor, tokens: Tensor, q: Tensor, *more: Any, **how: Any) -> Tensor:
    numbers = verify(logits, tokens, q, *more, **how)
    row = int(numbers[8, 0])
    if row == len(tokens):
        numbers[9, 0] = q[-1].argmax()
    return numbers


BROKEN = {
    "temperature": ("draws.draw", at_another_temperature, "drafts have other distributions"),
    "numbers of a draw": ("draws.draw", from_other_numbers, "drafts are not drawn from their distributions"),
    "numbers of a test": ("verification.verify", swapped, "of 5 drafts"),
    "places of rows": ("draws.draw", of_rows_in_a_row, "drafts have other distributions"),
    "draws without a base": ("draws.draw", first_token_of_none, "drafts are not drawn from their distributions"),
    "greedy draws": ("draws.draw", least_likely, "drafts have other distributions"),
    "bonus": ("verification.verify", bonus_from_the_draft, "the token after the kept drafts"),
    "crash": ("verification.verify", no_compiler, "PassManager::run failed"),
}


@pytest.mark.parametrize("bug", BROKEN)
def test_kernels_that_fail_are_withdrawn(
    bug: str, where: torch.device, monkeypatch: pytest.MonkeyPatch, withdrawn: dict[Any, str]
) -> None:
    name, change, why = BROKEN[bug]
    replaced(monkeypatch, name, change)
    found = check_kernels(where, 700, torch.float32, 703)
    assert found is not None and found.startswith("their self-test failed: ") and why in found
    assert withdrawn == {where: found}


def test_a_device_that_stopped_ends_the_command_with_the_way_out(
    where: torch.device, monkeypatch: pytest.MonkeyPatch, withdrawn: dict[Any, str]
) -> None:
    def stopped(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    replaced(monkeypatch, "draws.draw", stopped)
    monkeypatch.setattr(self_test.torch, "zeros", stopped)
    with pytest.raises(RunError, match=r"illegal memory access was encountered\nCASCLI_KERNELS=0 runs without"):
        check_kernels(where, 700, torch.float32)


def test_too_little_memory_is_not_a_failed_test(
    where: torch.device, monkeypatch: pytest.MonkeyPatch, withdrawn: dict[Any, str]
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    replaced(monkeypatch, "draws.draw", full)
    with pytest.raises(torch.OutOfMemoryError):
        check_kernels(where, 700, torch.float32)
    assert not withdrawn


@pytest.mark.parametrize(("value", "why"), [("0", "CASCLI_KERNELS switches them off"), ("", None)])
def test_a_variable_switches_kernels_off(value: str, why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCLI_KERNELS", value)
    found = kernels._not_launched.__wrapped__()
    assert found == why if why or torch.cuda.is_available() else found and "CASCLI_KERNELS" not in found
