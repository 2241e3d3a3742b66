"""Results as tidy tables: one row per observation, with the same columns for all commands. No torch.

The csv and Parquet files of `generate`, `compare`, `sweep`, `bench` and `verify`, and data frames in Python, are made
from the rows that are built here; `cascli.analysis.columns` defines the name and meaning of each column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from cascli.analysis.answer_costs import AnswerCosts, Ratio
from cascli.analysis.bench import Bench
from cascli.analysis.columns import COLUMNS, PARAMETERS, PREFIX, TableKind, columns_of
from cascli.analysis.comparison import Comparison, Row
from cascli.analysis.distances import efficiency, out_of_head_rate, waste
from cascli.analysis.percentiles import Percentiles
from cascli.analysis.profile import Timing
from cascli.errors import UsageError
from cascli.trace import Distances, PairInfo, Run, values_of

if TYPE_CHECKING:
    import pandas

Value = str | int | float | bool | None
Record = dict[str, Value]


@dataclass(frozen=True)
class Circumstances:
    """Values that all rows of a table share."""

    pair: str | None = None
    draft_dtype: str | None = None
    target_dtype: str | None = None
    device: str | None = None
    hardware: str | None = None
    threads: int | None = None
    date: str | None = None
    cascli: str | None = None

    @classmethod
    def of(cls, pair: PairInfo, environment: Mapping[str, str], date: str | None) -> Circumstances:
        """Build from a document that contains its pair."""
        return cls(
            pair=pair.name,
            draft_dtype=None if pair.draft is None else pair.draft.dtype,
            target_dtype=pair.target.dtype,
            device=pair.target.device,
            date=date,
            **machine(environment),
        )

    @classmethod
    def of_loaded(cls, pair: str | None, about: Mapping[str, str], date: str | None) -> Circumstances:
        """Build from a sweep's environment, which has each model's source followed by its precision."""
        draft, target = (about[role].rpartition(" ")[2] if role in about else None for role in ("draft", "target"))
        device = about.get("target device")
        return cls(pair=pair, draft_dtype=draft, target_dtype=target, device=device, date=date, **machine(about))

    def columns(self) -> Record:
        """Return the values as columns."""
        return asdict(self)


def machine(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return hardware, threads and version from a document's environment; None for what an older one lacks."""
    threads = environment.get("threads", "")
    return {
        "hardware": environment.get("device"),
        "threads": int(threads) if threads.isdecimal() else None,
        "cascli": environment.get("cascli"),
    }


class Table(NamedTuple):
    """Rows with the same columns; each column has one type."""

    columns: dict[str, type]
    records: list[Record]


def table(kind: TableKind, rows: Iterable[Mapping[str, Value]]) -> Table:
    """Build a table of a kind: its columns in order, including parameters that only some strategies have."""
    rows = list(rows)
    known = {column.name: column.type for column in columns_of(kind)}
    more = sorted({key for row in rows for key in row} - known.keys())
    last = next((name for name in reversed(known) if name in PARAMETERS), None)
    columns: dict[str, type] = {}
    for name, declared in known.items():
        columns[name] = declared
        if name == last:
            columns |= {key: _type_of([row.get(key) for row in rows]) for key in more}
    for name in (name for name in columns if name in known):  # such as a k that is not a number
        if any(not _fits(row.get(name), columns[name]) for row in rows):
            columns[name] = str
    return Table(columns, [{name: _as(row.get(name), kind_) for name, kind_ in columns.items()} for row in rows])


def _type_of(values: Iterable[Value]) -> type:
    """Return the narrowest type that holds all values."""
    known = [value for value in values if value is not None]
    return next((each for each in (bool, int, float) if all(_fits(value, each) for value in known)), str)


def _fits(value: Value, kind: type) -> bool:
    if value is None or kind is str:
        return True
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int) or (kind is float and isinstance(value, float))


def _as(value: Value, kind: type) -> Value:
    return None if value is None else kind(value)


