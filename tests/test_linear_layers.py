from __future__ import annotations

import copy
import platform
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from cascli import load_pair
from cascli.errors import RunError
from cascli.models.cpu import packed_linear
from cascli.models.cpu.fit import WideEmbedding
from cascli.models.cpu.int8_kernels import (
    KERNELS,
    FbgemmWeights,
    Int8Weights,
    OneDnnWeights,
    SignedOneDnnWeights,
    int8_kernel,
    is_exact,
)
from cascli.models.cpu.int8_linear import Int8Linear, SharedDigits, to_levels
from cascli.models.cpu.packed_linear import DenseLinear, PackedLinear, can_pack
from tests.pairs import ARCHITECTURES, EVERY_ARCHITECTURE, float32_by_rows, pair, stored_alone, torch_version

MOST = 15
EXACT_KERNELS = [kernel for kernel in KERNELS if kernel.is_available() and is_exact(kernel)]
DTYPES = [torch.float32, *([torch.bfloat16] if can_pack(torch.bfloat16) else [])]


def layers(shape: tuple[int, int], bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(0)
    stock = nn.Linear(*shape, bias=bias, dtype=dtype)
    return stock, PackedLinear(stock.weight, stock.bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 5, 9, 40])
def test_packed_equals_the_stock_layer(bias: bool, rows: int, dtype: torch.dtype) -> None:
    stock, packed = layers((96, 40), bias, dtype)
    x = torch.randn(1, rows, 96, dtype=dtype)
    wanted = stock(x)
    assert torch.allclose(packed(x), wanted, atol=1e-6 if dtype == torch.float32 else 0.02)
    assert packed(x).shape == wanted.shape and packed(x).is_contiguous()
    assert torch.equal(packed.weight, stock.weight)


FLOATS = ["packed float32", "packed bfloat16", "dense float32", "dense bfloat16"]


@pytest.mark.parametrize("kind", [*FLOATS, *EXACT_KERNELS])
@pytest.mark.parametrize("shape", [(32, 16), (96, 40), (896, 128), (1536, 256), (256, 1536), (4864, 896)])
def test_rows_do_not_depend_on_their_block(shape: tuple[int, int], kind: str | type[Int8Weights]) -> None:
    dtype = torch.bfloat16 if kind in FLOATS and kind.endswith("bfloat16") else torch.float32
    if kind in FLOATS and not can_pack(dtype):
        pytest.skip("no kernels for it here")
    if kind in FLOATS and dtype == torch.float32 and not float32_by_rows():
        pytest.skip("not promised for this processor with this torch")
    stock, layer = layers(shape, True, dtype)
    if kind not in FLOATS:
        layer = int8_layer(kind, stock)
    elif kind.startswith("dense"):
        layer = DenseLinear.of(stock.weight, stock.bias)
    # oneDNN of torch 2.11 uses another kernel for unpacked float32 with wide inputs and 11 or more rows.
    most = 10 if kind == "dense float32" and torch_version() < (2, 13) else MOST
    x = torch.randn(most, shape[0], dtype=dtype) * torch.logspace(-3, 2, most, dtype=dtype).unsqueeze(1)
    alone = [layer(x[i : i + 1])[0] for i in range(most)]
    for n in range(2, most + 1):
        for start in {0, 1, most - n} if n < most else {0}:
            block = layer(x[start : start + n])
            assert all(torch.equal(block[j], alone[start + j]) for j in range(min(n, most - start)))


@pytest.mark.parametrize("fewest", [4, 5, 6])
@pytest.mark.parametrize("shape", [(96, 40), (1536, 256), (4864, 896)])
def test_filling_up_rows_changes_no_bits(shape: tuple[int, int], fewest: int) -> None:
    if not float32_by_rows():
        pytest.skip("not promised for this processor with this torch")
    _, layer = layers(shape, True)
    x = torch.randn(8, shape[0])
    plain = [layer(x[:n]) for n in range(1, 9)]
    layer.fewest_rows = fewest
    with Products() as products:
        assert all(torch.equal(layer(x[:n]), plain[n - 1]) for n in range(1, 9))
    assert products.rows == [max(n, fewest) for n in range(1, 9)]


