"""The answer as it grows: where it ends, and the text that can be shown so far. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cascli.decoding.detokenizer import Speller, StopStrings, Stream
from cascli.trace import Emitted, FinishReason, Round


class Answer:
    """Collects rounds until an end-of-text token, a stop string, or `limit` tokens."""

    def __init__(self, speller: Speller, eos_ids: Collection[int], stop: Sequence[str], limit: int) -> None:
        self._eos_ids = eos_ids
        self._stops = StopStrings(stop)
        self._stop_ids = speller.markup(stop)
        self._stream = Stream(speller)
        self._streamed = ""
        self._limit = limit
        self.rounds: list[Round] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def add(self, round_: Round) -> tuple[Round, list[str]]:
        """Add a round; return it, cut where the text ends, and the text that each token completes.

        If the text ends inside a drafted block, the drafts after the end are cut off too: whether the target agrees
        with them says nothing about this text, and they would count in every rate.
        """
        kept: list[Emitted] = []
        pieces: list[str] = []
        for token in round_.emitted:
            kept.append(token)
            pieces.append(self._append(token.id))
            if self.finish_reason is not None:
                break
        if len(kept) < len(round_.emitted):
            round_ = round_.model_copy(update={"emitted": kept, "drafted": round_.drafted[: len(kept)]})
        self.rounds.append(round_)
        return round_, pieces

    def _append(self, token: int) -> str:
        self.token_ids.append(token)
        shown, stopped = self._stops.push(self._stream.push(token))
        if token in self._eos_ids:
            self.finish_reason = "eos"
        elif stopped or token in self._stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and not stopped:
            tail, stopped = self._stops.push(self._stream.flush())
            shown += tail + ("" if stopped else self._stops.flush())
            self.finish_reason = "stop" if stopped else self.finish_reason
        self._streamed += shown
        return shown

    @property
    def text(self) -> str:
        """The answer as it was streamed: without markup, up to the stop string if there was one.

        While it has not ended, or if it was interrupted, what is held back is part of it.
        """
        ended = self.finish_reason not in (None, "interrupted")
        return self._streamed if ended else self._streamed + self._stops.pending + self._stream.flush()
