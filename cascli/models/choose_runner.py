"""Chooses a runner for a loaded model: captured steps where the device and the model allow them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from cascli import kernels
from cascli.errors import PairWarning
from cascli.models.batch.reader import OneByOne, Reader
from cascli.models.calls import Role
from cascli.models.cpu.batch_reader import PROMPT_BLOCK, batch_reader, why_alone
from cascli.models.eager_runner import EagerRunner
from cascli.models.eagle3.runners import Eagle3Runner, TappedRunner
from cascli.models.encoder_decoder import EncoderDecoderRunner, ready
from cascli.models.gpu.batch_reader import graph_reader
from cascli.models.gpu.capture import Capture, CudaCapture, Uncaptured
from cascli.models.gpu.fused_norm import restore_norms, use_fused_norms
from cascli.models.gpu.fused_rotation import restore_rotation, use_fused_rotation
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.merged import Merged, merge
from cascli.models.gpu.self_test import StepTest
from cascli.models.rotary import LENGTH_DEPENDENT, rope_types
from cascli.models.runner import Runner
from cascli.models.size import has_experts

BY_FLAG = "--no-cuda-graphs"
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
    """Choose a runner; on a GPU, also return the reason if it does not use CUDA graphs.

    Args:
        model: on its device.
        vocab: number of logits per row that stand for tokens.
        device: device of the logits.
        graphs: whether to capture steps where possible.
        compiler: the backend of torch.compile, if steps that could be captured are to be compiled.
        capture: captures the steps; by default CUDA graphs on a GPU, and none elsewhere.
    """
    if model.config.is_encoder_decoder:
        return EncoderDecoderRunner(ready(model), vocab, device), ENCODES if device.type == "cuda" else None
    if capture is None and device.type != "cuda":
        shares = device.type == "cpu" and why_alone(model) is None
        return EagerRunner(model, vocab, device, prompt_block=PROMPT_BLOCK if shares else None), None
    why = why_eager(model) or _elsewhere(model, device)
    if why is not None or not (graphs or compiler):
        return EagerRunner(model, vocab, device), why or BY_FLAG
    capture = (capture or CudaCapture(device)) if graphs else Uncaptured()
    runner, why = _tested(model, vocab, device, capture, compiler)
    _free(device)
    return runner, why or (None if graphs else BY_FLAG)


def _tested(
    model: PreTrainedModel, vocab: int, device: torch.device, capture: Capture, compiler: str | None
) -> tuple[Runner, str | None]:
    """The runner with the fewest kernels a step that passes a self-test, and why it cannot have graphs, if so."""
    test, attention = StepTest(model, vocab, device), model.config._attn_implementation
    fused: Merged | str | None = None
    if compiler is None:  # torch.compile does all this itself
        use_fused_norms(model)
        fused = merge(model)
        if isinstance(fused, str):
            use_fused_rotation(model)
    runner = GraphRunner(model, vocab, device, capture, compiler, fused)

    # Tested in a copy, so that no graph or buffer of the test stays. Compiling takes a minute and is torch's work; the
    # attention that is compiled is ours, and is tested without.
    def copy() -> GraphRunner:
        return runner.fresh() if compiler is None else GraphRunner(model, vocab, device, Uncaptured())

    wrong = test.failure(copy())
    if wrong is not None and _launches_wrong(test, copy, device, wrong):
        wrong = None
    if wrong is not None and isinstance(fused, Merged):
        use_fused_rotation(model)
        why = f"fused steps failed their self-test: {wrong}"
        runner = GraphRunner(model, vocab, device, capture, None, why)
        wrong = test.failure(runner.fresh())
    if wrong is None:
        runner.test = test
        return runner, None
    restore_norms(model)
    restore_rotation(model)
    model.set_attn_implementation(attention)
    what = "steps with cascli's attention failed their self-test"
    return EagerRunner(model, vocab, device), f"{what}: {wrong}" + (", so nothing is compiled" if compiler else "")


def _free(device: torch.device) -> None:
    """Free the graphs and buffers of tests now; cycles hold them until the garbage collector runs."""
    if device.type == "cuda":
        gc.collect()


def _launches_wrong(test: StepTest, copy: Callable[[], GraphRunner], device: torch.device, wrong: str) -> bool:
    """Whether a runner that failed its test passes without programmatic dependent launch, which then stays off."""
    if not kernels.serve(device):
        return False
    from cascli.kernels import early

    if not early.used(device):
        return False
    early.switch(device, on=False)
    passes = False
    try:
        passes = test.failure(copy()) is None
    finally:
        if not passes:
            early.switch(device, on=True)
    if not passes:
        return False
    text = (
        f"kernels are launched without programmatic dependent launch, with which steps failed their self-test: {wrong}"
    )
    warnings.warn(text, PairWarning, stacklevel=5)
    return True


def graph_cache_for(device: torch.device, *reasons: str | None) -> GraphCache:
    """The graph cache for the rest of a round; captures if all models' steps are captured (`reasons` are all None)."""
    on_gpu = device.type == "cuda"
    return GraphCache(CudaCapture(device) if on_gpu and not any(reasons) else None, compiles=on_gpu)


def why_eager(model: PreTrainedModel) -> str | None:
    """The reason why a model's steps cannot be captured, worded for the user; None if they can."""
    config = model.config.get_text_config()
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        return f"it is spread over {len(places)} devices"
    rope = rope_types(config)
    if rope & LENGTH_DEPENDENT:
        return f"its {', '.join(sorted(rope))} position encoding reads the text's length on the host"
    if has_experts(config):
        return "its experts are chosen on the host"
    if getattr(config, "cross_attention_layers", None):
        return "its layers that read images are skipped"
    return None


def _elsewhere(model: PreTrainedModel, device: torch.device) -> str | None:
    """The reason if a pair's `device_map` put a model on one device, and the rest of a round is on another."""
    own = model.get_input_embeddings().weight.device
    return None if own == device else f"it is on {own}, and the rest of a round on {device}"


def choose_readers(runners: Mapping[Role, Runner], places: int) -> dict[Role, Reader]:
    """A reader for several sequences per model; each draft runner is paired with the target runner of its sequence."""
    readers = {role: choose_reader(runner, places) for role, runner in runners.items()}
    for reader in readers.values():
        for own, target in zip(reader.runners, readers["target"].runners, strict=True):
            own.follow(target)
    return readers


def choose_reader(runner: Runner, places: int) -> Reader:
    """A reader for several sequences with a runner's weights, in shared passes if its kernels can separate them."""
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
        return _tested_reader(runner, places)
    return OneByOne([runner.fresh() for _ in range(places)], "on this device each text has separate passes")


def _tested_reader(runner: GraphRunner, places: int) -> Reader:
    """A reader that shares passes between texts if these pass the self-test."""
    fuses = runner.compile_seconds is None
    if fuses:
        use_fused_rotation(runner.model)  # passes over several sequences use the model's own layers
    reader = graph_reader(runner, places)
    if runner.test is None or reader.alone_because is not None:
        return reader
    first = not runner.test.tested_texts
    wrong = runner.test.failure_of_texts(lambda: graph_reader(runner, 2))
    if first:
        _free(runner.device)
    if wrong is None:
        return reader
    if fuses and runner.unfused_because is None:
        restore_rotation(runner.model)
    return OneByOne([runner.fresh() for _ in range(places)], f"shared passes failed their self-test: {wrong}")