class Products(TorchDispatchMode):
    """Records the number of rows of every packed product."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_linear_pointwise" in str(func):
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({2: 0.36, 4: 0.24, 5: 0.22, 6: 0.22}, 5),  # as measured on one processor
        ({2: 0.130, 4: 0.121, 5: 0.121, 6: 0.125}, 2),  # on another; less than the noise
        ({2: 0.10, 4: 0.12, 5: 0.15, 6: 0.18}, 2),
    ],
)
def test_rows_are_filled_up_to_where_the_processor_is_fastest(
    times: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the target alone would be slower than it need be, and everything else would look faster."""
    noise = iter([9.0, 1.0, 1.1, 0.9, 7.0, 1.0] * 4)  # the first reads the weights; a pause now and then
    monkeypatch.setattr(packed_linear, "_seconds", lambda _, rows: times[rows] * next(noise))
    monkeypatch.setattr(packed_linear, "_SAMPLE", 2 * 40 * 96 * 4)
    monkeypatch.setattr(packed_linear, "_LEAST", 40 * 96 * 4)
    model = nn.Sequential(*(layers((96, 40), False)[1] for _ in range(3)))
    assert packed_linear.choose_rows(model) == chosen
    assert [layer.fewest_rows for layer in model] == [chosen] * 3

    real, noise = packed_linear._product, iter([1.0] * 40)

    def by_rows(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        """The bits of one shape depend on the number of rows: the head, which is the last layer and not timed."""
        return real(x, weight, *rest) + (rest[-1] if weight.shape[0] == 64 else 0)

    monkeypatch.setattr(packed_linear, "_product", by_rows)
    model.append(layers((96, 64), False)[1])
    assert packed_linear.choose_rows(model) == 2 and [layer.fewest_rows for layer in model] == [2] * 4
    monkeypatch.setattr(packed_linear, "_LEAST", 4 * 40 * 96 * 4)  # more than there is: a cache may hold it
    assert packed_linear.choose_rows(nn.Sequential(*(layers((96, 40), False)[1] for _ in range(3)))) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int) -> None:
    _, layer = layers((1536, 256), True)
    x = torch.randn(5, 1536, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    wanted = layer(x)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(layer(x), wanted)
    finally:
        torch.set_num_threads(1)


def int8_layer(kernel: type[Int8Weights], stock: nn.Linear) -> Int8Linear:
    return Int8Linear(kernel.of(*to_levels(stock.weight.detach())), stock.bias.detach())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FBGEMM is for x86")
def test_some_kernel_is_exact_on_any_x86_processor() -> None:
    assert FbgemmWeights in EXACT_KERNELS and int8_kernel() in EXACT_KERNELS


def test_a_kernel_that_rounds_on_the_way_is_not_exact() -> None:
    """As oneDNN does with unsigned digits on processors with AMX; also elsewhere, where it is exact."""

    class Rounding(OneDnnWeights):
        def encoded(self, digits: torch.Tensor) -> torch.Tensor:
            return digits

        def product(self, encoded: torch.Tensor) -> torch.Tensor:
            sums = (encoded + 128).double() @ self.levels.double().T
            return sums.float() - (128 * self.levels.double().sum(dim=1)).float()

        @classmethod
        def of(cls, levels: torch.Tensor, scales: torch.Tensor) -> Rounding:
            made = cls(levels.T, scales)
            made.levels = levels
            return made

    assert not is_exact(Rounding)


@pytest.mark.skipif(SignedOneDnnWeights not in EXACT_KERNELS, reason="no AMX here")
def test_with_amx_onednn_takes_signed_digits() -> None:
    assert OneDnnWeights not in EXACT_KERNELS and int8_kernel() is SignedOneDnnWeights


@pytest.mark.parametrize("kernel", EXACT_KERNELS)
def test_a_small_product_takes_no_longer_than_a_larger_one(kernel: type[Int8Weights]) -> None:
    """oneDNN multiplies signed bytes a hundred times slower up to 256 outputs, such as two rows of a key's."""
    generator = torch.Generator().manual_seed(0)
    weights = kernel.of(torch.randint(-127, 128, (128, 2048), generator=generator).to(torch.int8), torch.ones(128))

    def seconds(rows: int) -> float:
        encoded, times = weights.encoded(torch.ones(rows, 2048)), []
        for _ in range(6):
            start = time.perf_counter()
            weights.product(encoded)
            times.append(time.perf_counter() - start)
        return min(times)

    assert max(seconds(1), seconds(2)) < 10 * seconds(8)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 37, 128, 300])
@pytest.mark.parametrize("kernel", EXACT_KERNELS)
def test_small_products_are_exact_too(kernel: type[Int8Weights], outputs: int, rows: int) -> None:
    generator, most = torch.Generator().manual_seed(0), int(kernel.most)
    levels = torch.randint(-127, 128, (outputs, 100), generator=generator).to(torch.int8)
    digits = torch.randint(-most, most + 1, (rows, 100), generator=generator).float()
    weights = kernel.of(levels, torch.ones(outputs))
    assert torch.equal(weights.product(weights.encoded(digits)), digits @ levels.float().T)


