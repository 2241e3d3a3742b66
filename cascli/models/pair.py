"""A loaded pair: two models, and the vocabulary that both speak, ready to run."""

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
    """Stands where there is no model."""

    @property
    def length(self) -> int:
        """Nothing was read."""
        return 0

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Refuse."""
        raise RunError("this pair has no draft model.")

    def truncate(self, length: int) -> None:
        """There is nothing to forget."""


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
    """Why, on a GPU, its steps are not CUDA graphs."""
    is_head: bool = False
    """Whether it is an EAGLE-3 head: it drafts beside its target, and cannot write by itself."""

    def __repr__(self) -> str:
        """One line; `.model` is the transformers module."""
        return f"<LoadedModel {self.source}, {self.dtype} on {self.device}>"

    @property
    def unfused_because(self) -> str | None:
        """Why its CUDA graphs are of transformers' layers; None if they are of fewer kernels, or there are none."""
        return self.runner.unfused_because if isinstance(self.runner, GraphRunner) else None

    @cached_property
    def size(self) -> Size:
        """What decoding pays for."""
        return size_of(self.model)

    @property
    def kept_rows(self) -> Tensor | None:
        """Which rows of the output matrix were left, ascending; None if it was not cut."""
        head = self.model.get_output_embeddings()
        return head.ids if isinstance(head, CutHead) else None

    @property
    def output_rows(self) -> int:
        """Rows of the output matrix that it is multiplied by: fewer than `rows` where it was cut."""
        return self.rows if self.kept_rows is None else len(self.kept_rows)

    @property
    def info(self) -> ModelInfo:
        """How this model ran until now, for the trace."""
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
    """None for a target alone: strategies then draft without a model, or not at all."""
    target: LoadedModel
    tokenizer: Any | None
    """A transformers tokenizer; None for a random pair whose vocabulary is too small for one."""
    vocab: int
    """How many ids both models and the tokenizer share; rows from here on are masked everywhere."""
    eos_ids: frozenset[int]
    context: int | None
    """Longest text in tokens that both models take; None if they do not say."""
    translation: Translation | None = None
    """Between the draft's own tokens and the target's, where the tokenizers differ; the draft's runner owns it."""
    graphs: GraphCache = field(default_factory=GraphCache)
    """Captures what a round computes besides its forwards, where these are captured too."""
    steps: Profile | None = None
    """How long steps take here, if they were timed: what a stop such as `rate` goes by."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held by the run in progress: its caches are the pair's, and there is one of each."""

    timer: Callable[[], float] = field(default=time.perf_counter, repr=False, compare=False)
    """What runs measure their time with, in seconds."""
    batch_size: int = 1
    """How many answers are under way on these weights at once."""

    def __repr__(self) -> str:
        """One line."""
        models = ", ".join(f"{role} {model.dtype}" for role, model in self.models.items())
        return f"<Pair {self.name}: {models} on {self.device}>"

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Keep others from using the models' caches meanwhile.

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
        """The same weights with other runners, so that a run of each can be under way at once; `more` are fields."""
        for runner in runners.values():
            runner.follow(runners["target"])
        models = {role: replace(model, runner=runners[role]) for role, model in self.models.items()}
        return replace(self, draft=models.get("draft"), target=models["target"], lock=threading.Lock(), **more)

    def with_own_caches(self) -> Pair:
        """The same weights with caches of their own."""
        return self.with_runners({role: model.runner.fresh() for role, model in self.models.items()})

    @property
    def name(self) -> str:
        """The pair's name."""
        return self.config.name

    @property
    def defaults(self) -> Settings:
        """The defaults of the pair's file."""
        return self.config.defaults

    @property
    def by_head(self) -> bool:
        """Whether an EAGLE-3 head drafts."""
        return self.draft is not None and self.draft.is_head

    @property
    def device(self) -> torch.device:
        """Where distributions are compared: the target's device."""
        return self.target.device

    def runner(self, role: Role) -> Runner:
        """A model's runner; one that cannot be asked for a draft model that is not there."""
        model = self.target if role == "target" else self.draft
        return NoRunner() if model is None else model.runner

    @property
    def models(self) -> dict[Role, LoadedModel]:
        """The models that there are, the draft first."""
        draft: dict[Role, LoadedModel] = {} if self.draft is None else {"draft": self.draft}
        return draft | {"target": self.target}

    @cached_property
    def thinking(self) -> tuple[int, int] | None:
        """The ids of the two tokens between which the target thinks; None unless it has both."""
        opening, closing = (token_id(self.tokenizer, token, self.vocab) for token in self.config.thinking)
        return None if opening is None or closing is None or opening == closing else (opening, closing)

    @property
    def info(self) -> PairInfo:
        """How this pair ran, for the trace."""
        target, draft_tokens = self.target.info, self.vocab
        draft_rows = self.vocab if self.draft is None else self.draft.rows
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
            masked_rows=(draft_rows - draft_tokens, self.target.rows - self.vocab),
            **own,
        )
