"""What a sweep's numbers show and do not show, in words: for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cascli.analysis.statistics import FEWEST
from cascli.provenance import PREFIX
from cascli.render.marks import short_name
from cascli.render.numbers import counted, number
from cascli.render.table import speed_text
from cascli.settings import TARGET
from cascli.sweeps.plan import TaskConfig
from cascli.sweeps.records import Header
from cascli.sweeps.table import SweepRow, is_lossless
from cascli.weights.prompt_sets import SETS


def pair_of(header: Header) -> str:
    """The pair's name; for a file without one, or an older folder, the name of the file."""
    if header.pair not in (None, "", "unnamed"):
        return str(header.pair)
    pair: object = header.plan.pair
    if isinstance(pair, dict):
        return "an unnamed pair"
    return Path(pair).stem if isinstance(pair, str) and pair.endswith((".yaml", ".yml")) else str(pair)


def day_of(header: Header) -> str:
    """The day on which the sweep was run, as 2026-01-31; empty for older folders."""
    return (header.date or "")[:10]


def title_of(header: Header) -> str:
    """The given title, or one made from what was compared."""
    return header.title or f"{pair_of(header)}: {header.metric} against cost on {task_of(header.plan.task)}"


def task_of(task: TaskConfig) -> str:
    """What was asked, without the folders it is in."""
    if task.kind == "humaneval":
        return "HumanEval"
    if task.kind == "builtin":
        return "cascli's own prompts"
    if task.kind in SETS:
        return SETS[task.kind].about.partition(",")[0]
    if task.kind == "reasoning-gym":
        return f"{task.dataset} (reasoning-gym)"
    name = str(task.path)
    return Path(name).name if task.kind == "jsonl" or Path(name).is_absolute() else name


def temperature_of(value: float) -> str:
    """A temperature, and what it means if it is 0."""
    return f"temperature {value:g}" + (" (greedy)" if value == 0 else "")


def summary(header: Header, rows: Sequence[SweepRow]) -> str:
    """What was compared, on what, when, and over how many prompts: one sentence."""
    plan = header.plan
    strategies = len({row.strategy for row in rows})
    prompts = max((row.num_prompts or 0 for row in rows), default=0)
    temperatures = sorted({row.temperature for row in rows})
    at = "greedily" if temperatures == [0] else "at temperature " + _listed([f"{each:g}" for each in temperatures])
    greedy = " (one if greedy)" if 0 in temperatures else ""
    often = f", each with {len(plan.seeds)} seeds{greedy}" if len(plan.seeds) > 1 and any(temperatures) else ""
    device = header.shared_environment.get("device", "")
    where = f" on {device}" if device else ""
    when = f"On {day_of(header)}, " if header.date else ""
    text = (
        f"{when}{counted(strategies, 'strategy', 'strategies')} with the pair {pair_of(header)}{where} answered"
        f" {counted(prompts, 'prompt')} of {task_of(plan.task)} {at}{often}, with at most"
        f" {plan.max_new_tokens} tokens each, scored by {header.metric}."
    )
    return text[:1].upper() + text[1:]


def findings(rows: Sequence[SweepRow], header: Header | None = None) -> list[str]:
    """For each temperature: the fastest lossless and lossy strategies, and which quality differences are beyond chance.

    Empty if there are too few prompts to tell, and for a temperature at which not all strategies are among the rows;
    without the fastest if answers were timed on different machines.
    """
    found = (_beyond_chance,) if differences(header) else (_fastest_lossless, _fastest_lossy, _beyond_chance)
    if not any(row.quality_interval_kind == "95%" for row in rows):
        return []
    temperatures = sorted({row.temperature for row in rows})
    sentences = []
    for temperature in temperatures:
        here = [row for row in rows if row.temperature == temperature]
        if not planned(header, temperature) <= {row.strategy for row in here}:
            continue
        at = f"At {temperature_of(temperature)}, " if len(temperatures) > 1 else ""
        for sentence in (finding(here) for finding in found):
            if sentence is not None:
                text = at + sentence
                sentences.append(text[:1].upper() + text[1:])
    return sentences


def planned(header: Header | None, temperature: float) -> set[str]:
    """Every strategy of a sweep at a temperature, with those that later calls added, as far as that is known."""
    plan = None if header is None else header.full_plan()
    every = {} if plan is None else plan.temperatures_by_strategy()
    return {spec for spec, at in every.items() if temperature in at}