@pytest.mark.parametrize("kernel", EXACT_KERNELS)
def test_products_are_exact_integer_sums(kernel: type[Int8Weights]) -> None:
    """Random sums, and the largest possible with 8960 inputs, are exact, so the order of summation does not matter."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-127, 128, (37, 8960), generator=generator).to(torch.int8)
    levels[0], levels[1] = 127, -127
    most = int(kernel.most)
    digits = torch.randint(-most, most + 1, (9, 8960), generator=generator).float()
    digits[0], digits[1] = most, -most
    weights = kernel.of(levels, torch.ones(37))
    found = weights.product(weights.encoded(digits))
    assert torch.equal(found, (digits.double() @ levels.double().T).float())


@pytest.mark.parametrize(
    ("kernel", "bound"), [(OneDnnWeights, 2e-4), (SignedOneDnnWeights, 2e-4), (FbgemmWeights, 8e-4)]
)
def test_int8_loses_only_what_rounding_its_weights_loses(kernel: type[Int8Weights], bound: float) -> None:
    """Two digits per activation leave only the weights' rounding error, even next to channels fifty times as large."""
    if kernel not in EXACT_KERNELS:
        pytest.skip("saturates on this processor")
    torch.manual_seed(0)
    stock = nn.Linear(512, 300)
    x = torch.randn(5, 512)
    x[:, ::64] *= 50
    levels, scales = to_levels(stock.weight.detach())
    rounded = levels.double() * scales.double().unsqueeze(1)
    exact = x.double() @ rounded.T + stock.bias.double()
    found = int8_layer(kernel, stock)(x)
    assert (found - exact).norm() / exact.norm() < bound
    assert (exact - stock(x)).norm() / exact.norm() < 0.01


def test_int8_levels_use_the_whole_range() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    levels, scales = to_levels(weight)
    assert levels.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert torch.allclose(levels[0] * scales[0], weight[0], atol=2 / 127 / 2)


