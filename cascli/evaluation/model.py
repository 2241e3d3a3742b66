"""A strategy as a model of lm-evaluation-harness; importing this imports that package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cascli.chat import with_template
from cascli.engine import Request
from cascli.errors import UsageError, first_line
from cascli.evaluation.generation import Generation
from cascli.jobs.generate import decode, warm_up_tokens
from cascli.models.batch.lanes import Ended, Lanes
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.settings import Settings
from cascli.strategies import Strategy
from cascli.sweeps.likelihood import Likelihood, Reader
from cascli.trace import Run

Likelihoods = dict[tuple[tuple[int, ...], tuple[int, ...]], Likelihood]
"""By prompt and continuation."""


@dataclass(frozen=True)
class Asked:
    """A document of a task, and which of its repeats."""

    task: str
    document: int
    repeat: int

    @property
    def id(self) -> str:
        """What its random numbers are derived from, the same for every strategy."""
        return f"{self.task}/{self.document}" + (f"#{self.repeat}" if self.repeat else "")


OnAnswer = Callable[[Asked, Run], None]


@dataclass
class Notes:
    """What is to be told of an evaluation besides its numbers."""

    not_honoured: set[str] = field(default_factory=set)
    shortened: set[int] = field(default_factory=set)
    """Hashes of the prompts whose beginning was left out, which every strategy meets."""


class StrategyModel(TemplateLM):
    """Answers are the strategy's; likelihoods are the target's, since a strategy has none of its own."""

    def __init__(
        self,
        pair: Pair,
        strategy: Strategy,
        given: Settings,
        notes: Notes,
        *,
        chat: bool = False,
        batch_size: int = 1,
        likelihoods: Likelihoods | None = None,
        on_answer: OnAnswer | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Take what answers.

        Args:
            pair: loaded.
            strategy: writes the answers.
            given: sampling settings that go before those of tasks.
            notes: what is found on the way.
            chat: prompts are made by `apply_chat_template`, which brings a beginning of text of its own.
            batch_size: how many answers are under way at once.
            likelihoods: those known already, completed in place: they are the same for every strategy.
            on_answer: told each answer as it ends.
            on_progress: told what was answered last, how many requests are, and of how many.
        """
        super().__init__()
        self.backend = "causal" if pair.target.info.encoder is None else "seq2seq"  # how context and answer are encoded
        self.tokenizer: Any = pair.tokenizer
        self._pair, self._strategy, self._given, self._notes, self._chat = pair, strategy, given, notes, chat
        self._lanes = Lanes(pair, batch_size) if batch_size > 1 else None
        self._likelihoods = {} if likelihoods is None else likelihoods
        self._on_answer, self._on_progress = on_answer, on_progress
        self._warm = False

    @property
    def eot_token_id(self) -> int:
        """The id of the end of a text."""
        end: int | None = self.tokenizer.eos_token_id
        return min(self._pair.eos_ids, default=0) if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text whose likelihood is asked without any context."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are told apart by."""
        return self._pair.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text: with the tokenizer's own beginning of text, unless the text or a template brings one."""
        begin = self.tokenizer.bos_token
        begun = self._chat or (begin is not None and string.startswith(begin))
        special = not begun if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer(string, add_special_tokens=special)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as the pair's chat template writes them; without a generation prompt the last one is gone on with."""
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return with_template(self.tokenizer, chat_history, **how)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The strategy's answers, in the order of the requests."""
        asked, seen = [], Counter[tuple[str, int]]()
        for request in requests:
            key = request.task_name or "", request.doc_id or 0
            asked.append(Asked(*key, seen[key]))
            seen[key] += 1
        jobs = [self._request(request, each.id) for request, each in zip(requests, asked, strict=True)]
        texts: dict[int, str] = {}
        self._warm_up(jobs[:1])
        for place, run in self._answers(jobs):
            texts[place] = run.text
            self.cache_hook.add_partial("generate_until", requests[place].args, run.text)
            if self._on_answer is not None:
                self._on_answer(asked[place], run)
            self._tell(f"{asked[place].task} {self._strategy.spec}", len(texts), len(requests))
        return [texts[place] for place in range(len(requests))]

    def _request(self, request: Instance, id_: str) -> Request:
        context, settings = request.args
        try:
            how = Generation.of(settings, self._given)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"task {request.task_name}: generation_kwargs: {first_line(error)}") from error
        self._notes.not_honoured |= {f"{request.task_name}: {each}" for each in how.not_honoured}
        return Request(
            prompt_ids=self._room_for(self.tok_encode(context) or [self.prefix_token_id], how.max_new_tokens),
            sampling=how.sampling,
            max_new_tokens=how.max_new_tokens,
            seed=how.seed,
            prompt_id=id_,
            stop=how.stop,
            prompt=context,
            raw=True,
        )

    def _room_for(self, prompt: Sequence[int], answer: int, *, written: bool = True) -> Sequence[int]:
        """The end of a prompt that leaves room for its answer, which the model writes or a task gives.

        Raises:
            UsageError: the answer alone fills the context.
        """
        if self._pair.context is None or len(prompt) + answer <= self._pair.context:
            return prompt
        room = self._pair.context - answer
        if room < 1:
            hint = "use a smaller --max-new-tokens" if written else "the task sets this length, and no flag shortens it"
            raise UsageError(
                f"answers of {answer} tokens leave no room for a prompt in the pair's context of {self._pair.context};"
                f" {hint}."
            )
        self._notes.shortened.add(hash(tuple(prompt)))
        return prompt[-room:]

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(what, done, total)

    def _warm_up(self, jobs: Sequence[Request]) -> None:
        """A few uncounted tokens before the first answer, which would be slower."""
        if not self._warm:
            for job in jobs:
                tokens = warm_up_tokens(self._strategy)
                decode(self._pair, self._strategy, replace(job, max_new_tokens=min(tokens, job.max_new_tokens)))
                self._warm = True

    def _answers(self, jobs: Sequence[Request]) -> Generator[Ended[Run]]:
        if self._lanes is not None:
            yield from self._lanes.run(partial(_decoded, self._strategy, job) for job in jobs)
            return
        for place, job in enumerate(jobs):
            yield Ended(place, decode(self._pair, self._strategy, job))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The target's, of continuations after their contexts; a context that is too long loses its beginning."""
        reader = Reader(self._pair.target)
        found = []
        for texts, context, continuation in requests:
            prompt = self._room_for(context, len(continuation) - 1, written=False)
            key = tuple(prompt), tuple(continuation)
            if key not in self._likelihoods:
                self._likelihoods[key] = reader(prompt, continuation)
            answer = (self._likelihoods[key].total, self._likelihoods[key].greedy)
            found.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
                self._tell("likelihoods", len(found), len(requests))
        reader.end()
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The target's log-probability of whole texts, window by window where they are longer than its context."""
        if self.backend == "seq2seq":
            raise UsageError("a task scores the likelihood of whole texts, which an encoder-decoder cannot compute.")
        totals = []
        for request in requests:
            [text] = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(
                token_list=ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self._pair.context or len(ids) + 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(parts)))
            self._tell("texts", len(totals), len(requests))
        return totals


def _decoded(strategy: Strategy, request: Request, pair: Pair) -> Run:
    return decode(pair, strategy, request)
