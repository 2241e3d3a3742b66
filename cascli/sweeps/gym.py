"""Problems from the package reasoning-gym (an extra): any number from a seed, judged by the package's own scorers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from cascli.errors import UsageError, first_line, unknown
from cascli.prompts import Prompt
from cascli.sweeps.plan import TaskConfig
from cascli.sweeps.quality import last_number

PROBLEMS = 100
"""Number of problems if no `limit` is given."""
_SIZE = 5_000
"""Size of every dataset, whatever the limit: in some datasets the items depend on it."""
_EXAMPLE_SEED_OFFSET = 1_000_000
"""Offset from the seed of the problems to that of the examples: item i of seed s is often item 0 of seed s + i."""
_RUNS_CODE = re.compile(r"\b(?:eval|exec|parse_expr|sympify|simplify)\(")
_REVIEWED = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "dice", "number_sorting", "propositional_logic"}
"""Datasets whose modules make such calls only on what they generated themselves, never on what a model wrote."""


@dataclass(frozen=True)
class AnswerFormat:
    """One way to ask for an answer, and to find it in what the model wrote."""

    ask: str
    """Instruction that follows the question."""
    example: str
    """Format of the answer in an example, with `{}` for the answer itself."""
    find: Callable[[str], str | None]
    """Finds the answer in a text; returns None if there is none."""


def _last(pattern: str) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        matches = re.findall(pattern, text, re.DOTALL)
        return matches[-1].strip() if matches else None

    return find


def _boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, which may contain braces itself."""
    _, box, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, character in enumerate(rest if box else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return re.sub(r"\\text\{([^{}]*)\}", r"\1", rest[:place]).strip()
    return None


def _last_line(text: str) -> str | None:
    lines = [line.strip(" \t*_`$.") for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), None)


ANSWER_FORMATS = {
    "tag": AnswerFormat(
        "Think step by step. Then give the final answer alone between <answer> and </answer>.",
        "<answer>{}</answer>",
        _last(r"<answer>(.*?)</answer>"),
    ),
    "boxed": AnswerFormat("Think step by step, and put the final answer within \\boxed{}.", "\\boxed{{{}}}", _boxed),
    "last-number": AnswerFormat(
        "Think step by step. End with the final answer as a number, without a unit.", "{}", last_number
    ),
    "last-line": AnswerFormat(
        "Think step by step. Then write the final answer alone on the last line.", "{}", _last_line
    ),
    "whole": AnswerFormat("Write the answer alone and nothing else.", "{}", lambda text: text.strip() or None),
}


@dataclass(frozen=True)
class Gym:
    """The problems of one dataset."""

    task: TaskConfig

    entries: Mapping[str, dict[str, Any]]
    """The package's entry for each problem, by our problem id."""

    def prompts(self) -> list[Prompt]:
        """All problems as prompts, with the right answer as `reference`."""
        examples = [_example(self.task, entry) for entry in _examples(self.task, self.entries)]
        preamble = "\n\n".join(["Questions with their answers:", *examples, "Now the next question.\n\n"])
        return [
            Prompt(
                ((preamble if examples else "") + _prompt_text(self.task, entry),),
                name,
                extra={"reference": str(entry["answer"])},
            )
            for name, entry in self.entries.items()
        ]

    def score(self, name: str, text: str) -> float:
        """The score that the dataset's own scorer gives the answer in a text; 0 without an answer.

        A right answer scores exactly 1; with some scorers, rounding lets the parts of a wrong one sum to slightly more.
        """
        answer = ANSWER_FORMATS[self.task.answer].find(text)
        if answer is None:
            return 0.0
        return float(_dataset_of(self.task).score_answer(answer, self.entries[name]))


