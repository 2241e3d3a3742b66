"""Evaluate strategies one after the other, and save each one's results as soon as it is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from cascli import files
from cascli.analysis.comparison import check_columns
from cascli.engine import check_models, environment
from cascli.errors import UsageError
from cascli.evaluation.harness import EvaluationOptions, as_json, evaluated, samples_as_jsonl, task_manager, version
from cascli.evaluation.scores import (
    EvalResults,
    MainMetric,
    evaluated_tasks,
    main_metric,
    with_quality,
    without_samples,
)
from cascli.evaluation.table import Evaluation
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.provenance import of_plugins
from cascli.settings import Settings
from cascli.strategies import Strategy
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record
from cascli.sweeps.tasks import Example
from cascli.sweeps.worker import record_of
from cascli.trace import Run, now

FILE = "eval.json"
"""Name of cascli's own document in the folder of results."""


@dataclass
class Evaluating:
    """An evaluation in progress, strategy by strategy."""

    pair: Pair
    options: EvaluationOptions
    manager: Any
    """The manager of tasks, from `task_manager`."""
    given: Settings
    """Sampling settings that take precedence over those of tasks."""
    batch_size: int = 1
    folder: Path | None = None
    """Folder in which results are saved; None to save nothing."""
    command: str | None = None
    """The command line."""
    records: list[Record] = field(default_factory=list)
    results: dict[str, EvalResults] = field(default_factory=dict)
    """What lm-evaluation-harness returned, by strategy, without the samples."""
    saved: list[str] = field(default_factory=list)
    """Strategies whose results are in the folder."""
    _mains: dict[str, MainMetric] = field(default_factory=dict, init=False)
    _plugins: dict[str, str] = field(default_factory=dict, init=False)
    """Entries of the environment for the plug-ins of these strategies."""

    def __post_init__(self) -> None:
        """Check that the pair can be evaluated.

        Raises:
            UsageError: the pair has no tokenizer, or a chat template is needed and it has none.
        """
        self._harness, self._date = version(), now()
        if self.pair.tokenizer is None:
            raise UsageError(f"pair '{self.pair.name}' has no tokenizer, but tasks are text.")
        if self.options.chat and not getattr(self.pair.tokenizer, "chat_template", None):
            raise UsageError(f"pair '{self.pair.name}' has no chat template: leave out --apply-chat-template.")
        from cascli.evaluation.model import Likelihoods, Notes

        self._likelihoods, self._notes = Likelihoods(), Notes()

    def check(self, strategies: Sequence[Strategy]) -> None:
        """Reject strategies that would fail only after others are done.

        Raises:
            UsageError: a strategy is given twice, or requires what the pair does not have.
        """
        check_columns([each.spec for each in strategies])
        for strategy in strategies:
            check_models(self.pair, strategy)

    def run(self, strategy: Strategy, on_progress: OnProgress | None = None) -> None:
        """Evaluate one strategy, and keep its results.

        Raises:
            UsageError: a task cannot be set up or scored.
            RunError: out of memory.
        """
        from cascli.evaluation.model import DocumentRepeat, StrategyModel

        records: list[Record] = []

        def answered(source: DocumentRepeat, run: Run) -> None:
            where = Cell(
                strategy=strategy.spec,
                temperature=run.sampling.temperature,
                seed=run.sampling.seed,
                repeat=source.repeat,
            )
            problem = Example(id=str(source.document), prompt="", category=source.task)
            records.append(record_of(where, problem, [run], None, None))

        model = StrategyModel(
            self.pair,
            strategy,
            self.given,
            self._notes,
            chat=self.options.chat,
            batch_size=self.batch_size,
            likelihoods=self._likelihoods,
            on_answer=answered,
            on_progress=on_progress,
        )
        results = evaluated(model, self.options, self.manager)
        # The first strategy's metric is used for all, since scores of two metrics cannot be compared.
        for task in results["samples"]:
            self._mains.setdefault(task, main_metric(results, task))
        self.records += with_quality(records, results, self._mains)
        self._plugins |= of_plugins(strategy)
        self.results[strategy.spec] = without_samples(results, self._mains)
        if self.folder is not None:
            self._save(self.folder, strategy.spec, results)

    def _save(self, folder: Path, spec: str, results: EvalResults) -> None:
        """Write the files that lm-evaluation-harness would write, and the document of all strategies so far."""
        own, date = folder / folder_name(spec), self._date.replace(":", "-")
        own.mkdir(parents=True, exist_ok=True)
        for task, name in file_names(results["samples"]).items():
            samples = samples_as_jsonl(results["samples"][task])
            files.write(own / f"samples_{name}_{date}.jsonl", samples, durable=True)
        models = {str(role): model.source for role, model in self.pair.models.items()}
        about = {"strategy": spec, "pair": self.pair.name, **models}
        files.write(own / f"results_{date}.json", as_json(results, about) + "\n", durable=True)
        files.write(folder / FILE, self.evaluation().to_json(1) + "\n", durable=True)
        self.saved.append(spec)

    def evaluation(self) -> Evaluation:
        """Return the document of all strategies that are done."""
        loaded = {str(role): f"{model.source} {model.dtype}" for role, model in self.pair.models.items()}
        given = {name: value for name, value in self.given.given().items() if name in GIVEN}
        return Evaluation(
            date=self._date,
            command=self.command,
            harness=self._harness,
            pair=self.pair.name,
            environment=environment(self.pair.device) | self._plugins | loaded,
            strategies=list(self.results),
            limit=self.options.limit,
            num_fewshot=self.options.num_fewshot,
            chat_template=self.options.chat,
            system=self.options.system,
            given=given,
            batch_size=self.batch_size,
            not_honoured=sorted(self._notes.not_honoured),
            shortened=len(self._notes.shortened),
            tasks=evaluated_tasks(self.results, self.records),
        )


