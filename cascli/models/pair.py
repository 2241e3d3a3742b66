"""A loaded pair, ready to run: two models and their shared vocabulary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cascli.analysis.profile import Profile
from cascli.config import PairConfig
from cascli.errors import RunError
from cascli.models.calls import Role
from cascli.models.cut_head import CutHead
from cascli.models.description import context_of
from cascli.models.eagle3.head import Network
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.runner import Runner
from cascli.models.size import Size, size_of
from cascli.models.tokenizer import token_id
from cascli.models.translation import Translation
from cascli.settings import Settings
from cascli.trace import ModelInfo, PairInfo


class NoRunner(Runner):
    """Placeholder for a missing model."""

    @property
    def length(self) -> int:
        """Always 0."""
        return 0

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Raise `RunError`."""
        raise RunError("this pair has no draft model.")

    def truncate(self, length: int) -> None:
        """Do nothing."""


@dataclass(repr=False)
class LoadedModel:
    """One model of a pair: the transformers module, and the runner that decodes with it."""

    model: Network
    runner: Runner
    source: str
    dtype: str
    device: torch.device
    rows: int
    """Rows of the output matrix, padding included."""
    eager_because: str | None = None
    """On a GPU, the reason why its steps are not CUDA graphs; None if they are."""
    is_head: bool = False
    """Whether it is an EAGLE-3 head, which drafts together with its target and cannot write on its own."""

    def __repr__(self) -> str:
        """One line; `.model` is the transformers module."""
        return f"<LoadedModel {self.source}, {self.dtype} on {self.device}>"

    @property
    def unfused_because(self) -> str | None:
        """Why its CUDA graphs use transformers' layers; None if they use fused kernels, or there are no graphs."""
        return self.runner.unfused_because if isinstance(self.runner, GraphRunner) else None

    @cached_property
    def size(self) -> Size:
        """The model's size, in the units that determine the cost of decoding."""
        return size_of(self.model)

    @property
    def kept_rows(self) -> Tensor | None:
        """Remaining rows of the output matrix, ascending; None if it was not cut."""
        head = self.model.get_output_embeddings()
        return head.ids if isinstance(head, CutHead) else None

    @property
    def output_rows(self) -> int:
        """Number of rows of the output matrix that are multiplied: fewer than `rows` if it was cut."""
        return self.rows if self.kept_rows is None else len(self.kept_rows)

    @property
    def info(self) -> ModelInfo:
        """How this model has run so far, for the trace."""
        on_gpu = self.device.type == "cuda"
        return ModelInfo(
            source=self.source,
            dtype=self.dtype,
            device=str(self.device),
            cuda_graphs=self.eager_because is None if on_gpu else None,
            output_rows=self.output_rows,
            compiled=self.runner.compile_seconds is not None if on_gpu else None,
            capture_seconds=self.runner.capture_seconds,
            **self.size._asdict(),
        )


@dataclass(repr=False)
class Pair:
    """A draft and a target model over one vocabulary, the target's."""

    config: PairConfig
    draft: LoadedModel | None
    """None for a target alone; strategies then draft without a model, or not at all."""
    target: LoadedModel
    tokenizer: Any | None
    """A transformers tokenizer; None for a random pair whose vocabulary is too small for one."""
    vocab: int
    """Number of ids that both models and the tokenizer share; later rows of logits are masked everywhere."""
    eos_ids: frozenset[int]
    context: int | None
    """Longest text in tokens that both models accept; None if they do not specify it."""
    translation: Translation | None = None
    """Translation between the draft's own tokenizer and the target's, if they differ; owned by the draft's runner."""
    graphs: GraphCache = field(default_factory=GraphCache)
    """Captures what a round computes in addition to its forwards, if these are captured too."""
    steps: Profile | None = None
    """Step times on this machine, if measured; used by stops such as `rate`."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held by the run in progress, because the pair has only one cache per model."""

    timer: Callable[[], float] = field(default=time.perf_counter, repr=False, compare=False)
    """Clock that runs measure their time with, in seconds."""
    batch_size: int = 1
    """Number of answers in progress on these weights at the same time."""

    def __repr__(self) -> str:
        """One line."""
        models = ", ".join(f"{role} {model.dtype}" for role, model in self.models.items())
        return f"<Pair {self.name}: {models} on {self.device}>"

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Keep other runs from using the models' caches inside the block.

        Raises:
            RunError: a run of this pair is in progress, in this thread or another.
        """
        if not self.lock.acquire(blocking=False):
            raise RunError("the pair is already answering; load another, or wait until it is done.")
        try:
            yield
        finally:
            self.lock.release()

    def with_runners(self, runners: Mapping[Role, Runner], **more: Any) -> Pair:
        """The same weights with other runners, so that several runs can be in progress; `more` sets further fields."""
        for runner in runners.values():
            runner.follow(runners["target"])
        models = {role: replace(model, runner=runners[role]) for role, model in self.models.items()}
        return replace(self, draft=models.get("draft"), target=models["target"], lock=threading.Lock(), **more)

    def with_own_caches(self) -> Pair:
        """A pair with the same weights and its own caches."""
        return self.with_runners({role: model.runner.fresh() for role, model in self.models.items()})

    @property
    def name(self) -> str:
        """The pair's name."""
        return self.config.name

    @property
    def defaults(self) -> Settings:
        """The defaults from the pair's file."""
        return self.config.defaults

    @property
    def by_head(self) -> bool:
        """Whether the draft is an EAGLE-3 head."""
        return self.draft is not None and self.draft.is_head

    @property
    def device(self) -> torch.device:
        """The target's device, where distributions are compared."""
        return self.target.device

    def runner(self, role: Role) -> Runner:
        """A model's runner; a `NoRunner` for a missing draft model."""
        model = self.target if role == "target" else self.draft
        return NoRunner() if model is None else model.runner

    @property
    def models(self) -> dict[Role, LoadedModel]:
        """The models of the pair; the draft comes first, if there is one."""
        draft: dict[Role, LoadedModel] = {} if self.draft is None else {"draft": self.draft}
        return draft | {"target": self.target}

    @property
    def contexts(self) -> dict[Role, int]:
        """The longest text of each model that limits the pair's `context`, in tokens; without those that have none."""
        own = {
            role: context_of(model.model.config)
            for role, model in self.models.items()
            if role == "target" or (self.translation is None and not model.is_head)
        }
        return {role: length for role, length in own.items() if length is not None}

    @cached_property
    def thinking(self) -> tuple[int, int] | None:
        """Ids of the tokens that open and close the target's thinking; None unless it has both."""
        opening, closing = (token_id(self.tokenizer, token, self.vocab) for token in self.config.thinking)
        return None if opening is None or closing is None or opening == closing else (opening, closing)

    @property
    def info(self) -> PairInfo:
        """How this pair ran, for the trace."""
        target, draft_tokens = self.target.info, self.vocab
        own = {}
        if self.translation is not None:
            draft_tokens = self.translation.draft.size
            kept = None if self.draft is None else self.draft.kept_rows
            shared = self.translation.shared if kept is None else self.translation.shared_among(kept)
            own = {"draft_tokenizer_size": draft_tokens, "shared_tokens": shared}
        if target.capture_seconds is not None:
            seconds = target.capture_seconds + self.graphs.seconds
            target = target.model_copy(update={"capture_seconds": seconds})
        return PairInfo(
            name=self.name,
            draft=None if self.draft is None else self.draft.info,
            target=target,
            tokenizer_size=self.vocab,
            masked_rows=(None if self.draft is None else self.draft.rows - draft_tokens, self.target.rows - self.vocab),
            **own,
        )
