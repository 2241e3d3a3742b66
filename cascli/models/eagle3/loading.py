"""An EAGLE-3 head as the draft model of a pair."""

from __future__ import annotations

from pathlib import Path

import torch

from cascli.config import DraftConfig
from cascli.errors import ConfigError
from cascli.models.cpu.fit import Done
from cascli.models.eagle3.layout import Layout
from cascli.models.eagle3.reading import read_head, weights_of_head
from cascli.models.eagle3.runners import Eagle3Runner, Embed, TappedRunner
from cascli.models.pair import LoadedModel
from cascli.models.placement import BYTES, choose_dtype
from cascli.models.size import LARGE
from cascli.models.stages import Work

TAPPED_IS_EAGER = "its hidden states go to an EAGLE-3 head, and a captured step exposes none"
HEAD_IS_EAGER = "an EAGLE-3 head's steps are not captured"


def precision_of(
    draft: DraftConfig, layout: Layout, override: str | None, default: str | None, device: torch.device
) -> str:
    """The precision of a head: from a flag, else its entry in the pair file, else that of a draft model of its size."""
    return choose_dtype(draft.requested_dtype(override, default), device, may_round=weights_of_head(layout) >= LARGE)


def work_of(layout: Layout, dtype: str) -> Work:
    """The work of loading a head, for a progress display."""
    verb = "packing" if dtype == "int8" else "reading"
    return Work("draft", verb, weights_of_head(layout), BYTES[dtype], layout.layer.num_hidden_layers)


def load_head(
    draft: DraftConfig,
    name: str,
    folder: Path,
    layout: Layout,
    dtype: str,
    target: LoadedModel,
    vocab: int,
    done: Done,
) -> LoadedModel:
    """Load a head with its weights, for a loaded target.

    Args:
        draft: its entry in the pair file.
        name: its name in results.
        folder: contains its files.
        layout: from its config.
        dtype: its precision.
        target: must have a `TappedRunner`.
        vocab: number of logits that stand for tokens.
        done: called for each layer as it is finished.

    Raises:
        RunError: the head is damaged.
        ConfigError: the head has no embedding of its own, and its width is not its target's.
    """
    target_runner = target.runner
    if not isinstance(target_runner, TappedRunner):
        raise TypeError(f"a head cannot read the hidden states of a {type(target_runner).__name__}")
    with draft.located():
        head = read_head(folder, layout, dtype, target.device, done)
        if head.embed_tokens is None and layout.target_width != layout.layer.hidden_size:
            raise ConfigError(
                f"{folder}: it has no embedding of its own, and its width of {layout.layer.hidden_size:,} differs"
                f" from its target's, {layout.target_width:,}"
            )
    # Its own table, or the target's, which may be on another device than the ids.
    embed: Embed = head.embed_tokens or target_runner.embed
    runner = Eagle3Runner(head, vocab, target.device, embed, target_runner)
    why = HEAD_IS_EAGER if target.device.type == "cuda" else None
    return LoadedModel(head, runner, name, dtype, target.device, layout.rows, why, is_head=True)
