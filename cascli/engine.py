"""Runs one strategy on one prompt: prepares the session, ends the text where it should end, records the trace."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cascli.analysis.cost import Use, cost_of
from cascli.analysis.metrics import summarise
from cascli.blame import blamed
from cascli.decoding import memory
from cascli.decoding.answer import Answer
from cascli.decoding.clock import Clock
from cascli.decoding.cursor import Cursor
from cascli.decoding.detokenizer import Speller
from cascli.decoding.plugin_checks import rounds
from cascli.decoding.session import Session
from cascli.errors import ContextFull, UsageError
from cascli.models.calls import ROLES
from cascli.models.pair import Pair
from cascli.provenance import of_plugins
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import RandomNumbers, Uniforms, seed_of
from cascli.strategies import Strategy
from cascli.strategies.base import Speculating
from cascli.trace import FinishReason, Handover, Metrics, Round, Run, SamplingInfo, block_length, by_block, now
from cascli.version import __version__

EARLIER_TEXTS_HINT = "only compare (one answer at a time) and Python's generate(earlier=...) keep them"


@dataclass(frozen=True)
class Request:
    """What to decode and how; `prompt`, `category`, `system` and `raw` are only recorded in the trace."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    seed: int = 0
    """Determines the random numbers, together with `prompt_id` and `turn`: see `cascli.sampling.uniforms.seed_of`."""
    prompt_id: str = ""
    category: str = ""
    turn: int = 0
    stop: Sequence[str] = ()
    prompt: str | None = None
    system: str | None = None
    raw: bool = False
    top: int = 0
    """Number of each model's likeliest tokens that the trace keeps per position; 0 keeps no detail at all."""
    uniforms: RandomNumbers | None = None
    earlier: Sequence[Sequence[int]] | None = None
    """Earlier texts (prompt and answer) of the same strategy, for a drafter that searches them; None if the caller
    does not keep them."""

    @property
    def sampling_info(self) -> SamplingInfo:
        """The sampling settings as documents state them."""
        limits = {"seed": self.seed, "max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}
        return SamplingInfo.model_validate(asdict(self.sampling) | limits)


@dataclass(frozen=True)
class StreamEvent:
    """A decided round, and the text that each of its tokens completes."""

    round: Round
    pieces: list[str]


class Decoding:
    """One run in progress: iterate `steps()` to the end, then take the `run()`."""

    def __init__(self, pair: Pair, strategy: Strategy, request: Request) -> None:
        self.pair, self.strategy, self.request = pair, strategy, request
        check_models(pair, strategy, keeps_earlier=request.earlier is not None)
        with blamed(strategy):
            self.limit = check_prompt(pair, request)
            self._runners = strategy.runners(pair)
            self.costs = strategy.costs(pair)
        self.speller = Speller(pair.tokenizer)
        self.handover: Handover | None = None
        self._answer = self._new_answer()
        self._metrics: Metrics | None = None
        self._under_way: Session | None = None
        self._first_token: float | None = None
        self._date = now()

    def _new_answer(self) -> Answer:
        return Answer(self.speller, self.pair.eos_ids, self.request.stop, self.limit)

    @torch.inference_mode()  # only while it computes, since several decodings may be interleaved
    def steps(self) -> Iterator[StreamEvent | Handover]:
        """Decode, yielding each round and, for a sequence-level cascade, the decision after its draft.

        Raises:
            RunError: out of memory, or another run of the pair is in progress.
        """
        with self.pair.one_at_a_time(), memory.explain_out_of_memory(self.pair.device), blamed(self.strategy):
            if self.pair.batch_size == 1:  # in a batch, others use the same memory
                memory.reset_device_peak(self.pair.device)
            session = self._under_way = self.session()
            for item in self._rounds(session):
                if isinstance(item, Handover):
                    # A tentative answer may be shown once it is kept; a withdrawn one is never shown.
                    self._first_token = None if item.deferred else session.clock.elapsed()
                    event: StreamEvent | Handover = self._decided(item)
                else:
                    event = StreamEvent(*self._answer.add(item))
                    session.finish_reason = self._answer.finish_reason
                    session.answer_ids = tuple(self._answer.token_ids)  # read by drafters, which must not change it
                    self._first_token = self._first_token or session.clock.elapsed()
                with session.clock.paused():
                    yield event
            self._close(session)

    def _rounds(self, session: Session) -> Iterator[Round | Handover]:
        strategy = self.strategy
        most = block_length(strategy.params)
        return rounds(strategy, session, strategy.decode(session), most=most, tentative=strategy.tentative)

    def interrupt(self) -> Run | None:
        """End the run early and return it; None if it has written nothing that is final."""
        if self._metrics is None:
            undecided = self.strategy.tentative and self.handover is None
            if self._under_way is None or undecided or not self._answer.rounds:
                return None
            self._answer.finish_reason = self._answer.finish_reason or "interrupted"
            self._close(self._under_way)
        return self.run()

    def _decided(self, decision: Handover) -> Handover:
        """Complete a cascade's decision with the draft model's text; if deferred, start a new answer."""
        self.handover = decision.model_copy(update={"draft_text": self._answer.text})
        if decision.deferred:
            self._answer = self._new_answer()
        return self.handover

    def session(self) -> Session:
        """A new session after the prompt, whose runners are prepared."""
        pair, prompt = self.pair, list(self.request.prompt_ids)
        self._prepare(len(prompt))
        clock = Clock(pair.device, pair.timer)
        text = torch.zeros(self.limit + 1, dtype=torch.long, device=pair.device)
        prompt_ids = torch.tensor(prompt, device=pair.device)
        draft_runner, target_runner = self._runners["draft"], self._runners["target"]
        target = Cursor(target_runner, "verify", clock, prompt_ids, text)
        return Session(
            draft=Cursor(
                draft_runner, "draft", clock, prompt_ids, text, prompt_by=target if draft_runner.exit else None
            ),
            target=target,
            sampling=self.request.sampling,
            uniforms=self.request.uniforms or self._uniforms(),
            text=text,
            prompt_ids=tuple(prompt),
            max_new_tokens=self.limit,
            vocab=pair.vocab,
            eos_ids=pair.eos_ids,
            clock=clock,
            spell=self.speller.token,
            graphs=pair.graphs,
            thinking=pair.thinking,
            top=self.request.top,
            earlier=self.request.earlier or (),
            costs=self.costs,
        )

    def _uniforms(self) -> Uniforms:
        request = self.request
        seed = seed_of(request.seed, request.prompt_id, request.turn)
        return Uniforms(seed, self.limit + 1, self.pair.device)

    def _prepare(self, prompt: int) -> None:
        """Let both runners allocate memory and capture the calls of a round before the clock starts."""
        answer = self.limit + block_length(self.strategy.params)
        for role in ROLES:
            calls = self.strategy.calls(role)
            sampler = Sampler(self.request.sampling, calls.reads_base or self.request.top > 0)
            self._runners[role].prepare(prompt, answer, calls, sampler)
        if self.pair.graphs.prepares:
            target, vocab = self.pair.target, self.pair.vocab
            # Rows as long as the output matrix has them: kernels are compiled for what rows' starts are multiples of.
            like = torch.zeros(1, max(target.rows, vocab), dtype=target.model.dtype, device=self.pair.device)
            self.strategy.capture(self.pair.graphs, self.request.sampling, like[:, :vocab])

    def _close(self, session: Session) -> None:
        decision = self.handover
        self._metrics = summarise(
            self._answer.rounds,
            cost=cost_of(self.pair.info, _use(session.draft), _use(session.target), session.draft.runner.exit),
            seconds=session.clock.finish(),
            ttft_seconds=None if self.pair.batch_size > 1 else self._first_token,  # undefined for a share of time
            peak_memory_bytes=memory.device_peak(self.pair.device) if self.pair.batch_size == 1 else None,
            k=block_length(self.strategy.params),
            by_block=by_block(self.strategy.params),
            shared_mass=session.draft.runner.shared_mass,
            deferral_rate=None if decision is None else float(decision.deferred),
        )

    @property
    def token_ids(self) -> list[int]:
        """The answer so far."""
        return self._answer.token_ids

    def run(self) -> Run:
        """The finished run as data.

        Raises:
            ValueError: the run is not finished.
            RunError: a plug-in of another package fails while its properties are read.
        """
        if self._metrics is None or self._answer.finish_reason is None:
            raise ValueError("the run is not finished: iterate steps() to the end first")
        with blamed(self.strategy):
            return self._run(self._metrics, self._answer.finish_reason)

    def _run(self, metrics: Metrics, finish_reason: FinishReason) -> Run:
        request = self.request
        return Run(
            date=self._date,
            strategy=self.strategy.name,
            params=self.strategy.params,
            oracle=self.strategy.oracle,
            depends_on_rounds=depends_on_rounds(self.pair, self.strategy),
            earlier_texts=min(self.strategy.remembers, len(request.earlier or ())) if self.strategy.remembers else None,
            pair=self.pair.info,
            sampling=request.sampling_info,
            prompt=request.prompt,
            prompt_id=request.prompt_id,
            category=request.category,
            turn=request.turn,
            system=request.system,
            raw=request.raw,
            batch_size=self.pair.batch_size,
            prompt_token_ids=list(request.prompt_ids),
            prompt_tokens=len(request.prompt_ids),
            text=self._answer.text,
            token_ids=self._answer.token_ids,
            finish_reason=finish_reason,
            metrics=metrics,
            handover=self.handover,
            costs=self.costs,
            exit=self._runners["draft"].exit,
            rounds=self._answer.rounds,
            environment=environment(self.pair.device, self.strategy),
        )


def _use(cursor: Cursor) -> Use:
    read = cursor.runner.as_read(cursor.tokens, cursor.attended)
    return Use(cursor.calls, cursor.passes, *read, cursor.rows, cursor.encoded)


def check_models(pair: Pair, strategy: Strategy, *, keeps_earlier: bool = False) -> None:
    """Check that the pair has the models, layers and tokens that a strategy needs.

    `keeps_earlier` is whether the caller passes the earlier texts of the same strategy to each run.

    Raises:
        UsageError: the pair has no suitable draft model, too few layers or no thinking tokens, or the strategy needs
            earlier texts and they are not kept.
        RunError: the target does not support early exit, or a plug-in of another package fails.
    """
    with blamed(strategy):
        if strategy.remembers and not keeps_earlier:
            raise UsageError(
                f"strategy '{strategy.spec}' drafts from earlier answers: {EARLIER_TEXTS_HINT};\nleave out 'remember'."
            )
        if strategy.needs_draft and pair.draft is None:
            raise UsageError(
                f"strategy '{strategy.spec}' needs a draft model, but pair '{pair.name}' has none;"
                " use 'target', draft=prompt-lookup or draft=early-exit, or give the pair a 'draft:'."
            )
        if strategy.needs_draft and pair.by_head and not isinstance(strategy, Speculating):
            raise UsageError(
                f"strategy '{strategy.spec}' has the draft model write alone, but pair '{pair.name}' has an EAGLE-3"
                " head,\nwhich drafts from the target's hidden states; use 'speculative' or 'speculative-cascade'."
            )
        strategy.runners(pair)  # raises if the target cannot be split
        if strategy.thinking_only and pair.thinking is None:
            opening, closing = pair.config.thinking
            raise UsageError(
                f"strategy '{strategy.spec}' applies between {opening} and {closing}, but pair '{pair.name}' has no"
                " such tokens;\nname its own in the pair's file, such as thinking: [<think>, </think>], or leave out"
                " where=thinking."
            )


def depends_on_rounds(pair: Pair, strategy: Strategy) -> bool:
    """Whether the output distribution depends on where rounds begin; a head's q does, whatever its drafter declares."""
    if strategy.depends_on_rounds or not (pair.by_head and isinstance(strategy, Speculating)):
        return strategy.depends_on_rounds
    return strategy.needs_draft and strategy.verification_rule.reads_draft


def check_prompt(pair: Pair, request: Request) -> int:
    """Return how many tokens may be added to the prompt.

    Raises:
        UsageError: an empty prompt, an id outside the vocabulary, a prompt longer than the context, or a bad limit.
    """
    count = len(request.prompt_ids)
    if count == 0:
        raise UsageError("the prompt is empty: give at least one token of text.")
    outside = [token for token in request.prompt_ids if not 0 <= token < pair.vocab]
    if outside:
        raise UsageError(f"prompt id {outside[0]} is outside the vocabulary of {pair.vocab} tokens.")
    if request.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be 1 or more (got {request.max_new_tokens})")
    room = request.max_new_tokens if pair.context is None else pair.context - count
    if room < 1:
        shorter = [role for role, length in pair.contexts.items() if length == pair.context]
        whose = f", that of the {shorter[0]} model" if len(shorter) < len(pair.models) and shorter else ""
        raise ContextFull(
            f"the prompt has {count} tokens, but the pair's context is {pair.context}{whose}; shorten the prompt."
        )
    return min(request.max_new_tokens, room)


def environment(device: torch.device, *plugins: object) -> dict[str, str]:
    """Versions, device and thread settings that results depend on besides the pair.

    Args:
        device: the pair's.
        plugins: the strategies in use, or other plug-ins; those of other packages are named with their version.
    """
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} cpu"
    facts: dict[str, Any] = {
        "cascli": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": name,
        "threads": torch.get_num_threads(),
        "processors": _processors(),
        "processor": _processor(),
    }
    if "OMP_NUM_THREADS" in os.environ:  # sets the threads of this and of every other process started with it
        facts["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return {key: str(value) for key, value in facts.items() if value is not None} | of_plugins(*plugins)


@lru_cache
def _processor() -> str | None:
    """Name of the processor, as Linux has it: machines of one architecture differ in speed and in the last bits."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or None
    return None


def _processors() -> int:
    """Number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
