"""Which runner a loaded model gets: captured steps where the device and the model allow them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from cascli.models.batch.reader import OneByOne, Reader
from cascli.models.calls import Role
from cascli.models.cpu.batch_reader import PROMPT_BLOCK, batch_reader, why_alone
from cascli.models.eager_runner import EagerRunner
from cascli.models.eagle3.runners import Eagle3Runner, TappedRunner
from cascli.models.encoder_decoder import EncoderDecoderRunner, ready
from cascli.models.gpu.batch_reader import graph_reader
from cascli.models.gpu.capture import Capture, CudaCapture, Uncaptured
from cascli.models.gpu.fused_norm import use_fused_norms
from cascli.models.gpu.fused_rotation import use_fused_rotation
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.merged import Merged, merge
from cascli.models.rotary import LENGTH_DEPENDENT, rope_types
from cascli.models.runner import Runner

ASKED = "--no-cuda-graphs"
ENCODES = "each step attends to the encoder's states, whose shape differs for every prompt"


def choose_runner(
    model: PreTrainedModel,
    vocab: int,
    device: torch.device,
    *,
    graphs: bool,
    compiler: str | None = None,
    capture: Capture | None = None,
) -> tuple[Runner, str | None]:
    """The runner, and why it is not one of CUDA graphs, if on a GPU it is not.

    Args:
        model: on its device.
        vocab: rows of logits that stand for tokens.
        device: where logits are wanted.
        graphs: whether captured steps are wanted where they are possible.
        compiler: the backend of torch.compile, if steps are to be compiled where they could be captured.
        capture: what captures; CUDA's own on a GPU, nothing elsewhere by default.
    """
    if model.config.is_encoder_decoder:
        return EncoderDecoderRunner(ready(model), vocab, device), ENCODES if device.type == "cuda" else None
    if capture is None and device.type != "cuda":
        shares = device.type == "cpu" and why_alone(model) is None
        return EagerRunner(model, vocab, device, prompt_block=PROMPT_BLOCK if shares else None), None
    why = why_eager(model)
    if why is not None or not (graphs or compiler):
        return EagerRunner(model, vocab, device), why or ASKED
    fused: Merged | str | None = None
    if compiler is None:  # torch.compile does all this by itself
        use_fused_norms(model)
        fused = merge(model)
        if isinstance(fused, str):
            use_fused_rotation(model)
    if not graphs:
        return GraphRunner(model, vocab, device, Uncaptured(), compiler), ASKED
    return GraphRunner(model, vocab, device, capture or CudaCapture(device), compiler, fused), None


def graph_cache_for(device: torch.device, *whys: str | None) -> GraphCache:
    """The graphs of the rest of a round; it captures where all models' steps are captured: no reason against it."""
    return GraphCache(CudaCapture(device) if device.type == "cuda" and not any(whys) else None)


def why_eager(model: PreTrainedModel) -> str | None:
    """Why a model's steps cannot be captured, in words for its user; None if they can."""
    config = model.config.get_text_config()
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        return f"it is spread over {len(places)} devices"
    rope = rope_types(config)
    if rope & LENGTH_DEPENDENT:
        return f"its {', '.join(sorted(rope))} position encoding reads the text's length on the host"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        return "its experts are chosen on the host"
    return None


def choose_readers(runners: Mapping[Role, Runner], places: int) -> dict[Role, Reader]:
    """What reads for several texts with the weights of each model, the models' runners of a text side by side."""
    readers = {role: choose_reader(runner, places) for role, runner in runners.items()}
    for reader in readers.values():
        for own, target in zip(reader.runners, readers["target"].runners, strict=True):
            own.follow(target)
    return readers


def choose_reader(runner: Runner, places: int) -> Reader:
    """What reads for several texts with the weights of a runner: together where its kernels tell texts apart."""
    if isinstance(runner, TappedRunner | Eagle3Runner):
        return OneByOne(
            [runner.fresh() for _ in range(places)], "an EAGLE-3 head reads hidden states of each target pass"
        )
    if isinstance(runner, EncoderDecoderRunner):
        why = "each attends to its own encoder states"
        return OneByOne([runner.fresh() for _ in range(places)], why)
    if isinstance(runner, EagerRunner) and runner.device.type == "cpu":
        return batch_reader(runner, places)
    if isinstance(runner, GraphRunner):
        if runner.compile_seconds is None:
            use_fused_rotation(runner.model)  # its layers make the passes of several texts
        return graph_reader(runner, places)
    return OneByOne([runner.fresh() for _ in range(places)], "on this device each text has separate passes")
