"""An ongoing conversation: one loaded pair, successive turns, and settings that may change between them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from cascli.chat import Conversation
from cascli.engine import Decoding, check_models
from cascli.errors import ContextFull, RunError, UsageError
from cascli.jobs.generate import OnRound, finished, request_of_turn
from cascli.models.pair import Pair
from cascli.settings import Resolved, checked
from cascli.strategies import Strategy, parse
from cascli.trace import Run, with_params


class Chat:
    """The conversation so far, and the settings for the next turn; a rejected change leaves everything as it was."""

    def __init__(self, pair: Pair, strategy: Strategy, settings: Resolved) -> None:
        """Start a conversation.

        Raises:
            UsageError: the strategy needs a draft model that the pair does not have.
        """
        check_models(pair, strategy)
        self.pair, self.strategy, self.settings = pair, strategy, settings
        self.conversation = Conversation(settings.system)
        self._stop_of_auto = False
        """Whether the strategy's stop, if its k is `auto`, is the one that `set_k` chose."""
        self.last: Run | None = None
        """The last answer that was completed."""
        self.last_turn: str | None = None
        """The last turn, whether or not its answer was completed."""

    def ask(self, turn: str, on_round: OnRound) -> Run:
        """Answer a turn; what an answer had that was final before Ctrl-C or an error stays in the conversation.

        Raises:
            UsageError: an empty turn, or a conversation that no longer fits the pair's context.
            RunError: out of memory, or out of the context of a draft model with its own tokenizer.
            KeyboardInterrupt: during an answer; the conversation can continue with the next turn.
        """
        self.last_turn = turn
        try:
            request = request_of_turn(self.pair, turn, self.conversation, self.settings)
            decoding = Decoding(self.pair, self.strategy, request)
        except ContextFull as error:
            if not self.conversation.past:
                raise
            raise ContextFull(f"{error}\nThe turns before it count too; /new begins another conversation.") from None
        try:
            run = finished(decoding, on_round)
        except (KeyboardInterrupt, RunError):
            with suppress(Exception):  # what ended the answer is reported, whatever state it has left behind
                part = decoding.interrupt()
                if part is not None and part.text:
                    self.conversation = self.conversation.with_answer(self.pair, turn, part)
            raise
        self.conversation = self.conversation.with_answer(self.pair, turn, run)
        self.last = run
        return run

    def set_strategy(self, text: str) -> None:
        """Use this strategy from the next turn on.

        Raises:
            UsageError: the strategy cannot be parsed, or needs something that the pair lacks.
        """
        self._set_strategy(parse(text, self.settings.num_speculative_tokens))
        self._stop_of_auto = False

    def set_parameter(self, key: str, value: str) -> None:
        """Change one parameter of the current strategy.

        Raises:
            UsageError: the strategy has no such parameter, or does not accept the value.
        """
        self._check_parameter(key)
        self._set_strategy(parse(with_params(self.strategy.name, {**self.strategy.params, key: value})))

    def set_k(self, value: str) -> None:
        """Draft this many tokens per round, also with strategies chosen later; `auto` is for the current one alone.

        A number ends the stop that `auto` brought with it.

        Raises:
            UsageError: the number is out of range, or the current strategy does not draft ahead.
        """
        before = dict(self.strategy.params)
        if value == "auto":
            self.set_parameter("k", value)
            self._stop_of_auto = self._stop_of_auto or "stop" not in before
            return
        settings = self._changed("num_speculative_tokens", value, "k")
        self._check_parameter("k")
        if self._stop_of_auto and before["k"] == "auto":
            del before["stop"]
        self._set_strategy(parse(with_params(self.strategy.name, {**before, "k": value})))
        self.settings = settings

    def set_setting(self, key: str, value: str) -> None:
        """Change a setting, given by its long name with underscores.

        Raises:
            UsageError: the value has the wrong type or is out of range.
        """
        self.settings = self._changed(key, value, key)

    def set_system(self, text: str | None) -> None:
        """Replace or remove the system prompt; the turns so far are kept."""
        self.settings = replace(self.settings, system=text)
        self.conversation = replace(self.conversation, system=text)

    def forget(self) -> None:
        """Start a new conversation; its first turn uses the random numbers of a first turn again."""
        self.conversation = Conversation(self.settings.system)

    def _changed(self, key: str, value: str, name: str) -> Resolved:
        return replace(self.settings, **checked({key: value}, spell=lambda _: name).given())

    def _check_parameter(self, key: str) -> None:
        if key not in self.strategy.params:
            known = ", ".join(self.strategy.params) or "no parameters"
            raise UsageError(f"strategy '{self.strategy.spec}' has no {key}; it takes {known}.")

    def _set_strategy(self, strategy: Strategy) -> None:
        check_models(self.pair, strategy)
        self.strategy = strategy
