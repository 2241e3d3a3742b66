"""Hardware-independent costs of decoding: floating point operations, and bytes of weights. No torch.

Both are estimates from counts. A matrix of n weights costs 2 n operations per token; attention costs 4 operations per
token, channel and attended token (scores and weighted sum). Every call reads all weights once, whatever its number of
tokens; caches and activations, which are small by comparison at batch size 1, are left out. A mixture of experts is
counted as if all experts were active. Operations are not estimated for models that cache latent states, all of which a
pass expands. An encoder-decoder's prompt is multiplied by the encoder's matrices, its output by the decoder's.
"""

from __future__ import annotations

from typing import NamedTuple

from cascli.trace import ExitInfo, ModelInfo, PairInfo


class Use(NamedTuple):
    """The work of one model during a run."""

    calls: int
    """Steps that the strategy took, excluding those that read the prompt."""
    passes: int
    """All forward passes, including those over the prompt."""
    tokens: int
    """Tokens in all passes."""
    attended: int
    """Pairs of a token and one that it can attend to."""
    rows: int | None = None
    """Rows of logits that were computed; the output matrix is not applied to other tokens. None for all tokens."""
    encoded: int = 0
    """How many of the tokens an encoder read, in one of the passes; each of these attends to all of them."""


class Cost(NamedTuple):
    """Total cost of a run, apart from time."""

    draft: Use
    target: Use
    flops: float | None
    """Floating point operations of both models; None if the size of one is unknown."""
    weight_bytes: float | None
    """Bytes of weights that both models read; None if the size of one is unknown."""


def cost_of(pair: PairInfo, draft: Use, target: Use, exit: ExitInfo | None = None) -> Cost:
    """Add up the work of the two models; the draft model may be an early exit of the target.

    An exit's layers do no work twice: the target continues from what they computed for drafted tokens, and its own
    passes are counted in full. So only the output matrix's operations are added for the exit. Weights are counted for
    the passes of both, since every target pass reads the block's last token through all layers.
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
    """Return an early exit as a model: some of the target's layers, assumed equal, and its whole output matrix."""
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
    attention = model.attention_width * use.attended
    if model.encoder is not None:
        products += model.encoder.parameters * use.encoded
        attention += model.encoder.attention_width * use.encoded**2
    return 2.0 * products + 4.0 * attention


def _weight_bytes(model: ModelInfo, use: Use) -> float | None:
    if model.weight_bytes is None:
        return None
    encodings = int(use.encoded > 0)
    encoder = 0 if model.encoder is None else model.encoder.weight_bytes
    return float(model.weight_bytes * (use.passes - encodings) + encoder * encodings)


def _sum(draft: float | None, target: float | None) -> float | None:
    return None if draft is None or target is None else draft + target