def strategy_columns(spec: str) -> Record:
    """Return a strategy as columns: the whole spec, the name, and one column per parameter."""
    given = values_of(spec)
    if "k" in given:
        given.setdefault("draft", "model")  # the default of every strategy that drafts
    taken = {column.name for column in COLUMNS} - {*PARAMETERS}
    params = {PREFIX + key if key in taken else key: value for key, value in given.items()}
    return {"strategy": spec, "name": spec.partition(":")[0], **params}


def interval_columns(name: str, interval: tuple[float, float] | None, kind: str | None) -> Record:
    """Return an interval as two bounds and its kind; all empty if there is none."""
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high, f"{name}_kind": None if interval is None else kind}


def of_comparison(comparison: Comparison) -> Table:
    """Return one row per strategy."""
    first = comparison.runs[0]
    shared = Circumstances.of(first.pair, first.environment, comparison.date or first.date).columns()
    sampling = first.sampling
    shared |= {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "batch_size": comparison.batch_size,
    }
    return table("compare", [shared | row_columns(row) for row in comparison.summary])


def of_runs(runs: Sequence[Run]) -> Table:
    """Return one row per answer."""
    return table("generate", map(_answer, runs))


def _answer(run: Run) -> Record:
    m, sampling = run.metrics, run.sampling
    tokens = len(run.token_ids)
    columns = {column.name for column in columns_of("generate")}
    # Fields with the name of a column are that column; below are the others, and fields that are not single values.
    record: Record = {
        name: getattr(part, name) for part in (run, sampling, m) for name in type(part).model_fields if name in columns
    }
    record |= Circumstances.of(run.pair, run.environment, run.date).columns() | strategy_columns(run.spec)
    tested = m.num_tested_draft_tokens
    return record | {
        "exit": None if run.exit is None else run.exit.label,
        "tokens": tokens,
        "seconds": m.seconds.total,
        "tested_acceptance_rate": m.num_accepted_draft_tokens / tested if tested else None,
        "looped_share": _over(m.looped_tokens, tokens),
        "flops_per_token": _over(m.total_flops, tokens),
        "weight_bytes_per_token": _over(m.weight_bytes_read, tokens) if run.batch_size == 1 else None,
        **distance_columns(m.distances, 1),
    }


def _over(total: float | None, tokens: int) -> float | None:
    return None if total is None or not tokens else total / tokens


def row_columns(row: Row) -> Record:
    """Return a comparison's results for one strategy."""
    values = row.model_dump(exclude={"costs", "distances"}) | {"exit": row.exit and row.exit.label}
    values |= cost_columns(row.costs) | distance_columns(row.distances, row.conversations)
    values |= interval_columns("speed_vs_target", values.pop("speed_interval"), values.pop("speed_interval_kind"))
    values["speed_vs_target_over"] = values.pop("speed_interval_over")
    values["answers_compared"] = values.pop("answers")
    for name in ("ttft", "seconds_per_token", "round_seconds"):
        parts = values.pop(name) or {}
        column = "ttft_seconds" if name == "ttft" else name
        values |= {f"{column}_{level}": parts.get(level) for level in Percentiles.model_fields}
    return values | strategy_columns(row.strategy)


def cost_columns(costs: AnswerCosts | None) -> Record:
    """Return the costs of answers compared with others; empty for an older document."""
    if costs is None:
        return {}
    columns: Record = {
        "target_calls_per_answer": costs.target_calls_per_answer,
        "looped_share": costs.looped_share,
        "lossless_strategy": costs.lossless,
        "accepted_to_lossless": costs.accepted_to_lossless,
        "length_withheld": costs.withheld,
    }
    ratios = {
        "length_to_target": costs.length,
        "length_to_target_ended": costs.length_ended,
        "calls_to_target": costs.calls,
        "calls_to_lossless": costs.calls_to_lossless,
    }
    for name, ratio in ratios.items():
        columns |= _ratio_columns(name, ratio)
    for name in () if costs.per_prompt is None else type(costs.per_prompt).model_fields:
        levels = getattr(costs.per_prompt, name)
        columns |= {f"prompt_{name}_{level}": getattr(levels, level, None) for level in Percentiles.model_fields}
    return columns


