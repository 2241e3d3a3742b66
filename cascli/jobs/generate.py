"""One prompt, one strategy, one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import index
from typing import Any, cast

from cascli.chat import Conversation, encode
from cascli.engine import Decoding, Request, StreamEvent
from cascli.errors import UsageError
from cascli.files import printed
from cascli.models.pair import Pair
from cascli.prompts import Prompt
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import RandomNumbers
from cascli.settings import Resolved, checked, default_strategy, resolve
from cascli.strategies import Strategy, parse
from cascli.trace import Handover, Run, block_length

WARM_UP_TOKENS = 4
"""Minimum length of a warm-up answer."""


def warm_up_tokens(strategy: Strategy) -> int:
    """Length of an untimed warm-up answer: more than one whole round, so that everything that needs it is compiled."""
    return max(WARM_UP_TOKENS, block_length(strategy.params) + 2)


OnRound = Callable[[StreamEvent | Handover], None]


def sampling_of(settings: Resolved) -> Sampling:
    """The sampling part of resolved settings."""
    return Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )


def request_for(settings: Resolved, prompt_ids: Sequence[int], **more: Any) -> Request:
    """Build a request from resolved settings; `more` holds request fields that settings do not cover."""
    return Request(
        prompt_ids=prompt_ids,
        sampling=sampling_of(settings),
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        stop=settings.stop,
        system=settings.system,
        raw=settings.raw,
        top=settings.kept,
        **more,
    )


def request_of_turn(
    pair: Pair,
    turn: str,
    conversation: Conversation,
    settings: Resolved,
    prompt_id: str = "",
    category: str = "",
    ids: Sequence[int] = (),
    **more: Any,
) -> Request:
    """Build the request for the next turn of a conversation, preceded by the turns so far.

    `ids` are the prompt's token ids, used instead of the text; `more` holds further fields of the request.
    """
    about = {"prompt": None if ids else turn, "prompt_id": prompt_id, "category": category}
    ids = list(ids) or encode(pair, turn, conversation, raw=settings.raw)
    return request_for(settings, ids, **about, turn=len(conversation.past), **more)


def first_ids(pair: Pair, prompt: Prompt, settings: Resolved) -> list[int]:
    """Token ids of a prompt's first turn."""
    return list(prompt.ids) or encode(pair, prompt.turns[0], Conversation(settings.system), raw=settings.raw)


def texts_of(runs: Iterable[Run]) -> list[list[int]]:
    """Token ids of prompts with their answers; of a conversation only the last turn, whose prompt holds the others."""
    kept = list[Run]()
    for run in runs:
        if kept and run.turn > 0 and kept[-1].prompt_id == run.prompt_id:
            kept.pop()
        kept.append(run)
    return [[*(run.prompt_token_ids or ()), *run.token_ids] for run in kept]


def decode(pair: Pair, strategy: Strategy, request: Request, on_round: OnRound | None = None) -> Run:
    """Run to the end and pass each event to `on_round`; the pair is released even if the run ends early."""
    return finished(Decoding(pair, strategy, request), on_round)


def finished(decoding: Decoding, on_round: OnRound | None = None) -> Run:
    """The run of a decoding that has not started: `decode` for those who may have to interrupt it."""
    with closing(cast("Generator[StreamEvent | Handover]", decoding.steps())) as events:
        for event in events:
            if on_round is not None:
                on_round(event)
    return decoding.run()


