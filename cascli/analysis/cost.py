"""What decoding costs whatever it runs on: floating point operations, and bytes of weights. No torch.

Both are estimates from counts. A matrix of n weights costs 2 n operations a token; attention costs 4 operations
a token, a channel and a token looked at (scores and weighted sum). Every call reads all weights once, whatever
the number of tokens in it; caches and activations, which are small beside them at batch size 1, are left out.
A mixture of experts is counted as if all experts worked. An encoder-decoder's prompt is multiplied by its encoder's
matrices, what is written by its decoder's.
"""

from __future__ import annotations

from typing import NamedTuple

from cascli.trace import ExitInfo, ModelInfo, PairInfo


class Use(NamedTuple):
    """What one model did during a run."""

    calls: int
    """Steps that the strategy took; reading the prompt is not one."""
    passes: int
    """All forward passes, those over the prompt included."""
    tokens: int
    """Tokens in them."""
    attended: int
    """Pairs of a token and one that it could look at."""
    rows: int | None = None
    """Rows of logits that were made: the output matrix is not multiplied by the others; None for all tokens."""
    encoded: int = 0
    """Of the tokens those that an encoder has read, in one of the passes; each of them looks at all of them."""


class Cost(NamedTuple):
    """What a run cost in all, apart from time."""

    draft: Use
    target: Use
    flops: float | None
    """Floating point operations of both models; None if the size of one is not known."""
    weight_bytes: float | None
    """Bytes of weights that both models read; None if the size of one is not known."""


def cost_of(pair: PairInfo, draft: Use, target: Use, exit: ExitInfo | None = None) -> Cost:
    """Add up the work of the two models, of which the draft may be an early exit of the target.

    An exit's layers do no work twice: what they have made of drafted tokens the target goes on from, and its passes are
    counted whole. So of the exit's operations those of the output matrix remain; but its passes read weights, and so
    does each of the target's, which has the block's last token to read through all layers.
    """
    if exit is not None:
        drafting: ModelInfo | None = part_of(pair.target, exit)
        flops = _flops(pair.target, draft._replace(tokens=0, attended=0))
    else:
        drafting = pair.draft
        flops = 0.0 if drafting is None else _flops(drafting, draft)
    return Cost(
        draft,
        target,
        _sum(flops, _flops(pair.target, target)),
        _sum(0.0 if drafting is None else _weight_bytes(drafting, draft), _weight_bytes(pair.target, target)),
    )


def part_of(target: ModelInfo, exit: ExitInfo) -> ModelInfo:
    """The model that an early exit is: some of the target's layers, all alike, and its whole output matrix."""
    share = exit.layers / exit.depth
    head = (target.output_parameters or 0) / target.parameters if target.parameters else 0.0
    width = target.attention_width

    def part(whole: int | None) -> int | None:
        return None if whole is None else round(whole * (head + share * (1 - head)))

    return target.model_copy(
        update={
            "parameters": part(target.parameters),
            "weight_bytes": part(target.weight_bytes),
            "attention_width": None if width is None else round(width * share),
        }
    )


def _flops(model: ModelInfo, use: Use) -> float | None:
    if model.parameters is None or model.attention_width is None:
        return None
    head = model.output_parameters or 0
    written = use.tokens - use.encoded
    rows = written if use.rows is None else use.rows
    products = (model.parameters - head) * written + head * rows
    looks = model.attention_width * use.attended
    if model.encoder is not None:
        products += model.encoder.parameters * use.encoded
        looks += model.encoder.attention_width * use.encoded**2
    return 2.0 * products + 4.0 * looks


def _weight_bytes(model: ModelInfo, use: Use) -> float | None:
    if model.weight_bytes is None:
        return None
    encodings = int(use.encoded > 0)
    encoder = 0 if model.encoder is None else model.encoder.weight_bytes
    return float(model.weight_bytes * (use.passes - encodings) + encoder * encodings)


def _sum(draft: float | None, target: float | None) -> float | None:
    return None if draft is None or target is None else draft + target
