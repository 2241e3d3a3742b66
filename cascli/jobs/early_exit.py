"""How well a target's first layers predict its own text: one teacher-forced pass over each answer, for all exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascli.analysis.cost import part_of
from cascli.analysis.early_exit import ExitCurve, exit_curve
from cascli.analysis.profile import Profile, Timing
from cascli.chat import Conversation
from cascli.engine import Request
from cascli.errors import UsageError
from cascli.jobs.generate import decode, request_for, request_of_turn
from cascli.jobs.synthetic import prompt_ids
from cascli.models.calls import Calls
from cascli.models.pair import Pair
from cascli.models.split import SplitRunner, exit_info
from cascli.models.taps import tapped
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.sampling import distributions
from cascli.settings import Resolved
from cascli.strategies import parse
from cascli.trace import ExitInfo

_PIECE = 64
"""Number of tokens whose distributions are in memory at a time."""


def requests_of(pair: Pair, prompts: Sequence[Prompt], settings: Resolved) -> list[Request]:
    """Requests for the target: the first turn of each prompt, or one prompt of ids if the pair has no tokenizer."""
    if pair.tokenizer is None:
        return [request_for(settings, prompt_ids(pair.vocab))]
    return [
        request_of_turn(pair, prompt.turns[0], Conversation(settings.system), settings, prompt.id) for prompt in prompts
    ]


def timed_exits(pair: Pair) -> list[int]:
    """Numbers of layers after which the target's exits are timed; times between them are interpolated linearly.

    Empty if its other steps are captured graphs, with which the times of exits could not be compared.

    Raises:
        UsageError: the target has one layer.
    """
    info = exit_info(pair.target, 1)
    if info.depth < 2:
        raise UsageError("--early-exit: the target has only one layer, so there is no early exit.")
    return [] if info.uncaptured else sorted({1, info.depth // 2, info.depth - 1})


def curve(
    pair: Pair, requests: Sequence[Request], profile: Profile, on_progress: OnProgress | None = None
) -> ExitCurve:
    """Let the target answer, then read each answer once more to find what every exit would have drafted.

    Args:
        pair: a loaded pair; its caches are overwritten.
        requests: requests that all have the same sampling.
        profile: step times; exits that were not timed are assumed to take time in proportion to the bytes they read.
        on_progress: called with progress updates.

    Raises:
        RunError: the target cannot be left early.
    """
    whole = exit_info(pair.target, 1)
    target, by_layers = parse("target"), dict[int, list[list[float]]]()
    for done, request in enumerate(requests):
        if on_progress is not None:
            on_progress("early exits along the target's text", done, len(requests))
        answer = decode(pair, target, request).token_ids
        for layers, overlaps in acceptances(pair, request, answer).items():
            by_layers.setdefault(layers, []).append(overlaps)
    measured = bool(profile.exits)
    if not measured:
        profile = profile.model_copy(update={"exits": _by_bytes(pair, profile, whole)})
    temperature = requests[0].sampling.temperature
    return exit_curve(by_layers, profile, whole, temperature=temperature, measured=measured)


@torch.inference_mode()
def acceptances(pair: Pair, request: Request, answer: Sequence[int]) -> dict[int, list[float]]:
    """Sum of min(p, q) at every token of an answer, for the exit after each number of layers."""
    model, own = pair.target.model, pair.target.runner.own
    depth = exit_info(pair.target, 1).depth
    split = SplitRunner(model, own, 1)
    split.prepare(len(request.prompt_ids), len(answer), Calls())
    start = own.begin(torch.tensor(request.prompt_ids, device=pair.device))
    text = torch.cat([start, torch.tensor(answer[:-1], dtype=torch.long, device=pair.device)])
    overlaps: dict[int, list[float]] = {n: [] for n in range(1, depth)}
    for piece in text.split(_PIECE):
        before = own.length
        with tapped(model, overlaps) as hidden:
            p = distributions.warp(own.forward(piece, len(piece)), request.sampling)
        for n, values in overlaps.items():
            q = distributions.warp(split.through_head(hidden[n], before, piece), request.sampling)
            values += distributions.overlap(p, q).tolist()
    return overlaps


def _by_bytes(pair: Pair, profile: Profile, whole: ExitInfo) -> dict[int, Timing]:
    """Step times of exits, scaled from the target's step as if reading weights were the only cost."""
    target, step = pair.info.target, profile.target[1]
    timings: dict[int, Timing] = {}
    for n in range(1, whole.depth):
        part = part_of(target, whole.model_copy(update={"layers": n})).weight_bytes or 0
        timings[n] = step.times(part / (target.weight_bytes or 1))
    return timings
