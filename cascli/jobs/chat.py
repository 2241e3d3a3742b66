"""A conversation that goes on: one loaded pair, turns one after the other, and settings that change between them."""

from __future__ import annotations

from dataclasses import replace

from cascli.chat import Conversation
from cascli.engine import StreamEvent, check_models
from cascli.errors import UsageError
from cascli.jobs.generate import OnRound, decode, request_of_turn
from cascli.models.pair import Pair
from cascli.settings import Resolved, checked
from cascli.strategies import Strategy, parse
from cascli.trace import Handover, Run, with_params


class Chat:
    """What was said, and how the next turn will be answered; a change that is refused leaves all as it was."""

    def __init__(self, pair: Pair, strategy: Strategy, settings: Resolved) -> None:
        """Begin.

        Raises:
            UsageError: the strategy asks a draft model that the pair does not have.
        """
        check_models(pair, strategy)
        self.pair, self.strategy, self.settings = pair, strategy, settings
        self.conversation = Conversation(settings.system)
        self.last: Run | None = None
        """The last answer that came to its end."""
        self.asked: str | None = None
        """The last turn, whatever became of its answer."""

    def ask(self, turn: str, on_round: OnRound) -> Run:
        """Answer a turn; an answer that is cut short by Ctrl-C stays in the conversation as far as it came.

        Raises:
            UsageError: an empty turn, or a conversation that has become longer than the pair's context.
            RunError: out of memory.
            KeyboardInterrupt: while answering; the next turn can be asked.
        """
        self.asked = turn
        written: list[str] = []

        def note(step: StreamEvent | Handover) -> None:
            if isinstance(step, StreamEvent):
                written.extend(step.pieces)
            elif step.deferred:
                written.clear()
            on_round(step)

        try:
            request = request_of_turn(self.pair, turn, self.conversation, self.settings)
            run = decode(self.pair, self.strategy, request, note)
        except KeyboardInterrupt:
            text = "".join(written)
            if text:
                self.conversation = self.conversation.with_answer(turn, text)
            raise
        self.conversation = self.conversation.with_answer(turn, run.text)
        self.last = run
        return run

    def take_strategy(self, text: str) -> None:
        """Answer by this strategy from now on.

        Raises:
            UsageError: it cannot be read, or the pair lacks what it asks.
        """
        self._take(parse(text, self.settings.num_speculative_tokens))

    def take_parameter(self, key: str, value: str) -> None:
        """Change one parameter of the present strategy.

        Raises:
            UsageError: it has no such parameter, or not this value.
        """
        self._has(key)
        self._take(parse(with_params(self.strategy.name, {**self.strategy.params, key: value})))

    def take_k(self, value: str) -> None:
        """Draft this many tokens a round, with strategies to come as well.

        Raises:
            UsageError: out of range, or the present strategy does not draft ahead.
        """
        settings = self._changed("num_speculative_tokens", value, "k")
        self.take_parameter("k", value)
        self.settings = settings

    def take_setting(self, key: str, value: str) -> None:
        """Change a setting by its long name with underscores.

        Raises:
            UsageError: of the wrong type or out of range.
        """
        self.settings = self._changed(key, value, key)

    def take_system(self, text: str | None) -> None:
        """Give the conversation another system text, or none; what was said stays."""
        self.settings = replace(self.settings, system=text)
        self.conversation = replace(self.conversation, system=text)

    def forget(self) -> None:
        """Begin a new conversation; its first turn has the random numbers of a first turn again."""
        self.conversation = Conversation(self.settings.system)

    def _changed(self, key: str, value: str, name: str) -> Resolved:
        return replace(self.settings, **checked({key: value}, spell=lambda _: name).given())

    def _has(self, key: str) -> None:
        if key not in self.strategy.params:
            takes = ", ".join(self.strategy.params) or "no parameters"
            raise UsageError(f"strategy '{self.strategy.spec}' has no {key}; it takes {takes}.")

    def _take(self, strategy: Strategy) -> None:
        check_models(self.pair, strategy)
        self.strategy = strategy