def gym(task: TaskConfig, count: int) -> Gym:
    """Return the first problems of a dataset, each question once.

    Args:
        task: a task of kind `reasoning-gym`.
        count: number of problems.

    Raises:
        UsageError: the package is not installed, has no such dataset or options, or too few problems; its scorer would
            run what a model wrote; or a problem changes each time it is generated.
    """
    dataset = _dataset_of(task)
    if task.dataset not in _REVIEWED and _RUNS_CODE.search(_source(type(dataset))):
        raise UsageError(f"task.dataset: {task.dataset} may run model output as Python, unsandboxed; choose another")
    entries = {f"{task.dataset}-{task.seed}-{place}": each for place, each in islice(_distinct(task, dataset), count)}
    if len(entries) < count:
        raise UsageError(
            f"limit: {task.dataset} has {len(entries)} different problems with seed {task.seed} (wanted {count})"
        )
    return Gym(task, entries)


def _source(kind: type) -> str:
    """The package's source code for a dataset, including its scorer."""
    modules = {each.__module__ for each in kind.__mro__ if each.__module__.startswith("reasoning_gym.")}
    return "".join(
        inspect.getsource(inspect.getmodule(each) or each) for each in kind.__mro__ if each.__module__ in modules
    )


def _distinct(task: TaskConfig, dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each question once, with its index.

    Raises:
        UsageError: a problem changes each time it is generated, as some of `list_functions` do (0.1.25).
    """
    seen = set()
    for index in range(_SIZE):
        entry = dataset[index]
        if entry["question"] in seen:
            continue
        again = dataset[index]
        if any(again[key] != entry[key] for key in ("question", "answer")):
            raise UsageError(
                f"task.dataset: problem {index} of {task.dataset} changes each time it is made, whatever the"
                " seed, so its answers could not be scored again; choose another dataset"
            )
        seen.add(entry["question"])
        yield index, entry


def _examples(task: TaskConfig, entries: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems with answers, from another seed, none of which is among those asked."""
    if not task.shots:
        return []
    questions = {entry["question"] for entry in entries.values()}
    others = (
        entry
        for _, entry in _distinct(task, _dataset_of(task, _EXAMPLE_SEED_OFFSET))
        if entry["question"] not in questions
    )
    shown = list(islice(others, task.shots))
    if any(entry["answer"] is None for entry in shown):
        raise UsageError(
            f"task.shots: the problems of {task.dataset} have many right answers, and the package gives none of them"
        )
    return shown


def _prompt_text(task: TaskConfig, entry: Mapping[str, Any]) -> str:
    question, instruction = entry["question"].strip(), ANSWER_FORMATS[task.answer].ask
    try:
        return task.prompt.format(prompt=f"{question}\n\n{instruction}", question=question, instruction=instruction)
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"task.prompt: '{task.prompt}': {error}; known: {{prompt}}, {{question}} and {{instruction}}"
        ) from None


def _example(task: TaskConfig, entry: Mapping[str, Any]) -> str:
    """A problem with its worked answer if the dataset has one, else with the answer only."""
    worked = str(entry["metadata"].get("answer_cot", "")).partition("####")[0].strip()
    answer = ANSWER_FORMATS[task.answer].example.format(entry["answer"])
    return f"Question: {entry['question'].strip()}\nAnswer: " + (f"{worked}\n{answer}" if worked else answer)


def _dataset_of(task: TaskConfig, seed_offset: int = 0) -> Any:
    return _dataset(str(task.dataset), task.seed + seed_offset, json.dumps(task.options))


@cache
def _dataset(name: str, seed: int, options: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise UsageError(
            "a task of kind reasoning-gym needs reasoning-gym: pip install 'cascli[reasoning-gym]'"
        ) from None
    if name not in DATASETS:
        raise UsageError(f"task.dataset: {unknown('dataset', name, DATASETS)}")
    config, given = DATASETS[name][1], json.loads(options)
    known = set(getattr(config, "__dataclass_fields__", {})) - {"seed", "size"}
    wrong = next((key for key in given if key not in known), None)
    if wrong is not None:
        raise UsageError(f"task.options: {unknown('option', wrong, known)}")
    try:
        return create_dataset(name, seed=seed, size=_SIZE, **given)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"task.options: {first_line(error) or 'not accepted by the dataset'}") from None
