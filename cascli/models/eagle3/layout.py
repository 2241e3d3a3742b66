"""The config of an EAGLE-3 head, in the format of vLLM's speculators package or an older one.

The speculators format (`speculators_model_type: eagle3`) keeps the layer's own config under `transformer_layer_config`.
Older heads (SafeAILab's EAGLE, SpecForge) are flat Llama configs with a `draft_vocab_size`, have none of the flags, and
call their layer `midlayer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from cascli.errors import ConfigError
from cascli.files import MEGABYTE, json_of, printed, text_of
from cascli.models.rotary import LENGTH_DEPENDENT, rope_types
from cascli.weights import untrusted

TARGETS = ("llama", "mistral", "qwen2", "qwen3")
"""Supported target types: their layers pass on one hidden state per token, and share nothing else."""
LAYERS = ("llama", "qwen3")
"""Types of layers from which the speculators package builds heads."""
_CONFIG_BYTES = 4 * MEGABYTE
_COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "embed_requires_grad")


class Angles(NamedTuple):
    """Rotary angles: how far a position rotates each pair of an attention head's dimensions."""

    frequencies: Tensor
    """`[head_dim / 2]`, float64: radians per position."""
    scaling: float
    """A factor on both cosines and sines."""


@dataclass(frozen=True)
class Layout:
    """How a head is built, and what it takes from its target."""

    layer: PreTrainedConfig
    """The config of its layers: Llama or Qwen3."""
    angles: Angles
    taps: tuple[int, ...]
    """The numbers of target layers after which hidden states are taken, ascending."""
    target_width: int
    """Width of these hidden states."""
    rows: int
    """Rows of the target's output matrix."""
    draft_vocab: int
    """Rows of the head's own output matrix."""
    norm_before_residual: bool = False
    """Whether the first layer adds to the normalised state instead of the state itself."""
    norm_before_fc: bool = False
    """Whether the states of all taps are normalised together before the projection to one width."""
    fc_norm: bool = False
    """Whether the states of each tap are normalised separately before the projection to one width."""
    norm_output: bool = False
    """Whether the next step takes the normalised state (EAGLE 3.1) instead of the state itself."""
    embed_requires_grad: bool = False
    """Whether the head's embedding was trained; the head must then have its own."""

    @property
    def longest(self) -> int:
        """Number of positions that the head was made for."""
        return int(self.layer.max_position_embeddings)


def layout_of(folder: Path, target: PreTrainedConfig) -> Layout:
    """Read the config of a head for a target.

    Raises:
        ConfigError: it is not an EAGLE-3 head, is of an unsupported kind, or was made for another target.
        RunError: it is damaged.
    """
    file = folder / "config.json"
    with untrusted.damaged(file):
        values = json_of(text_of(file, _CONFIG_BYTES), str(file))
        untrusted.check_sizes(values)
    try:
        return _layout(values, target.get_text_config(), file)
    except _Unfit as error:
        raise ConfigError(f"{folder}: {error}") from None


class _Unfit(ConfigError):
    """Why a head cannot be run, without the name of its folder."""


def _layout(values: Mapping[str, Any], target: PreTrainedConfig, file: Path) -> Layout:
    if target.model_type not in TARGETS:
        raise _Unfit(f"heads draft for targets of type {', '.join(TARGETS)}; this one is a '{target.model_type}'")
    own = _own_config(values)
    flags = {name: _flag(values, name) for name in _FLAGS}
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise _Unfit("norm_before_fc and fc_norm exclude each other")
    counts = {name: _count(own, name, 0) for name in _COUNTS}
    shared = counts["num_key_value_heads"]
    if (shared and counts["num_attention_heads"] % shared) or counts["head_dim"] % 2:
        raise _Unfit("its numbers of heads, or their width, are inconsistent")
    with untrusted.damaged(file):
        layer = AutoConfig.for_model(own.pop("model_type"), **own)
        _check_layer(layer)
        angles = _angles(layer)
    width = _count(values, "target_hidden_size", layer.hidden_size)
    if width != target.hidden_size:
        raise _Unfit(f"it was made for a target of width {width:,}, but this one's is {target.hidden_size:,}")
    if layer.vocab_size != target.vocab_size:
        made_for, actual = layer.vocab_size, target.vocab_size
        raise _Unfit(f"it was made for a target of {made_for:,} token ids, but this one has {actual:,}")
    draft_vocab = _count(values, "draft_vocab_size", layer.vocab_size)
    if draft_vocab > layer.vocab_size:
        raise _Unfit(f"draft_vocab_size {draft_vocab:,} is more than the target's {layer.vocab_size:,} token ids")
    taps = _taps(values, target.num_hidden_layers)
    return Layout(layer, angles, taps, width, target.vocab_size, draft_vocab, **flags)