def _ratio_columns(name: str, ratio: Ratio | None) -> Record:
    if ratio is None:
        return {}
    columns: Record = {name: ratio.of_means, f"{name}_mean": ratio.mean, f"{name}_prompts": ratio.prompts}
    return columns | interval_columns(name, ratio.interval, ratio.interval_kind)


def distance_columns(d: Distances | None, answers: int | None) -> Record:
    """Return how far the output distribution is from both models; empty if unknown."""
    if d is None or not answers:
        return {}
    return {
        "kl_per_answer": d.kl / answers,
        "kl_infinite_share": d.infinite / d.tokens,
        "regret_per_answer": None if d.regret is None else d.regret / answers,
        "max_overshoot": d.overshoot,
        "waste": waste(d),
        "efficiency": efficiency(d),
        "out_of_head_per_1000": out_of_head_rate(d),
    }


def of_bench(bench: Bench) -> Table:
    """Return a row per model, context and block length, and a row per k of decoding at a synthetic acceptance rate."""
    shared = Circumstances.of(bench.pair, bench.environment, bench.date).columns()
    shared |= {"copy_bytes_per_second": bench.copy_bytes_per_second}
    rows: list[Record] = []
    for profile in (*bench.profiles, *bench.batches):
        step = profile.target[1].median
        for model, timings in (("draft", profile.draft), ("target", profile.target)):
            rows += [
                {
                    "kind": "step",
                    "model": model,
                    "context": profile.context,
                    "batch_size": profile.batch_size,
                    "block": block,
                    **_call(each, step),
                }
                for block, each in timings.items()
            ]
    return table("bench", [shared | row for row in [*rows, *_synthetic_rows(bench), *_batch_rows(bench)]])


def _call(timing: Timing, step: float) -> Record:
    return {
        "seconds_per_call": timing.median,
        **interval_columns("seconds_per_call", (timing.low, timing.high), "quartiles"),
        "relative_to_step": timing.median / step,
    }


def _synthetic_rows(bench: Bench) -> list[Record]:
    synthetic = bench.synthetic
    if synthetic is None:
        return []
    target = synthetic.target_tokens_per_second
    rows: list[Record] = [
        {
            **strategy_columns("target"),
            "kind": "synthetic",
            "tokens": synthetic.tokens,
            "tokens_per_second": target or None,
            "speed_vs_target": 1.0,
            "models_share": synthetic.target_models_share,
        }
    ]
    # Older documents have only accounts.
    for account, speed, share in islice(
        zip_longest(synthetic.accounts, synthetic.tokens_per_second, synthetic.models_share), len(synthetic.accounts)
    ):
        rows.append(
            {
                **strategy_columns(account.strategy),
                "kind": "synthetic",
                "tokens": synthetic.tokens,
                "tokens_per_second": speed,
                "speed_vs_target": account.measured_speed_up,
                "tested_acceptance_rate": synthetic.acceptance,
                "models_share": share,
            }
        )
    return rows


def _batch_rows(bench: Bench) -> list[Record]:
    """Return what was decoded in batches; `target` is k = 0."""
    alone = {run.batch_size: run.tokens_per_second for run in bench.batch_runs if run.k == 0}
    return [
        {
            **strategy_columns(f"synthetic-acceptance:k={run.k}" if run.k else "target"),
            "kind": "synthetic",
            "batch_size": run.batch_size,
            "tokens_per_second": run.tokens_per_second,
            "predicted_tokens_per_second": run.predicted_tokens_per_second,
            "speed_vs_target": run.tokens_per_second / alone[run.batch_size],
        }
        for run in bench.batch_runs
    ]


_DTYPES = {bool: "boolean", int: "Int64", float: "float64", str: "object"}
"""The pandas types; integers and bools keep their type even if values are missing."""


def frame(data: Table) -> pandas.DataFrame:
    """Return the table as a pandas data frame.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError("a data frame needs pandas: pip install 'cascli[tables]'") from None
    columns = {
        name: pandas.Series([record[name] for record in data.records], dtype=_DTYPES[kind])
        for name, kind in data.columns.items()
    }
    return pandas.DataFrame(columns)