def differences(header: Header | None) -> str | None:
    """A warning if the folder's answers were made by calls on different machines, versions or settings."""
    if header is None:
        return None
    if not header.differing:
        unknown = len(header.answering) > 1 and not all(call.environment for call in header.answering)
        return "How some of these answers were made is not known: speeds may not be comparable." if unknown else None
    what = "; ".join(f"{name}: {', '.join(each)}" for name, each in header.differing.items())
    of_answers = any(name in ("draft", "target") or name.startswith(PREFIX) for name in header.differing)
    numbers = "answers and speeds" if of_answers else "speeds"
    return (
        f"These answers were made by {len(header.answering)} calls under different conditions ({what}): their {numbers}"
        " cannot be compared."
    )


def unfinished(header: Header | None) -> str | None:
    """A warning if the sweep was stopped, or is still at work: what is shown is then of a part of its answers."""
    if header is None or header.num_records is None or header.planned is None or header.num_records >= header.planned:
        return None
    done = f"{header.num_records} of {header.planned} answers"
    return f"Unfinished: {done} were made so far, and the numbers say nothing of the others."


def _fastest_lossless(rows: Sequence[SweepRow]) -> str | None:
    """The fastest of those that follow the target's distribution, whatever the scores of their samples."""
    every = [row for row in rows if row.strategy != TARGET and is_lossless(row)]
    candidates, complete = [row for row in every if _has_speed(row)], _complete(every)
    if not candidates:
        return None
    best = max(candidates, key=lambda row: row.speed_vs_target or 0.0)
    name, alone = short_name(best.strategy), len(candidates) == 1 and not complete
    if _by_chance(best):
        several = f"{name} is the fastest of the lossless strategies{complete},"
        which = f"{name}, which is lossless, is" if alone else several
        return f"{which} {speed_text(best)} target alone, which is within chance."
    if (best.speed_vs_target or 0.0) <= 1:
        if any(map(_by_chance, candidates)):
            return f"no lossless strategy{complete} is shown to be faster than target alone."
        return f"no lossless strategy{complete} is faster than target alone."
    which = (
        f"{name}, which is lossless, is" if alone else f"of the lossless strategies{complete} {name} is the fastest:"
    )
    return f"{which} {speed_text(best)} target alone."


def _fastest_lossy(rows: Sequence[SweepRow]) -> str | None:
    """The fastest of the others whose quality is not shown to be lower; that does not show it to be as good."""
    others = [row for row in rows if not is_lossless(row)]
    judged = [row for row in others if _is_judged(row)]
    target = next((row for row in rows if row.strategy == TARGET), None)
    if target is None or target.quality is None or not judged:
        return None
    level = f"the target's ({number(target.quality, 3)})"
    as_good = [row for row in judged if row.quality_vs_target_interval and row.quality_vs_target_interval[1] >= 0]
    if not as_good:
        every = "every other strategy" if len(judged) == len(others) else "every other strategy with an interval"
        return f"the quality of {every} is lower than {level}, beyond chance."
    candidates, complete = [row for row in as_good if _has_speed(row)], _complete(as_good)
    if not candidates:
        return None
    best = max(candidates, key=lambda row: row.speed_vs_target or 0.0)
    others_as_good = f"{complete}{' and' if complete else ''} whose quality is not shown to be lower than {level}"
    if (best.speed_vs_target or 0.0) <= 1 and not _by_chance(best):
        shown = "shown to be " if any(map(_by_chance, candidates)) else ""
        return f"no other strategy{others_as_good} is {shown}faster than target alone."
    name = short_name(best.strategy)
    return (
        f"of the others{others_as_good}, {name} is the fastest:"
        f" {speed_text(best)} target alone{', which is within chance' if _by_chance(best) else ''},"
        f" quality {best.quality_vs_target or 0.0:+.3f} relative to the target's ({_difference(best)})."
    )


def _complete(rows: Sequence[SweepRow]) -> str:
    """What is said of strategies where others failed on some prompts, so that their speeds do not count."""
    return " that answered every prompt" if any(row.errors for row in rows) else ""


def _difference(row: SweepRow) -> str:
    """The interval of a quality's difference from the target's."""
    low, high = row.quality_vs_target_interval or (0.0, 0.0)
    alike = row.quality_vs_target_interval_kind == "no scatter"
    return "on every prompt" if alike else f"{low:+.3f} to {high:+.3f}"


def _by_chance(row: SweepRow) -> bool:
    """Whether a speed's interval, or its range, includes the target's own speed."""
    bounds = row.speed_interval
    return bounds is not None and row.speed_interval_kind != "no scatter" and bounds[0] <= 1 <= bounds[1]


def _has_speed(row: SweepRow) -> bool:
    """Whether its speed counts: not without an interval, nor if it failed on some prompts, maybe the hard ones."""
    return bool(row.speed_vs_target) and row.speed_interval is not None and not row.errors


