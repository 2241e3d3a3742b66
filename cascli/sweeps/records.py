"""Results on disk: one line of JSON per finished cell and prompt; a killed sweep loses only unfinished answers."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import BinaryIO, Literal, cast

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from cascli.analysis.matching import Matched, strategies_of
from cascli.config import EAGLE3_PREFIX
from cascli.errors import CascliError, RunError, UsageError
from cascli.files import JSON_BYTES, bounded, named, write
from cascli.models.calls import ROLES
from cascli.provenance import PREFIX, of_plugins
from cascli.settings import first_problem
from cascli.strategies import parse, shown
from cascli.sweeps.plan import Cell, SweepPlan, with_strategies
from cascli.trace import Distances, block_length, known_minor, now, params_of
from cascli.version import __version__


@lru_cache
def drafts_ahead(spec: str) -> bool:
    """Whether a strategy drafts tokens ahead in rounds."""
    return block_length(shown(spec).params) > 0


class Record(BaseModel):
    """What one strategy did with one prompt."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    cell: Cell
    problem: str
    category: str = ""
    """Category of the prompt, if its file has one."""
    error: str | None = None
    """What went wrong, if the answer failed; all fields below are then empty."""
    quality: float | None = None
    counts: list[int] = []
    """Counts of the answer's words and n-grams, for corpus BLEU over all answers; only with that metric."""
    text: str = ""
    token_ids: list[int] = []
    finish_reason: str | None = None
    seconds: float | None = None
    batch_size: int = 1
    """Number of answers decoded concurrently; if above 1, `seconds` is this answer's share of the batch's time."""
    target_calls: int = 0
    draft_calls: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int | None = None
    """Drafted tokens that were tested: the accepted ones and the first rejected one of each round; None with
    `verify=block`."""
    rounds: int | None = None
    """Number of rounds of a strategy that drafts ahead, 0 for others; older folders count only those of turns in which
    something was drafted, or have None."""
    acceptance_histogram: list[int] | None = None
    """Entry j: number of rounds in which exactly j drafted tokens were accepted; None for strategies that do not draft
    ahead, and in older folders."""
    turns: int | None = None
    """Number of turns of the prompt, each with an answer; None in older folders."""
    cut: int | None = None
    """Number of the prompt's answers that ended at the length limit; None in older folders."""
    looped: int | None = None
    """Number of tokens that are part of a repetition; None in older folders."""
    distances: Distances | None = None
    """Distances from both models, over all turns; None where they are unknown, and in older folders."""
    deferral_rate: float | None = None
    mean_tv: float | None = None
    log_likelihood: float | None = None
    """Mean log-probability of the answer's tokens under the target at temperature 1, in nats, if requested."""
    flops: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the record within a sweep."""
        return self.cell.key, self.problem

    @property
    def rounds_known(self) -> int | None:
        """Number of rounds, also for older folders: where nothing was drafted, each was one target call."""
        if self.rounds is None:
            return None
        return self.target_calls if not self.drafted and drafts_ahead(self.cell.strategy) else self.rounds


_STRATEGY = re.compile(rb'"strategy": ?"([^"\\]*)')
_UNSET = {"executor": "local", "OMP_NUM_THREADS": "not set"}
"""What it means that an environment lacks an entry."""


class Call(BaseModel):
    """A call that made answers of a folder: it may hold those of several, on different machines."""

    model_config = ConfigDict(frozen=True)

    date: str | None
    """When the call began: in UTC, ISO 8601; None in older folders."""
    command: str
    """The command line, quoted for a shell, or the call from Python."""
    version: str
    """The version of cascli."""
    environment: dict[str, str]
    """Machine, versions and threads, the source and precision of each model, and plug-ins, as for a run."""
    first_line: int
    """Number of lines that `records.jsonl` had when the call's first answer was added; its answers follow them."""

    @classmethod
    def of(cls, header: Header, date: str | None) -> Call:
        """The call that a header describes, in a folder without answers."""
        made = {"command": header.command, "version": header.version, "environment": header.environment}
        return cls(date=date, **made, first_line=0)


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
        "cascli.sweep/1.6",
        "cascli.sweep/1.7",
    ] = Field("cascli.sweep/1.7", alias="schema")
    fingerprint: str
    version: str = __version__
    """The version of cascli at the last call that made answers."""
    plan: SweepPlan
    metric: str
    """How answers are scored."""
    date: str | None = None
    """When the sweep was started, or resumed if the start was not recorded: in UTC, ISO 8601; None in older folders."""
    command: str = ""
    """The last call that made answers: its command line, quoted for a shell, or the call from Python."""
    pair: str | None = None
    """The pair's name; None in older folders."""
    environment: dict[str, str] = {}
    """Machine, versions and threads at the last call that made answers, as for a run; the source and precision of each
    model, and the plug-ins of other packages."""
    calls: list[Call] = []
    """Every call that made answers of the folder, oldest first; empty in older folders."""
    matched: list[str] = []
    """Strategies added to meet the plan's budgets."""
    budgets: list[Matched] = []
    """How near each rule came to each budget at each temperature, including rules that met none."""
    calibration: list[str] = []
    """Ids of the prompts on which the settings for the budgets were found, in any call. They are not among the measured
    ones, unless the sweep was resumed with them anyway; empty in older folders."""
    asked: dict[str, str] = {}
    """Hashes of what was asked: of every problem by its id, and of the pair."""
    prompts: dict[str, str] = {}
    """Text of the prompts, by the problem's id; empty in older folders."""
    num_prompts: int | None = None
    """Number of prompts of the last call, for every strategy at each temperature, seed and repeat; None in older
    folders."""
    num_records: int | None = None
    """Number of these answers, failed ones included, that a table is made of; None in a folder's sweep.json, and if
    a strategy cannot be created here, as its plug-in is not installed."""
    title: str = ""
    """Title of the report and its picture, if one was given."""

    _answered: list[Call] | None = PrivateAttr(None)
    """Those of `calls` with answers that did not fail; None if that was not looked up."""

    @field_validator("schema_name", mode="before")
    @classmethod
    def _of_known_minor(cls, value: object) -> object:
        return known_minor(value, cls.model_fields["schema_name"].default)

    def answered_by(self, strategies: Mapping[int, str]) -> None:
        """Note the lines of `records.jsonl`, from 0, that hold answers that did not fail, with their strategies."""
        starts, made = [call.first_line for call in self.calls], dict[int, set[str]]()
        for line, spec in strategies.items():
            made.setdefault(bisect_right(starts, line) - 1, set()).add(spec)
        self._answered = [_as_used(call, made[place]) for place, call in enumerate(self.calls) if place in made]

    @property
    def answering(self) -> list[Call]:
        """The calls that made the folder's answers; those whose every answer failed have no part in what is shown.

        Likewise, their environments are without plug-ins whose every answer failed.
        """
        return self.calls if self._answered is None else self._answered

    @property
    def differing(self) -> dict[str, list[str]]:
        """Entries of the environment in which these calls differ, each with its values in the order of the calls.

        What a call's environment lacks is unknown, as older versions recorded less, or else as in `_UNSET`.
        """
        known_calls = [call.environment for call in self.answering if call.environment]
        names = dict.fromkeys(name for environment in known_calls for name in environment)
        values = {name: [each.get(name, _UNSET.get(name)) for each in known_calls] for name in names}
        known = {name: list(dict.fromkeys(each for each in every if each)) for name, every in values.items()}
        return {name: each for name, each in known.items() if len(each) > 1}

    def other_weights(self, now: Header) -> str | None:
        """The first model whose weights are not those of the answers so far, and what they were; None if all are."""
        for role in ROLES:
            ours = _weights(now.environment.get(role))
            for call in self.answering:
                theirs = _weights(call.environment.get(role))
                if ours and theirs and len({_commit(ours), _commit(theirs), ""}) == 3:
                    return f"the {role} {theirs}, and this is {ours}"
        return None

    def other_plugins(self, now: Header) -> str | None:
        """The first plug-in that is not as it was for its answers so far, and what it was; None if all are.

        Older versions recorded none, which says nothing of whether it has changed.
        """
        for call in self.answering:
            for name, theirs in call.environment.items():
                ours = now.environment.get(name)
                if name.startswith(PREFIX) and ours not in (None, theirs):
                    return f"{name} of {theirs}, and this is {ours}"
        return None

    @property
    def shared_environment(self) -> dict[str, str]:
        """The environment in which the answers were made, without the entries in which their calls differ."""
        last = self.answering[-1].environment if self.answering else {}
        every = [item for call in self.answering for item in call.environment.items()]
        plugins = {name: value for name, value in every if name.startswith(PREFIX)}  # not every call used the same
        made = (last or self.environment) | plugins
        return {name: value for name, value in made.items() if name not in self.differing}

    def added(self) -> dict[str, list[float]]:
        """Strategies added to meet the budgets, with their temperatures; in older folders all of the plan's."""
        if self.budgets:
            return strategies_of(self.budgets)
        return {spec: list(self.plan.temperatures) for spec in self.matched}

    def temperatures_to_match(self, previous: Header | None) -> list[float]:
        """The plan's temperatures whose settings were not found by the call before, for the same budgets."""
        match = self.plan.match
        if match is None:
            return []
        if previous is None or previous.plan.match != match:
            return list(self.plan.temperatures)
        if previous.matched and not previous.budgets:  # an older folder: its settings are for all temperatures
            return []
        known = {each.temperature for each in previous.budgets}
        return [each for each in self.plan.temperatures if each not in known]

    def tuned_and_measured(self, previous: Header) -> list[str]:
        """The prompts that would both set the values of matched rules and measure them, if a folder is resumed."""
        if self.plan.match is None:
            return []
        tuned = [each for each in previous.calibration if each in self.prompts]
        if self.temperatures_to_match(previous):
            tuned += [each for each in self.calibration if each in previous.prompts]
        return list(dict.fromkeys(tuned))

    @property
    def planned(self) -> int | None:
        """Number of answers that the last call was to have made or found.

        None in older folders, and if a strategy cannot be created here.
        """
        plan = self.full_plan()
        return None if self.num_prompts is None or plan is None else self.num_prompts * len(plan.cells())

    def counted(self, records: Iterable[Record]) -> Header:
        """The header with the number of its planned answers among the records."""
        plan = self.full_plan()
        if self.num_prompts is None or plan is None:
            return self
        keys = {cell.key for cell in plan.cells()}
        made = Counter(record.cell.key for record in records if record.cell.key in keys)
        # A folder may have answers to more prompts, from a call with a higher limit.
        return self.model_copy(update={"num_records": sum(min(count, self.num_prompts) for count in made.values())})

    def full_plan(self) -> SweepPlan | None:
        """The plan with the strategies that were added to it; None if a strategy cannot be created here.

        A strategy's text in a plan may lack defaults, which only the plug-in knows: without it, the plan does not tell
        which answers are the strategy's.
        """
        try:
            plan = with_strategies(self.plan, self.added())
            plan.specs()
        except CascliError:
            return None
        return plan


