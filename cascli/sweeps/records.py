"""Results on disk: one line of JSON for every finished cell and prompt; a killed sweep loses what it was at."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, cast

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cascli.analysis.matching import Matched, strategies_of
from cascli.errors import RunError, UsageError
from cascli.files import JSON_BYTES, bounded, named, write
from cascli.settings import first_problem
from cascli.strategies import parse
from cascli.sweeps.plan import Cell, SweepPlan
from cascli.trace import Distances, block_length
from cascli.version import __version__


@lru_cache
def drafts_ahead(spec: str) -> bool:
    """Whether a strategy drafts several tokens a round."""
    return block_length(parse(spec).params) > 0


class Record(BaseModel):
    """What one strategy did with one prompt."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    cell: Cell
    problem: str
    category: str = ""
    """Of the prompt, where its file has one."""
    error: str | None = None
    """What went wrong, in which case everything below is empty."""
    quality: float | None = None
    counts: list[int] = []
    """Of the answer's words and n-grams, from which corpus BLEU is made over all answers; only with that metric."""
    text: str = ""
    token_ids: list[int] = []
    finish_reason: str | None = None
    seconds: float | None = None
    batch_size: int = 1
    """How many answers were under way at once; from 2 on `seconds` are this one's share of the time of all."""
    target_calls: int = 0
    draft_calls: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int | None = None
    """Drafted tokens that were tested: those kept, and the first rejected one of each round; None by blocks."""
    rounds: int | None = None
    """Rounds of a strategy that drafts ahead, 0 of others; in older folders those of turns in which something was
    drafted, or None."""
    acceptance_histogram: list[int] | None = None
    """Entry j: in how many rounds exactly j drafted tokens were accepted; None where nothing was drafted, and in older
    folders."""
    turns: int | None = None
    """How many turns the prompt has, each with an answer; None in older folders."""
    cut: int | None = None
    """How many of these answers ended at the length limit; None in older folders."""
    looped: int | None = None
    """Tokens in a repetition; None in older folders."""
    distances: Distances | None = None
    """From both models, over all turns; None where they are not known, and in older folders."""
    deferral_rate: float | None = None
    mean_tv: float | None = None
    log_likelihood: float | None = None
    """Mean log-probability of the answer's tokens under the target at temperature 1, in nats; if it was asked for."""
    flops: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What no other record of a sweep has."""
        return self.cell.key, self.problem

    @property
    def rounds_known(self) -> int | None:
        """Its rounds, also of an older folder: where nothing was drafted each was a call of the target."""
        if self.rounds is None:
            return None
        return self.target_calls if not self.drafted and drafts_ahead(self.cell.strategy) else self.rounds


class Header(BaseModel):
    """What the records of a folder were made from."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal[
        "cascli.sweep/1",
        "cascli.sweep/1.1",
        "cascli.sweep/1.2",
        "cascli.sweep/1.3",
        "cascli.sweep/1.4",
        "cascli.sweep/1.5",
    ] = Field("cascli.sweep/1.5", alias="schema")
    fingerprint: str
    version: str = __version__
    plan: SweepPlan
    metric: str
    """How answers are scored."""
    date: str | None = None
    """When it was started, or gone on with, in UTC as ISO 8601 has it; None in older folders."""
    command: str = ""
    """The command line, quoted for a shell, or the call from Python."""
    pair: str | None = None
    """The pair's name; None in older folders."""
    environment: dict[str, str] = {}
    """Machine, versions and threads, as those of a run; of each model its source and precision."""
    matched: list[str] = []
    """The strategies that the plan's budgets gave."""
    budgets: list[Matched] = []
    """How near each rule came to each budget at each temperature, also those that met none."""
    calibration: list[str] = []
    """Ids of the prompts on which that was found, beside those that are measured; empty in older folders."""
    asked: dict[str, str] = {}
    """Hashes of what was asked: of every problem by its id, and of the pair."""
    prompts: dict[str, str] = {}
    """What was asked, by the problem's id; empty in older folders."""
    title: str = ""
    """Of the report and its picture, where one was given."""

    def added(self) -> dict[str, list[float]]:
        """The strategies that the budgets gave, with their temperatures: all of these in older folders."""
        if self.budgets:
            return strategies_of(self.budgets)
        return {spec: list(self.plan.temperatures) for spec in self.matched}