def _beyond_chance(rows: Sequence[SweepRow]) -> str | None:
    """How many differences to the target's quality exceed their interval; lossless ones are chance and not counted."""
    lossy = [row for row in rows if row.strategy != TARGET and not is_lossless(row)]
    judged = [row for row in lossy if _is_judged(row)]
    if not judged:
        return None
    beyond = [row for row in judged if is_beyond_chance(row)]
    if not beyond:
        some = len(judged) < len(lossy)
        which = (
            "no lossy strategy that can be judged differs in quality" if some else "no lossy strategy's quality differs"
        )
        whose = "the target" if some else "the target's"
        return f"{which} from {whose} by more than its 95% interval: these prompts cannot tell them apart."
    names = [short_name(row.strategy) for row in beyond[:3]]
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    verb = "differs" if len(beyond) == 1 else "differ"
    return (
        f"{', '.join(names)}{more} {verb} from the target's quality by more than the 95% interval"
        f" ({len(beyond)} of {len(judged)} with loss; one in twenty would differ by chance)."
    )


def _is_judged(row: SweepRow) -> bool:
    """Whether there are enough prompts to tell a difference from chance, even one that is the same on all of them."""
    kind = row.quality_vs_target_interval_kind
    return kind == "95%" or (kind == "no scatter" and (row.num_prompts or row.answers) >= FEWEST)


def is_beyond_chance(row: SweepRow) -> bool:
    """Whether its difference to the target's quality exceeds the scatter of the prompts."""
    bounds = row.quality_vs_target_interval
    return _is_judged(row) and bounds is not None and not bounds[0] <= 0 <= bounds[1]


def caution(rows: Sequence[SweepRow]) -> str | None:
    """A warning if there are too few prompts for intervals: for all strategies, or for those that failed often."""
    few = [row for row in rows if row.answers and _is_few(row)]
    if not few:
        return None
    if len(few) < sum(bool(row.answers) for row in rows):
        names = ", ".join(dict.fromkeys(short_name(row.strategy, fancy=False) for row in few))
        return f"Too few answers for an interval: {names}."
    known = [row.num_prompts for row in few if row.num_prompts is not None]
    count = "Fewer than 6 prompts" if not known else f"Only {counted(max(known), 'prompt')}"
    return f"{count}: no interval can be given, and no difference between strategies can be told from chance."


def _is_few(row: SweepRow) -> bool:
    """Whether its prompts are too few for an interval; older tables have intervals without their kind."""
    if row.quality_interval is None or row.quality_interval_kind is None:
        return row.quality_interval is None
    return row.quality_interval_kind == "range" or (row.num_prompts or row.answers) < FEWEST


def answers_vary(rows: Sequence[SweepRow]) -> bool:
    """Whether strategies differ in the number of answers behind their numbers."""
    return any(row.errors for row in rows) or len({row.answers for row in rows}) > 1


def batches(rows: Sequence[SweepRow]) -> list[str]:
    """What the speeds measure, unless answers were made one at a time."""
    sizes = {row.batch_size for row in rows if row.answers}
    if any(row.batch_size is None and row.seconds and row.tokens_per_second is None for row in rows):
        return ["no speeds where answers came from batches of different sizes"]
    several = sorted(size for size in sizes if size and size > 1)
    return [f"speeds are the throughput of {size} answers at once, without intervals" for size in several]


def scatter_kinds(rows: Sequence[SweepRow], *, differences: bool = True) -> list[str]:
    """What the brackets of qualities, differences (if they are shown) and speeds mean, for the foot of a table."""
    kinds = {row.quality_interval_kind for row in rows}
    kinds |= {row.quality_vs_target_interval_kind for row in rows} if differences else set()
    alike = "no scatter" in kinds
    kinds |= {row.speed_interval_kind for row in rows}
    words = {"95%": "( ): 95% interval over prompts", "range": "[ ]: lowest to highest prompt"}
    meanings = [text for kind, text in words.items() if kind in kinds]
    return [*meanings, "a score without brackets: the same on every prompt"] if meanings and alike else meanings


def passed(row: SweepRow) -> float | None:
    """Accepted over tested drafts; older documents have the rejection rate only."""
    if row.tested_acceptance_rate is None and row.rejection_rate is not None:
        return 1 - row.rejection_rate
    return row.tested_acceptance_rate


def bars_of(rows: Sequence[SweepRow]) -> str:
    """What the bars of a picture show."""
    kinds = {row.quality_interval_kind for row in rows if row.quality_interval is not None}
    if "range" in kinds and "95%" in kinds:
        return "95% interval, or the range over few prompts"
    return "range" if kinds and kinds <= {"range", "no scatter"} else "95% interval"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
