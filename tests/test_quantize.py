from __future__ import annotations

import pytest
import torch

from cascli import generate, load_pair
from cascli.models.quantize import Int8Linear
from tests.pairs import pair

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this processor has no fbgemm kernels"
)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_do_not_depend_on_their_neighbours(bias: bool) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.nn.Linear(384, 200, bias=bias))
    x = torch.randn(7, 384) * torch.tensor([1.0, 50, 0.01, 3, 1e-6, 0, 9]).unsqueeze(1)
    block = layer(x)
    for i in range(7):
        assert torch.equal(layer(x[i : i + 1])[0], block[i])


def test_close_to_the_float_layer() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, 300)
    x = torch.randn(5, 512)
    wanted, got = linear(x), Int8Linear(linear)(x)
    assert (got - wanted).norm() / wanted.norm() < 0.02


def test_int8_pair_is_lossless_against_itself() -> None:
    int8 = load_pair(pair(300), dtype="int8")
    assert int8.info.target.dtype == "int8"
    target = generate(int8, "hello", strategy="target", temperature=0, max_new_tokens=30)
    speculative = generate(int8, "hello", strategy="speculative:k=4", temperature=0, max_new_tokens=30)
    assert speculative.token_ids == target.token_ids