def test_an_int8_layer_reports_its_weights_and_their_size() -> None:
    torch.manual_seed(0)
    stock = nn.Linear(40, 24)
    layer = Int8Linear.of(stock.weight, stock.bias)
    assert torch.allclose(layer.weight, stock.weight, atol=0.002)
    assert layer.weight_count == 960 and layer.weight_bytes == 960 + 96


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize(("dtype", "large"), [("float32", True), ("float32", False), ("int8", False)])
def test_every_linear_layer_is_replaced(name: str, dtype: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Int8Linear if dtype == "int8" else PackedLinear if large else DenseLinear
    if large:
        monkeypatch.setattr("cascli.models.size.LARGE", 1)
    model = load_pair(pair(300, **EVERY_ARCHITECTURE[name]), dtype=dtype).target.model
    assert any(type(module) is kind for module in model.modules())
    assert not any(type(module) in (nn.Linear, Conv1D) for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_stored_bfloat16_gives_the_logits_of_transformers_in_float32(name: str, tmp_path: Path) -> None:
    """Widening layer by layer equals loading in float32, including embeddings and constants."""
    made = load_pair(pair(257, **ARCHITECTURES[name]), dtype="bfloat16")
    stock = AutoModelForCausalLM.from_config(made.target.model.config, dtype=torch.bfloat16)
    stock.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    source = {"source": {"path": str(tmp_path / "model")}}
    ours = load_pair({"name": "stored", "draft": source, "target": source}, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.arange(20)
    with torch.inference_mode():
        wanted = theirs(ids.unsqueeze(0)).logits[0]
    assert torch.allclose(ours.target.runner.forward(ids, 20), wanted, atol=2e-5)
    if name == "llama":
        table = ours.target.model.get_input_embeddings()
        assert type(table) is WideEmbedding and table.weight.dtype == torch.bfloat16


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A pair that loads one folder twice, and a separate cache that stores even small models."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    alone = stored_alone(tmp_path / "model")
    return {"name": "stored", "draft": alone["target"], **alone}


def logits(mapping: dict, dtype: str = "int8") -> torch.Tensor:
    return load_pair(mapping, dtype=dtype).target.runner.forward(torch.arange(20), 20)


@pytest.fixture
def keeps() -> None:
    if int8_kernel() is not OneDnnWeights:
        pytest.skip("FBGEMM's packed layers cannot be kept")


@pytest.mark.usefixtures("keeps")
def test_packed_layers_are_cached_and_reused(stored: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = logits(stored)
    (file,) = (tmp_path / "home" / "packed").iterdir()
    assert file.suffix == ".safetensors"

    def refuse(*_: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr("cascli.models.cpu.int8_linear.to_levels", refuse)
    assert torch.equal(logits(stored), first)


@pytest.mark.usefixtures("keeps")
def test_a_damaged_or_foreign_file_is_not_used(stored: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = logits(stored)
    (file,) = (tmp_path / "home" / "packed").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(logits(stored), first)
    file.unlink()
    logits(stored)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    assert torch.equal(logits(stored), first)
    (other,) = (tmp_path / "home" / "packed").iterdir()
    assert other != file  # the file for the other version was deleted: it would never be used again


def test_loading_works_without_a_writable_cache(stored: dict, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    assert torch.isfinite(logits(stored)).all()


def test_the_draft_of_a_large_pair_is_int8_by_default(stored: dict) -> None:
    loaded = load_pair(stored)
    assert (loaded.draft.dtype, loaded.target.dtype) == ("int8", "float32")
    assert load_pair(stored, dtype="float32").draft.dtype == "float32"
    asked = load_pair(stored | {"draft": stored["draft"] | {"dtype": "float32"}})
    assert asked.draft.dtype == "float32"


@pytest.mark.skipif(not EXACT_KERNELS, reason="no exact int8 kernel here")
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_layers_that_read_the_same_input_compute_its_digits_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits have the same bits as if each computed its own, also after another input in the same memory."""
    model = load_pair(pair(300, **ARCHITECTURES[name]), dtype="int8").target.model
    layers = [layer for layer in model.modules() if isinstance(layer, Int8Linear)]
    kernel, computed = type(layers[0].weights), []
    encoded = kernel.encoded
    monkeypatch.setattr(kernel, "encoded", lambda *given: computed.append(1) or encoded(*given))
    ids = [torch.tensor([[5, 7, 200]]), torch.tensor([[9, 1, 3]])]
    with torch.inference_mode():
        found = [model(input_ids=each).logits for each in ids]
        followers = [layer for layer in layers if not layer.is_first]
        assert len(computed) == 2 * (len(layers) - len(followers))
        assert len(followers) == (0 if name == "gpt2" else 3 * model.config.num_hidden_layers)
        for layer in layers:
            layer.shared = None
        assert all(torch.equal(model(input_ids=each).logits, logits) for each, logits in zip(ids, found, strict=True))


@pytest.mark.skipif(not EXACT_KERNELS, reason="no exact int8 kernel here")
def test_shared_digits_are_those_of_the_input_that_is_read() -> None:
    torch.manual_seed(0)
    alone = nn.ModuleDict({name: nn.Linear(64, 32) for name in ("gate_proj", "up_proj")})
    together = copy.deepcopy(alone)
    for layers, shared in ((alone, None), (together, SharedDigits())):
        for name in ("gate_proj", "up_proj"):
            layers[name] = int8_layer(EXACT_KERNELS[0], layers[name])
            layers[name].shared, layers[name].is_first = shared, name == "gate_proj"
    x, y = torch.randn(3, 64), torch.randn(3, 64)
    with torch.inference_mode():
        for name, given in (("gate_proj", x), ("up_proj", y), ("up_proj", x), ("gate_proj", x), ("up_proj", x)):
            assert torch.equal(together[name](given), alone[name](given))
            if name == "up_proj":
                x.mul_(2)  # the next answer may lie in the same memory


def test_small_pairs_stay_float32() -> None:
    loaded = load_pair(pair(300))
    assert (loaded.draft.dtype, loaded.target.dtype) == ("float32", "float32")


class Saturating(FbgemmWeights):
    """FBGEMM without the precaution for AVX2: 8-bit digits."""

    most = 127.0
    _zero = 128

    def product(self, encoded: torch.Tensor) -> torch.Tensor:
        return super().product(encoded).clamp(-1e6, 1e6)


class Missing(FbgemmWeights):
    """An operation that is registered, but not available on this processor."""

    def product(self, encoded: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this backend")


def test_saturating_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_exact(Saturating) and not is_exact(Missing)
    monkeypatch.setattr("cascli.models.cpu.int8_linear.int8_kernel", lambda: None)
    with pytest.raises(RunError, match="no exact int8 kernels"):
        load_pair(pair(300), dtype="int8")


def test_weights_of_small_models_can_be_changed() -> None:
    loaded = load_pair(pair(300))
    model = loaded.target.model
    ids = torch.arange(5)
    before = loaded.target.runner.forward(ids, 5)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    loaded.target.runner.reset()
    assert torch.allclose(loaded.target.runner.forward(ids, 5), 2 * before, rtol=1e-5, atol=1e-5)
    model.double()
    assert model(ids.unsqueeze(0)).logits.dtype == torch.float64