def _as_used(call: Call, specs: Iterable[str]) -> Call:
    """The call, without plug-ins in its environment that none of these strategies uses."""
    plugins = {name for name in call.environment if name.startswith(PREFIX)}
    unused = plugins.difference(*(_plugins(spec, plugins) for spec in specs)) if plugins else plugins
    kept = {name: value for name, value in call.environment.items() if name not in unused}
    return call.model_copy(update={"environment": kept}) if unused else call


def _plugins(spec: str, names: Iterable[str]) -> set[str]:
    """Entries of an environment for the plug-ins that a strategy uses; if it cannot be created, those it mentions."""
    try:
        return {*of_plugins(parse(spec))}
    except CascliError:
        words = {spec.partition(":")[0], *params_of(spec).values()}
        return {name for name in names if name.rpartition(" ")[2] in words}


def _commit(source: str) -> str:
    """What names the weights: a model's commit on the hub, if it is known, or the whole of another source."""
    name, _, commit = source.partition("#")
    return commit if name.removeprefix(EAGLE3_PREFIX).startswith("hub:") else source


def _strategy(line: bytes) -> str:
    """The strategy of a line of `records.jsonl`, which begins with its cell; empty if the line is damaged."""
    found = _STRATEGY.search(line)
    return "" if found is None else found[1].decode(errors="replace")