class Records:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "records.jsonl"
        self.head = folder / "sweep.json"
        self._kept = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other sweeps out of the folder.

        Raises:
            UsageError: one is at work there, or it is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder}: is a file, but a sweep's results need a folder; choose another -o")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"{self.folder}: another sweep is running here; wait, or choose another -o") from None
        try:
            yield
        finally:
            lock.release()

    def open(self, header: Header, *, resume: bool, anyway: bool) -> dict[tuple[str, str], Record]:
        """Make the folder ready, and return what is there already without an error.

        Raises:
            UsageError: there are results and `resume` was not asked for, they are of another sweep or version, or
                nothing says of which they are.
        """
        if not self.head.exists() and self.holds_answers and not anyway:
            raise UsageError(
                f"{self.folder}: holds answers, but no sweep.json to describe them; choose another -o, or use --anyway"
            )
        if self.head.exists():
            if not resume and self.holds_answers:
                raise UsageError(
                    f"{self.folder}: holds the results of a sweep; continue with --resume, or choose another -o"
                )
            if self.holds_answers:
                self._check(header, anyway)
            else:
                self.write_header(header)  # a start that failed before its first answer
        self.folder.mkdir(parents=True, exist_ok=True)
        self._unpack()
        self._cut_half_a_line()
        if not self.head.exists():
            self.write_header(header)
        records = list(self.read())
        for spec in {record.cell.strategy for record in records}:
            try:
                parse(spec)
            except UsageError as error:  # now, and not after hours, when the table is made
                raise UsageError(f"{self.file}: holds answers of a strategy that this cascli lacks: {error}") from None
        self._kept = len(records)
        return {record.key: record for record in records if record.error is None}

    @property
    def holds_answers(self) -> bool:
        """Whether there are any, packed or not."""
        return (self.file.exists() and self.file.stat().st_size > 0) or self._packed.exists()

    @property
    def _packed(self) -> Path:
        """The answers as they are kept or published (`gzip`)."""
        return self.file.with_suffix(".jsonl.gz")

    def _unpack(self) -> None:
        """Have packed answers as a file that others can be added to, and only as that."""
        if self._packed.exists() and not self.file.exists():
            lines = self._lines()
            write(self.file, b"".join(line + b"\n" for line in lines), durable=True)
            self._packed.unlink()

    def write_header(self, header: Header) -> None:
        """Say what the records are made from."""
        write(self.head, header.model_dump_json(by_alias=True, indent=1) + "\n", durable=True)

    def _check(self, header: Header, anyway: bool) -> None:
        there = self.header()
        if anyway:
            return
        if there.fingerprint != header.fingerprint:
            made = "was made from another sweep file, or with other flags"
            raise UsageError(f"{self.folder}: {made}; choose another -o, or use --anyway")
        changed = [name for name, value in header.asked.items() if there.asked.get(name, value) != value]
        if changed:
            raise UsageError(f"{self.folder}: was made with another {changed[0]}; choose another -o, or use --anyway")
        if there.version != header.version:
            raise UsageError(
                f"{self.folder}: was made by cascli {there.version}, this is {header.version}; use --anyway to continue"
            )

    def header(self) -> Header:
        """What the folder was made from.

        Raises:
            UsageError: there is no sweep in the folder.
        """
        try:
            return Header.model_validate_json(self.head.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.folder}: holds no sweep") from None
        except ValidationError as error:
            key, message = first_problem(error, Header.model_fields)
            raise UsageError(f"{self.head}: damaged: {key or 'document'}: {message}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.head}: cannot be read: {error}") from None

    def _cut_half_a_line(self) -> None:
        """Drop what a killed process left of its last line."""
        if not self.file.exists():
            return
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.file.open("r+b") as file:
                file.truncate(whole)

    def add(self, record: Record) -> None:
        """Append one line, and see it onto the disk.

        Raises:
            RunError: somebody has removed the answers so far.
        """
        if self._kept and not self.file.exists():
            raise RunError(f"{self.file}: was removed while the sweep was running; its answers are lost")
        self._kept += 1
        with named(self.file), self.file.open("ab") as file:
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[Record]:
        """All records in the order in which they were made; a later one of the same cell and prompt counts.

        Raises:
            UsageError: a line is not a record.
        """
        latest: dict[tuple[str, str], Record] = {}
        # Split at newlines alone: an answer may hold other characters that Python takes for line ends.
        for number, line in enumerate(self._lines(), 1):
            try:
                record = Record.model_validate(json.loads(line))
            except (ValueError, RecursionError):
                raise UsageError(f"{self.file}:{number}: not a sweep record") from None
            latest[record.key] = record
        yield from latest.values()

    def _lines(self) -> list[bytes]:
        """The whole lines of the answers, also where they were packed (`gzip`) to be kept or published."""
        packed = self._packed
        if self.file.exists() or not packed.exists():
            return self.file.read_bytes().split(b"\n")[:-1] if self.file.exists() else []
        try:
            with gzip.open(packed) as file:
                return bounded(cast(BinaryIO, file), str(packed), JSON_BYTES).split(b"\n")[:-1]
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{packed}: cannot be read: {error}") from None
