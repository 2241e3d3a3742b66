from __future__ import annotations

import pytest
import torch
from torch import nn

from cascli.models.few_rows import MOST_ROWS, FewRowsLinear, use_few_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 20])
def test_equals_the_stock_layer(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40, bias=bias)
    x = torch.randn(1, rows, 96)
    wanted = layer(x)
    use_few_rows(layer)
    assert type(layer) is FewRowsLinear
    assert torch.allclose(layer(x), wanted, atol=1e-6)
    assert layer(x).shape == wanted.shape


@pytest.mark.parametrize("shape", [(96, 40), (1536, 256), (256, 1536)])
def test_rows_do_not_depend_on_their_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape)
    use_few_rows(layer)
    x = torch.randn(MOST_ROWS, shape[0])
    alone = [layer(x[i : i + 1])[0] for i in range(MOST_ROWS)]
    for n in range(1, MOST_ROWS + 1):
        for start in range(MOST_ROWS - n + 1):
            block = layer(x[start : start + n])
            assert all(torch.equal(block[j], alone[start + j]) for j in range(n))


def test_only_plain_layers_are_switched_and_weights_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    places = [parameter.data_ptr() for parameter in model.parameters()]
    use_few_rows(model)
    assert [type(layer).__name__ for layer in (model[0], model[1], model[2][0])] == [
        "FewRowsLinear",
        "ReLU",
        "FewRowsLinear",
    ]
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