def _own_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a head's layers, with a known `model_type`."""
    kind = values.get("speculators_model_type")
    if kind is None and "draft_vocab_size" not in values:
        raise _Unfit("not an EAGLE-3 head: its config has neither 'speculators_model_type' nor 'draft_vocab_size'")
    if kind not in (None, "eagle3"):
        raise _Unfit(f"a head of type {printed(kind)}; of the speculators format only 'eagle3' is supported")
    own = values if kind is None else values.get("transformer_layer_config")
    if not isinstance(own, Mapping):
        raise _Unfit("its config has no 'transformer_layer_config'")
    model_type = own.get("model_type", "llama" if kind is None else "qwen3")
    if model_type not in LAYERS:
        raise _Unfit(f"its layers are of type {printed(model_type)}; only {' and '.join(LAYERS)} are supported")
    return {str(key): value for key, value in own.items() if key != "auto_map"} | {"model_type": model_type}


def _check_layer(layer: PreTrainedConfig) -> None:
    """Reject what the layers here do not support."""
    if "sliding_attention" in (getattr(layer, "layer_types", None) or ()):
        raise _Unfit("its layers use a sliding window, which is not supported")
    if rope_types(layer) & LENGTH_DEPENDENT:
        raise _Unfit(f"its {', '.join(sorted(rope_types(layer)))} position encoding depends on the text's length")
    if layer.hidden_act not in ACT2FN:
        raise _Unfit(f"hidden_act {printed(layer.hidden_act)} is not an activation that transformers knows")
    eps = layer.rms_norm_eps
    if not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise _Unfit(f"rms_norm_eps: expected a small number (got {printed(eps)})")


def _angles(layer: PreTrainedConfig) -> Angles:
    with torch.device("cpu"):
        rotary = LlamaRotaryEmbedding(layer)
    frequencies = rotary.inv_freq.double()
    if 2 * frequencies.numel() != layer.head_dim:
        raise _Unfit("its position encoding rotates only part of each head's width, which is not supported")
    return Angles(frequencies, float(rotary.attention_scaling))


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if not isinstance(value, bool | None):
        raise _Unfit(f"{name}: expected true or false (got {printed(value)})")
    return bool(value)


def _count(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return int(default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _Unfit(f"{name}: expected a number, 1 or more (got {printed(value)})")
    return value


def _taps(values: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    """The numbers of the tapped target layers; if the config has none, the three that speculators uses.

    Ascending whatever the order in the config: as they come out of the target, in training and in vLLM.
    """
    name = "eagle_aux_hidden_state_layer_ids"
    eagle_config = values.get("eagle_config")
    nested = eagle_config if isinstance(eagle_config, Mapping) else {}
    if nested.get("use_aux_hidden_state") is False:
        raise _Unfit(
            "it uses the target's last hidden state only (use_aux_hidden_state: false), which is not supported"
        )
    given = values.get(name, nested.get(name))
    taps = [2, depth // 2, depth - 3] if given is None else given
    are_ints = isinstance(taps, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in taps)
    if not are_ints or not taps or len(set(taps)) < len(taps) or min(taps) < 1 or max(taps) > depth:
        what = (
            f"the default of {name}, {taps}, does not suit"
            if given is None
            else f"{name}: {printed(taps)} does not suit"
        )
        raise _Unfit(f"{what} a target of {depth} layers; expected distinct numbers from 1 to {depth}")
    return tuple(sorted(taps))
