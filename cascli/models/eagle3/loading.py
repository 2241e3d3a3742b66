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

LOOKED_INTO = "its hidden states go to an EAGLE-3 head, and a captured step exposes none"
HEAD_IS_EAGER = "an EAGLE-3 head's steps are not captured"


def precision_of(
    draft: DraftConfig, layout: Layout, asked: str | None, default: str | None, device: torch.device
) -> str:
    """What a head runs in: as a flag says, else its entry in the pair's file, else as a draft model of its size."""
    wanted = asked or (draft.dtype if draft.dtype != "auto" else default or "auto")
    return choose_dtype(wanted, device, may_round=weights_of_head(layout) >= LARGE)


def work_of(layout: Layout, dtype: str) -> Work:
    """What loading a head will take, for whoever shows how far it is."""
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
    """The head with its weights, beside its target.

    Args:
        draft: of the pair's file.
        name: what results call it.
        folder: of the head.
        layout: from its config.
        dtype: what it runs in.
        target: whose runner is a `TappedRunner`.
        vocab: rows of logits that stand for tokens.
        done: told of each layer as it is finished.

    Raises:
        RunError: a damaged head.
        ConfigError: one without an embedding of its own, that is of another width than its target's.
    """
    looked_into = target.runner
    if not isinstance(looked_into, TappedRunner):
        raise TypeError(f"a head cannot read the hidden states of a {type(looked_into).__name__}")
    with draft.located():
        head = read_head(folder, layout, dtype, target.device, done)
        if head.embed_tokens is None and layout.target_width != layout.layer.hidden_size:
            raise ConfigError(
                f"{folder}: it has no embedding of its own, and its width of {layout.layer.hidden_size:,} differs"
                f" from its target's, {layout.target_width:,}"
            )
    # Its own table, or the target's, whose rows may be moved to another device than the ids.
    embed: Embed = head.embed_tokens or looked_into.embed
    runner = Eagle3Runner(head, vocab, target.device, embed, looked_into)
    why = HEAD_IS_EAGER if target.device.type == "cuda" else None
    return LoadedModel(head, runner, name, dtype, target.device, layout.rows, why, is_head=True)
