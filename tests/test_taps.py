"""Hidden states between a decoder's layers equal those of transformers, for every token, with a cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cascli import load_pair
from cascli.errors import RunError, UsageError
from cascli.models.taps import decoder_layers, tapped
from tests.pairs import ARCHITECTURES, pair


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_taps_are_the_hidden_states_of_every_token(name: str) -> None:
    target = load_pair(pair(**ARCHITECTURES[name])).target
    model, runner = target.model, target.runner
    depth = model.config.get_text_config().num_hidden_layers
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    with torch.inference_mode():
        wanted = model(input_ids=ids.unsqueeze(0), output_hidden_states=True).hidden_states
    runner.begin(ids[:4])
    with tapped(model, range(1, depth + 1)) as hidden:
        runner.forward(ids[3:], 1)
    assert [*hidden] == [*range(1, depth + 1)]
    for n in range(1, depth):
        assert torch.allclose(hidden[n], wanted[n][0, 3:], atol=1e-5)
    assert hidden[depth].shape == hidden[1].shape
    runner.forward(ids[:1], 1)  # no longer tapped
    assert hidden[1].shape[0] == 5


def test_layers_out_of_range_are_refused() -> None:
    model = load_pair("tiny-random").target.model
    depth = len(decoder_layers(model))
    for n in (0, depth + 1):
        with pytest.raises(UsageError, match=f"layers={n}: the model has {depth} layers"), tapped(model, [n]):
            pass


def test_a_model_without_a_layer_list_is_an_error() -> None:
    model = load_pair("tiny-random").target.model
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(RunError, match="'llama' has no list of its"):
        decoder_layers(model)
