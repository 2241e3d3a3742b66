"""Turn a conversation into the token ids of a prompt."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cascli.decoding.detokenizer import Speller, Stream
from cascli.errors import UsageError, first_line
from cascli.models.pair import Pair
from cascli.trace import Run

TEMPLATE_SECONDS = 10.0
"""Time limit for a chat template, which is code by the tokenizer's author; those of real models take milliseconds."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the enclosed Python code, in whichever thread it runs, when the time is up."""
    thread, over, lock = threading.get_ident(), False, threading.Lock()

    def end() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeoutError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


@dataclass(frozen=True)
class Conversation:
    """The conversation so far: pairs of user turn and answer, and the system prompt if any."""

    system: str | None = None
    """An empty string counts as a system prompt; with None, a template may insert its own."""
    past: tuple[tuple[str, str], ...] = ()

    def with_prefix(self, prefix: str) -> Conversation:
        """This conversation with `prefix` before every user turn."""
        return Conversation(self.system, tuple((prefix + question, answer) for question, answer in self.past))

    def messages(self, turn: str) -> list[dict[str, str]]:
        """The messages for a chat template, ending with the user's turn."""
        start = [{"role": "system", "content": self.system}] if self.system is not None else []
        for question, answer in self.past:
            start += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*start, {"role": "user", "content": turn}]

    def with_answer(self, pair: Pair, turn: str, run: Run) -> Conversation:
        """This conversation with one more exchange."""
        return Conversation(self.system, (*self.past, (turn, answer_with_thinking(pair, run))))


def answer_with_thinking(pair: Pair, run: Run) -> str:
    """An answer's text with the two tokens between which it thinks, even if they are markup, which texts leave out.

    By them, chat templates find the thinking of earlier answers, to drop it.
    """
    speller = Speller(pair.tokenizer)
    hidden = [token for token in pair.thinking or () if not speller.text([token])]
    ids = run.token_ids[:-1] if run.finish_reason == "stop" else run.token_ids  # a stop text is not part of an answer
    if not set(hidden) & set(ids):
        return run.text
    stream, text, length, copied = Stream(speller), "", 0, 0
    for token in ids:
        length = min(length + len(stream.push(token)), len(run.text))
        if token in hidden:
            text += run.text[copied:length] + speller.token(token)
            copied = length
    return text + run.text[copied:]


def encode(pair: Pair, turn: str, conversation: Conversation | None = None, *, raw: bool = False) -> list[int]:
    """The prompt's token ids, built with the tokenizer's chat template if it has one and `raw` is off.

    The pair's prefix is put before every user turn, unless `raw`.

    Raises:
        UsageError: the pair has no tokenizer.
    """
    conversation = conversation or Conversation()
    tokenizer = pair.tokenizer
    if tokenizer is None:
        raise UsageError(
            f"pair '{pair.name}' has a vocabulary of {pair.vocab} tokens, too small for text; give prompt_ids instead."
        )
    if not raw:
        conversation, turn = conversation.with_prefix(pair.config.prefix), pair.config.prefix + turn
    if raw or not getattr(tokenizer, "chat_template", None):
        before = [conversation.system] if conversation.system else []
        lines = [*before, *(line for exchange in conversation.past for line in exchange), turn]
        return list(tokenizer(_clean("\n".join(lines)))["input_ids"])
    try:
        text = with_template(tokenizer, conversation.messages(turn), add_generation_prompt=True)
    except UsageError as error:
        raise UsageError(f"{error}\nTry --raw.") from None
    return list(tokenizer(_clean(text), add_special_tokens=False)["input_ids"])


def with_template(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> str:
    """Render messages with the tokenizer's chat template, which is third-party code.

    Raises:
        UsageError: the template does not finish in time, or rejects the messages or leaves out the last one.
    """
    text, last = _rendered(tokenizer, messages, options), messages[-1]
    # Templates of models for images may take only lists of parts, and render nothing of a text: then any other text
    # gives the same prompt. That its own is not found may only mean that it was escaped.
    if last["content"].strip() not in text:
        other = [*messages[:-1], {**last, "content": f"{last['content']} and more"}]
        if _rendered(tokenizer, other, options) == text:
            raise UsageError("the pair's chat template leaves out what the last message says.")
    return text


def _rendered(tokenizer: Any, messages: list[dict[str, str]], options: dict[str, bool]) -> str:
    try:
        with ended_after(TEMPLATE_SECONDS):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TimeoutError:
        raise UsageError(f"the pair's chat template did not finish within {TEMPLATE_SECONDS:g} s.") from None
    except Exception as error:
        raise UsageError(f"the pair's chat template rejects this conversation: {first_line(error)}") from None


def _clean(text: str) -> str:
    """The text, if it is valid Unicode.

    Raises:
        UsageError: it contains bytes or surrogates that do not encode a character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8 (at character {error.start + 1}).") from None
    return text