GIVEN = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
"""Generation settings for which flags take precedence over a task's own."""


def folder_name(text: str) -> str:
    """Return a strategy or task as the name of a folder or file."""
    return "".join(char if char.isalnum() or char in "=.-_" else "_" for char in text)


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """Return the name of each task's file, numbered if another task has it; those that need no change keep theirs."""
    names: dict[str, str] = {}
    for task in sorted(tasks, key=lambda task: task != folder_name(task)):
        plain = folder_name(task)
        numbered = (f"{plain}-{number}" for number in count(2))
        names[task] = next(name for name in chain([plain], numbered) if name not in names.values())
    return names


def check_folder(folder: Path) -> None:
    """Create the folder for results, and refuse one in which they would be mixed with others.

    Raises:
        UsageError: it is a file, or already holds an evaluation.
        OSError: it cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, but results need a folder; choose another -o")
    if (folder / FILE).exists():
        raise UsageError(f"{folder}: already holds an evaluation; choose another -o")
    folder.mkdir(parents=True, exist_ok=True)  # fails now rather than after hours


def evaluate(
    pair: Pair,
    tasks: Sequence[str],
    strategies: Sequence[Strategy],
    given: Settings | None = None,
    *,
    batch_size: int = 1,
    output: Path | str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate strategies on tasks of lm-evaluation-harness.

    Args:
        pair: the loaded pair.
        tasks: names of the tasks.
        strategies: strategies to evaluate, one after the other.
        given: sampling settings that take precedence over those of tasks.
        batch_size: number of answers decoded concurrently.
        output: folder for the results.
        on_progress: called with what is being answered.
        options: further fields of `EvaluationOptions`.

    Raises:
        UsageError: lm-evaluation-harness is not installed, a task is unknown or cannot be set up.
        RunError: out of memory.
    """
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
    evaluation_options = EvaluationOptions(tasks=tasks, **options)
    evaluating = Evaluating(
        pair, evaluation_options, task_manager(evaluation_options), given or Settings(), batch_size, folder
    )
    evaluating.check(strategies)
    for strategy in strategies:
        evaluating.run(strategy, on_progress)
    return evaluating.evaluation()
