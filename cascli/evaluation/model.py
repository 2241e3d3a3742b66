"""A strategy as a model of lm-evaluation-harness; importing this module imports that package."""

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
"""Likelihoods by prompt and continuation."""


@dataclass(frozen=True)
class DocumentRepeat:
    """A document of a task, and the number of its repeat."""

    task: str
    document: int
    repeat: int

    @property
    def id(self) -> str:
        """Id from which its random numbers are derived, the same for every strategy."""
        return f"{self.task}/{self.document}" + (f"#{self.repeat}" if self.repeat else "")


OnAnswer = Callable[[DocumentRepeat, Run], None]


@dataclass
class Notes:
    """What to report about an evaluation in addition to its numbers."""

    not_honoured: set[str] = field(default_factory=set)
    shortened: set[int] = field(default_factory=set)
    """Hashes of the prompts whose beginning was cut off; every strategy gets the same prompts, which count once."""


class StrategyModel(TemplateLM):
    """A model with the strategy's answers and the target's likelihoods, since a strategy has none of its own."""

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
        """Create the model.

        Args:
            pair: the loaded pair.
            strategy: writes the answers.
            given: sampling settings that take precedence over those of tasks.
            notes: collects notes during the evaluation.
            chat: whether prompts are made by `apply_chat_template`, which adds its own beginning of text.
            batch_size: number of answers decoded concurrently.
            likelihoods: likelihoods known so far, extended in place; they are the same for every strategy.
            on_answer: called with each answer as it ends.
            on_progress: called with what was answered last, the number of answered requests, and the total.
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
        """Id of the end-of-text token."""
        end: int | None = self.tokenizer.eos_token_id
        return min(self._pair.eos_ids, default=0) if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that is put before a text whose likelihood is requested without context."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Name that distinguishes caches of requests."""
        return self._pair.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, with the tokenizer's own beginning of text unless the text or a template already has one."""
        begin = self.tokenizer.bos_token
        begun = self._chat or (begin is not None and string.startswith(begin))
        special = not begun if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer(string, add_special_tokens=special)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Format turns with the pair's chat template; without a generation prompt, the last turn is continued."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return with_template(self.tokenizer, chat_history, **options)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the strategy's answers, in the order of the requests."""
        documents, seen = [], Counter[tuple[str, int]]()
        for request in requests:
            key = request.task_name or "", request.doc_id or 0
            documents.append(DocumentRepeat(*key, seen[key]))
            seen[key] += 1
        jobs = [self._request(request, each.id) for request, each in zip(requests, documents, strict=True)]
        texts: dict[int, str] = {}
        self._warm_up(jobs[:1])
        for place, run in self._answers(jobs):
            texts[place] = run.text
            self.cache_hook.add_partial("generate_until", requests[place].args, run.text)
            if self._on_answer is not None:
                self._on_answer(documents[place], run)
            self._report_progress(f"{documents[place].task} {self._strategy.spec}", len(texts), len(requests))
        return [texts[place] for place in range(len(requests))]

    def _request(self, request: Instance, id_: str) -> Request:
        context, settings = request.args
        try:
            generation = Generation.of(settings, self._given)
        except (TypeError, ValueError, AttributeError, UsageError) as error:
            raise UsageError(f"task {request.task_name}: generation_kwargs: {first_line(error)}") from error
        self._notes.not_honoured |= {f"{request.task_name}: {each}" for each in generation.not_honoured}
        return Request(
            prompt_ids=self._truncate_prompt(
                self.tok_encode(context) or [self.prefix_token_id], generation.max_new_tokens
            ),
            sampling=generation.sampling,
            max_new_tokens=generation.max_new_tokens,
            seed=generation.seed,
            prompt_id=id_,
            stop=generation.stop,
            prompt=context,
            raw=True,
        )

    def _truncate_prompt(self, prompt: Sequence[int], answer: int, *, written: bool = True) -> Sequence[int]:
        """Return the end of a prompt that leaves room for its answer, which the model writes or a task provides.

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

    def _report_progress(self, what: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(what, done, total)

    def _warm_up(self, jobs: Sequence[Request]) -> None:
        """Decode a few uncounted tokens before the first answer, which would otherwise be slower."""
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
        """Return the target's log-likelihoods of continuations; a context that is too long loses its beginning."""
        reader = Reader(self._pair.target)
        answers = []
        for texts, context, continuation in requests:
            # A context of spaces is empty too, since they have been moved to the continuation.
            prompt = self._truncate_prompt(context or [self.prefix_token_id], len(continuation) - 1, written=False)
            key = tuple(prompt), tuple(continuation)
            if key not in self._likelihoods:
                self._likelihoods[key] = reader(prompt, continuation)
            answer = (self._likelihoods[key].total, self._likelihoods[key].greedy)
            answers.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
                self._report_progress("likelihoods", len(answers), len(requests))
        reader.end()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the target's log-probability of whole texts, window by window if they are longer than its context."""
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
            self._report_progress("texts", len(totals), len(requests))
        return totals


def _decoded(strategy: Strategy, request: Request, pair: Pair) -> Run:
    return decode(pair, strategy, request)
