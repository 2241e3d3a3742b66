"""The layers of a transformers decoder, and the hidden states between them for every token of a pass, at no cost.

`h_n`, "after the first n layers", is the input of layer n (counted from 0) and `hidden_states[n]` of a transformers
output. For a model of L layers, h_L is the input of its final norm, which transformers does not return. Hooks only run
where Python does, so a step replayed as a captured graph has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cascli.errors import RunError, UsageError


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that a token passes through, in order.

    Raises:
        RunError: the model has no list of all its layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder()
    whole = decoder if isinstance(decoder, PreTrainedModel) else model  # ModernBERT calls its head the decoder
    lists = (each for each in whole.modules() if isinstance(each, nn.ModuleList) and len(each) == depth)
    layers = next(lists, None)  # outer modules come before their parts
    if layers is None:
        raise RunError(f"model type '{model.config.model_type}' has no list of its {depth} layers to read between.")
    return layers


def hidden_of(output: Any) -> Tensor:
    """The hidden states `[1, n, width]` in a layer's output, which is a tuple for older kinds of layers."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def tapped(model: PreTrainedModel, after: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep the hidden states after the given layers, from the most recent pass inside the block.

    For example `with tapped(runner.model, (2, 14, 25)) as hidden: logits = runner.forward(ids, rows)`, with an
    `EagerRunner`; then `hidden[14]` is `[n, width]`, a row for each of the n ids, whatever `rows` was. Costs a few
    microseconds per pass, and copies nothing.

    Args:
        model: on any device.
        after: numbers of layers, each from 1 to the model's depth.

    Raises:
        UsageError: a number outside that range.
        RunError: the model's layers cannot be found.
    """
    layers, hidden = decoder_layers(model), dict[int, Tensor]()

    def keep(n: int) -> Any:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            del module, args
            hidden[n] = hidden_of(output)[0]

        return hook

    with ExitStack() as hooks:
        for n in sorted(set(after)):
            check_layer(model, n, len(layers))
            hooks.callback(layers[n - 1].register_forward_hook(keep(n)).remove)
        yield hidden


def check_layer(model: PreTrainedModel, n: int, deepest: int) -> None:
    """Check that hidden states after the first n layers can be used.

    Raises:
        UsageError: n is not in 1 .. deepest.
    """
    if not 1 <= n <= deepest:
        depth = model.config.get_text_config().num_hidden_layers
        hint = f"use 1 to {deepest}" if deepest else "there is no exit between them"
        raise UsageError(f"layers={n}: the model has {depth} layers; {hint}.")