class Answering:
    """Answers the turns of a conversation one round at a time, each turn with the answers so far as its context."""

    def __init__(
        self,
        pair: Pair,
        strategy: Strategy,
        prompt: Prompt,
        settings: Resolved,
        earlier: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._pair, self._strategy, self._prompt, self._settings = pair, strategy, prompt, settings
        self._earlier = earlier
        self._decoding: Decoding | None = None

    def __iter__(self) -> Iterator[StreamEvent | Handover | Run]:
        """Yield every round and decision as it is made, and each turn's run when it has ended."""
        conversation = Conversation(self._settings.system)
        for turn in self._prompt.turns:
            named = self._prompt.id, self._prompt.category, self._prompt.ids
            request = request_of_turn(self._pair, turn, conversation, self._settings, *named, earlier=self._earlier)
            self._decoding = Decoding(self._pair, self._strategy, request)
            yield from self._decoding.steps()
            run = self._decoding.run()
            self._decoding = None
            conversation = conversation.with_answer(self._pair, turn, run)
            yield run

    def interrupt(self) -> Run | None:
        """End the answer in progress and return what it has so far; None if there is nothing yet."""
        return None if self._decoding is None else self._decoding.interrupt()


def converse(
    pair: Pair, strategy: Strategy, prompt: Prompt, settings: Resolved, on_round: OnRound | None = None
) -> Iterator[Run]:
    """Answer the turns of a conversation in order, each with the answers so far as its context."""
    for event in Answering(pair, strategy, prompt, settings):
        if isinstance(event, Run):
            yield event
        elif on_round is not None:
            on_round(event)


def settings_of(pair: Pair, *, stop: str | Sequence[str] | None = None, **given: Any) -> Resolved:
    """Complete keyword arguments from the pair's file and the built-in defaults.

    Raises:
        UsageError: a value out of range.
    """
    if stop is not None:
        if not isinstance(stop, Iterable):
            raise UsageError(f"stop: expected a string or several (got {printed(stop)})")
        given["stop"] = [stop] if isinstance(stop, str) else list(stop)
    return resolve(checked({key: value for key, value in given.items() if value is not None}), pair.defaults)


def single(strategy: str | Strategy | None, pair: Pair, settings: Resolved) -> Strategy:
    """Return the given strategy, else that of the pair's file, else the default.

    Raises:
        UsageError: an unknown name or key, a value out of range, or several strategies in the pair's file.
    """
    if strategy:
        return chosen(strategy, settings)
    first, *more = settings.strategy or [default_strategy(pair)]
    if more:
        raise UsageError(f"strategy: the pair's file names {1 + len(more)}: choose one.")
    return chosen(first, settings)


def chosen(strategy: str | Strategy, settings: Resolved) -> Strategy:
    """Return a strategy as it is, or parse it from text.

    Raises:
        UsageError: an unknown name or key, or a value out of range.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if not isinstance(strategy, str):
        raise UsageError(f"strategy: expected a string or a Strategy (got {printed(strategy)})")
    return parse(strategy, settings.num_speculative_tokens)


Prompts = str | Prompt | Sequence[str | Prompt]
IdPrompts = Sequence[int] | Sequence[Sequence[int]]


def conversations(prompts: Prompts | None, prompt_ids: IdPrompts | None = None) -> list[Prompt]:
    """Return prompts as they are, and convert texts or lists of token ids, whose position becomes their id.

    A file of prompts without ids gets the same ones. A text or list of token ids that is given alone gets no id, so
    that its random numbers are those of `generate`.

    Raises:
        UsageError: there is no prompt, or an empty one, or both arguments are given.
    """
    if (prompts is None) == (prompt_ids is None):
        raise UsageError("give either prompts or prompt_ids.")
    if prompts is None:
        return _of_ids(prompt_ids)
    if isinstance(prompts, str):
        prompts = Prompt((prompts,))
    several = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    converted = [
        Prompt((each,), str(place)) if isinstance(each, str) else each for place, each in enumerate(several, 1)
    ]
    if len(converted) > 1:
        converted = [
            replace(each, id=str(place)) if isinstance(each, Prompt) and not each.id else each
            for place, each in enumerate(converted, 1)
        ]
    invalid = next((each for each in converted if not isinstance(each, Prompt)), None)
    if invalid is not None:
        raise UsageError(f"prompts: expected strings (got {printed(invalid)})")
    if not converted or not all(prompt.ids or (prompt.turns and all(prompt.turns)) for prompt in converted):
        raise UsageError("give at least one prompt, and no empty ones.")
    [(often, count)] = Counter(prompt.id for prompt in converted).most_common(1)
    if count > 1:
        raise UsageError(f"prompts: {count} have the id {often!r}, which sets their random numbers; give each its own.")
    return converted


def _of_ids(prompt_ids: Any) -> list[Prompt]:
    """Convert one list of token ids, or several."""
    given: list[Any] = list(prompt_ids) if isinstance(prompt_ids, Iterable) else [prompt_ids]
    one = not any(isinstance(each, Iterable) and getattr(each, "ndim", 1) for each in given)
    several = [_token_ids(each) for each in ([given] if one else given)]
    if not several or not all(several):
        raise UsageError("give at least one prompt, and no empty ones.")
    return [Prompt(("",), "" if one else str(place), ids=tuple(each)) for place, each in enumerate(several, 1)]


def _token_ids(given: Iterable[int]) -> list[int]:
    """Convert integers of any kind, including those of a tensor.

    Raises:
        UsageError: one of them is not an integer.
    """
    try:
        return [index(each) for each in given]
    except TypeError:
        raise UsageError(f"prompt_ids: expected integers (got {printed(given)})") from None


def generate(
    pair: Pair,
    prompt: str | None = None,
    *,
    prompt_ids: Sequence[int] | None = None,
    strategy: str | Strategy | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    num_speculative_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    system: str | None = None,
    raw: bool | None = None,
    top: int | None = None,
    on_round: OnRound | None = None,
    uniforms: RandomNumbers | None = None,
    earlier: Iterable[Run] | None = None,
) -> Run:
    """Answer one prompt with one strategy.

    Values that are not given come from the pair's file, then from the built-in defaults (temperature 1).

    Args:
        pair: from `load_pair`.
        prompt: text, put through the chat template unless `raw`.
        prompt_ids: token ids instead of a prompt; the chat template is not applied.
        strategy: a name with parameters, such as `speculative-cascade:rule=opt,alpha=0.3,k=4`; by default
            `speculative-cascade` with the rule token-v3, drafting by prompt lookup if the pair has no draft model, and
            `speculative` if an EAGLE-3 head drafts.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy.
        top_k: keep the most likely tokens; 0 is off.
        top_p: keep the smallest set of this mass; 1 is off.
        seed: seed of the random numbers.
        num_speculative_tokens: k, if the strategy does not set it.
        stop: strings that end the answer; they are not part of it.
        system: system prompt for the chat template.
        raw: skip the chat template.
        top: number of each model's likeliest tokens kept in the trace per position, with the numbers that rules test;
            0 (the default) keeps neither.
        on_round: called with every round, and a cascade's decision, as it is made.
        uniforms: random numbers to use instead of the seed's; see `cascli.sampling.uniforms`.
        earlier: earlier runs whose texts a drafter with `remember` also searches, the latest last.

    Raises:
        UsageError: a value out of range, an unknown strategy, or a prompt that is empty or too long.
        RunError: out of memory.
    """
    settings = settings_of(
        pair,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_speculative_tokens=num_speculative_tokens,
        stop=stop,
        system=system,
        raw=raw,
        top=top,
    )
    if (prompt is None) == (prompt_ids is None):
        raise UsageError("give either a prompt or prompt_ids.")
    if prompt_ids is None:
        if not isinstance(prompt, str):
            raise UsageError(f"prompt: expected a string (got {printed(prompt)})")
        prompt_ids = encode(pair, prompt, Conversation(settings.system), raw=settings.raw)
    return decode(
        pair,
        single(strategy, pair, settings),
        request_for(
            settings,
            _token_ids(prompt_ids),
            prompt=prompt,
            uniforms=uniforms,
            earlier=None if earlier is None else texts_of(earlier),
        ),
        on_round,
    )
