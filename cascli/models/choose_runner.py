"""Which runner a loaded model gets: recorded steps where the device and the model allow them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from cascli.models.capture import Capture, CudaCapture, Recorded
from cascli.models.graph_runner import GraphRunner
from cascli.models.runner import Runner

ASKED = "--no-cuda-graphs"


def choose_runner(
    model: PreTrainedModel, vocab: int, device: torch.device, *, graphs: bool, capture: Capture | None = None
) -> tuple[Runner | GraphRunner, str | None]:
    """The runner, and why it is not one of CUDA graphs, if on a GPU it is not.

    Args:
        model: on its device.
        vocab: rows of logits that stand for tokens.
        device: where logits are wanted.
        graphs: whether recorded steps are wanted where they are possible.
        capture: what records; CUDA's own on a GPU, nothing elsewhere by default.
    """
    if capture is None and device.type != "cuda":
        return Runner(model, vocab, device), None
    why = why_eager(model) if graphs else ASKED
    if why is not None:
        return Runner(model, vocab, device), why
    return GraphRunner(model, vocab, device, capture or CudaCapture(device)), None


def recorded_rounds(draft: Runner | GraphRunner, target: Runner | GraphRunner) -> Recorded | None:
    """What records the rest of a round, if both models' steps are recorded."""
    if target.device.type != "cuda" or not (isinstance(draft, GraphRunner) and isinstance(target, GraphRunner)):
        return None
    return Recorded(CudaCapture(target.device))


def why_eager(model: PreTrainedModel) -> str | None:
    """Why a model's steps cannot be recorded, in words for its user; None if they can."""
    config = model.config.get_text_config()
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        return f"it is spread over {len(places)} devices"
    rope = {str(name) for name in _rope_types(config)}
    if rope & {"dynamic", "longrope"}:
        return f"its {', '.join(sorted(rope))} position encoding looks at the text's length on the host"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        return "its experts are chosen on the host"
    return None


def _rope_types(config: object) -> list[object]:
    """Kinds of rotary encoding: one for the model, or one a kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [value for value in given.values() if isinstance(value, dict)] or [given]
    return [value.get("rope_type", "default") for value in each]