def _weights(model: str | None) -> str | None:
    """Where a model's weights came from, of an entry of the environment that also names its precision."""
    return None if model is None else model.rpartition(" ")[0]


class Records:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "records.jsonl"
        self.header_file = folder / "sweep.json"
        self._num_saved, self._anyway = 0, False
        self._header: Header | None = None
        """The header of a call that has made no answer yet."""
        self._written: Header | None = None
        """The header that was written last."""
        self._date = ""
        """When that call began."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other sweeps.

        Raises:
            UsageError: another sweep is at work there, or the path is a file.
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
        """Prepare the folder, and return its existing records that have no error.

        Raises:
            UsageError: there are results and `resume` is false, they belong to another sweep or version, or there is no
                header that says to which. With `anyway`, a damaged header is set aside as if there were none.
        """
        self._anyway = anyway
        if resume and anyway and self.holds_answers:
            self._set_damaged_aside()
        if not self.header_file.exists() and self.holds_answers and not anyway:
            raise UsageError(
                f"{self.folder}: holds answers, but no sweep.json to describe them; choose another -o, or use --anyway"
            )
        if self.header_file.exists():
            if not resume and self.holds_answers:
                raise UsageError(
                    f"{self.folder}: holds the results of a sweep; continue with --resume, or choose another -o"
                )
            if self.holds_answers:
                self._check(header, anyway)
            else:
                self.write_header(header)  # an earlier start failed before its first answer
        self.folder.mkdir(parents=True, exist_ok=True)
        self._unpack()
        self._drop_partial_line()
        if not self.header_file.exists():
            unknown = Call(date=None, command="", version="", environment={}, first_line=0)
            self.write_header(header.model_copy(update={"calls": [unknown] if self.holds_answers else []}))
        records = list(self.read())
        for spec in {record.cell.strategy for record in records}:
            try:
                parse(spec)
            except UsageError as error:  # fail now, not after hours when the table is made
                raise UsageError(f"{self.file}: holds answers of a strategy that this cascli lacks: {error}") from None
        self._num_saved = len(records)
        return {record.key: record for record in records if record.error is None}

    @property
    def holds_answers(self) -> bool:
        """Whether the folder holds any answers, packed or not, even if all of them failed."""
        return (self.file.exists() and self.file.stat().st_size > 0) or self._packed.exists()

    @property
    def _packed(self) -> Path:
        """Path of the answers compressed with `gzip`, for archiving or publishing."""
        return self.file.with_suffix(".jsonl.gz")

    def _unpack(self) -> None:
        """Replace packed answers by a plain file that others can be appended to."""
        if self._packed.exists() and not self.file.exists():
            lines = self._lines()
            write(self.file, b"".join(line + b"\n" for line in lines), durable=True)
            self._packed.unlink()

    def begin(self, header: Header) -> None:
        """Write the header. What it says of this call is written with its first answer, as some calls add none.

        Raises:
            UsageError: the folder's answers were made with other weights, such as those of another commit on the hub,
                or with another version of a plug-in, unless the folder was opened `anyway`.
        """
        if not self._anyway and self.header_file.exists():
            saved = self.header()
            if changed := saved.other_weights(header) or saved.other_plugins(header):
                raise UsageError(f"{self.folder}: was made with {changed}; choose another -o, or use --anyway")
        self._header = header
        known = [call for call in header.calls[-1:] if call.environment]
        made = {key: getattr(call, key) for call in known for key in ("command", "version", "environment")}
        self.write_header(header.model_copy(update=made))
        self._date = now()

    def write_header(self, header: Header) -> None:
        """Write down what the records are made from."""
        self._written = header
        write(self.header_file, header.model_dump_json(by_alias=True, indent=1) + "\n", durable=True)

    def _set_damaged_aside(self) -> None:
        """Rename a header that cannot be read."""
        try:
            self._saved_header()
        except FileNotFoundError:
            return
        except UsageError:
            names = (f"sweep.json.damaged{number or ''}" for number in count())
            places = map(self.header_file.with_name, names)
            self.header_file.rename(next(place for place in places if not place.exists()))

    def _check(self, header: Header, anyway: bool) -> None:
        if anyway:
            return
        try:
            saved = self._saved_header()
        except UsageError as error:
            raise UsageError(f"{error}; choose another -o, or use --anyway to set it aside") from None
        if saved.fingerprint != header.fingerprint:
            cause = "was made from another sweep file, or with other flags"
            raise UsageError(f"{self.folder}: {cause}; choose another -o, or use --anyway")
        changed = [name for name, value in header.asked.items() if saved.asked.get(name, value) != value]
        if changed:
            raise UsageError(f"{self.folder}: was made with another {changed[0]}; choose another -o, or use --anyway")
        if both := header.tuned_and_measured(saved):
            some = ", ".join(both[:3]) + (", .." if len(both) > 3 else "")
            raise UsageError(
                f"{self.folder}: {some}: prompts that set the values of matched rules would measure them too;"
                " keep --limit, choose another -o, or use --anyway"
            )
        if saved.version != header.version:
            raise UsageError(
                f"{self.folder}: was made by cascli {saved.version}, this is {header.version}; use --anyway to continue"
            )

    def header(self) -> Header:
        """What the folder was made from.

        If its file was removed or damaged while the sweep was running, it is written again.

        Raises:
            UsageError: the folder holds no sweep, or its header cannot be read.
        """
        try:
            header = self._saved_header()
        except FileNotFoundError:
            if self._written is None or not self.holds_answers:
                raise UsageError(f"{self.folder}: holds no sweep") from None
            header = self._written
            self.write_header(header)
        except UsageError:
            if self._written is None:
                raise
            self._set_damaged_aside()
            header = self._written
            self.write_header(header)
        if header.calls:  # within an answer's text, quotation marks would be escaped
            good = [(place, line) for place, line in enumerate(self._lines()) if b'"error":"' not in line]
            header.answered_by({place: _strategy(line) for place, line in good})
        return header

    def _saved_header(self) -> Header:
        """The header as it is in its file."""
        try:
            return Header.model_validate_json(self.header_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except ValidationError as error:
            key, message = first_problem(error, Header.model_fields)
            raise UsageError(f"{self.header_file}: damaged: {key or 'document'}: {message}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.header_file}: cannot be read: {error}") from None

    def _drop_partial_line(self) -> None:
        """Remove an incomplete last line, left by a killed process."""
        if not self.file.exists():
            return
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.file.open("r+b") as file:
                file.truncate(whole)

    def add(self, record: Record) -> None:
        """Append one line, and sync it to disk.

        Raises:
            RunError: the file with the answers so far was removed.
        """
        if self._num_saved and not self.file.exists():
            raise RunError(f"{self.file}: was removed while the sweep was running; its answers are lost")
        self._num_saved += 1
        if self._header is not None:
            call = Call.of(self._header, self._date).model_copy(update={"first_line": len(self._lines())})
            earlier = [each for each in self._header.calls if each.first_line < call.first_line]
            self.write_header(self._header.model_copy(update={"calls": [*earlier, call]}))
            self._header = None
        with named(self.file), self.file.open("ab") as file:
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[Record]:
        """All records in the order in which they were made; of several for the same cell and prompt, the last counts.

        Raises:
            UsageError: a line is not a record.
        """
        latest: dict[tuple[str, str], Record] = {}
        # Split only at newlines: answers may contain other characters that Python treats as line ends.
        for number, line in enumerate(self._lines(), 1):
            try:
                record = Record.model_validate(json.loads(line))
            except (ValueError, RecursionError):
                raise UsageError(f"{self.file}:{number}: not a sweep record") from None
            latest[record.key] = record
        yield from latest.values()

    def _lines(self) -> list[bytes]:
        """Complete lines of the answers, read from the packed file (`gzip`) if there is only that."""
        packed = self._packed
        if self.file.exists() or not packed.exists():
            return self.file.read_bytes().split(b"\n")[:-1] if self.file.exists() else []
        try:
            with gzip.open(packed) as file:
                return bounded(cast(BinaryIO, file), str(packed), JSON_BYTES).split(b"\n")[:-1]
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{packed}: cannot be read: {error}") from None
