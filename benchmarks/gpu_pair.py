"""A row of `benchmarks.gpu`, in its own process: `python -m benchmarks.gpu_pair REQUEST.json RESULT.json`.

The most informative parts come first, and the entry is saved after each. When the time is up the rest is left out; when
a part fails the others still run, and the entry has its traceback. Where the process is shortly after the time is up is
printed, as it may be killed there.
"""

from __future__ import annotations

import faulthandler
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import compare_engines
from benchmarks.gpu_job import Ask
from benchmarks.gpu_work import work_of
from benchmarks.memory import process_peak
from benchmarks.transformers_baseline import static_cache_baseline, transformers_baseline
from cascli import Pair, kernels, load_pair
from cascli.analysis import theory
from cascli.analysis.bench import Bench, SyntheticRuns
from cascli.analysis.profile import Profile
from cascli.chat import Conversation, encode
from cascli.decoding.memory import device_peak, reset_device_peak
from cascli.jobs.bench import bench, synthetic_context, synthetic_runs
from cascli.jobs.profile import blocks_for
from cascli.models.gpu.graph_runner import GraphRunner

ACCEPTANCES = (0.8, 0.6, 0.9)
"""Acceptance rates of speculation; the first is the one in the table."""
PROMPT = [7] * 32
HEAVY = 10e9
"""Bytes of target weights above which steps are slow and their times steady, so that fewer are measured."""
_FEW_REPEATS, _FEW_TOKENS = 3, 64
_ASSISTED_TOKENS = 32
_TRACEBACK = 4000
"""Characters of a failed part's traceback that are kept, from its end."""
_OVERDUE = 3.0
"""Seconds after the time is up when a part that is still running prints where it is."""
ROLES = ("draft", "target")

Save = Callable[[dict[str, Any]], None]


def main(argv: list[str] | None = None) -> None:
    """Measure what the request asks for, and write the entry to the result file."""
    request, result = map(Path, sys.argv[1:] if argv is None else argv)

    def save(found: dict[str, Any]) -> None:
        new = result.with_suffix(".new")
        new.write_text(json.dumps(found), encoding="utf-8")
        new.replace(result)  # atomic: if the process is killed here, the previous entry remains

    ask = Ask.read(request)
    if math.isfinite(ask.until):
        faulthandler.dump_traceback_later(max(ask.until - time.time(), 0.0) + _OVERDUE)
    Measurement(ask, save).all()
    faulthandler.cancel_dump_traceback_later()


class Measurement:
    """The entry of a pair, measured part by part."""

    def __init__(self, ask: Ask, save: Save) -> None:
        """Load the pair."""
        self._ask = ask
        self._save = save
        start = time.perf_counter()
        self.pair = load_pair(ask.config, device=ask.device, dtype=ask.dtype, compile=ask.compiled)
        self.seconds = {"loading": time.perf_counter() - start}
        self.heavy = (self.pair.target.info.weight_bytes or 0) > HEAVY
        self.repeats = min(ask.repeats, _FEW_REPEATS) if self.heavy else ask.repeats
        self.tokens = min(ask.tokens, _FEW_TOKENS) if self.heavy else ask.tokens
        self.steps: Profile | None = None
        """Step times near the context of the synthetic runs; None if they could not be measured."""
        self.found: dict[str, Any] = {
            "name": self.pair.name,
            "compiled": ask.compiled,
            "device": _name(self.pair.device),
            "gpu": _gpu(self.pair.device),
            "dtype": ask.dtype,
            "repeats": self.repeats,
            "tokens": self.tokens,
            "load_seconds": self.seconds["loading"],
            "why_eager": {role: getattr(self.pair, role).eager_because for role in ROLES},
            "why_unfused": {role: getattr(self.pair, role).unfused_because for role in ROLES},
            "vocabulary": self.pair.vocab,
            "weight_bytes": {role: getattr(self.pair, role).info.weight_bytes for role in ROLES},
            "speculation": [],
            "transformers": None,
            "work": {},
            "answers": None,
            "left_out": [],
            "failed": {},
        }
        self._keep()

    def all(self) -> dict[str, Any]:
        """Measure the steps, and then everything that there is time for."""
        self._attempt("steps", self._measure_steps)
        first, *others = (partial(self._speculate, acceptance) for acceptance in ACCEPTANCES)
        self._part(f"speculation at {ACCEPTANCES[0]}", first)
        if not self._ask.compiled:  # transformers' models are not compiled: they belong to the pair's plain row
            self._part("transformers", self._beside)
        for acceptance, other in zip(ACCEPTANCES[1:], others, strict=True):
            self._part(f"speculation at {acceptance}", other)
        if self._ask.compiled:  # compare compiled with compiled
            self._part("transformers with a static cache", self._beside_static)
        models = [getattr(self.pair, role).model for role in ROLES]
        if not self._ask.compiled and all(model.config._name_or_path for model in models):
            self._part("answers", self._answers)
        # Last, as nothing can be timed after it: CUPTI stays attached to graphs and may slow them, or hang.
        for strategy in ("target", f"speculative:k={self._ask.k}"):
            self._part(f"work of {strategy}", partial(self._work, strategy))
        return self.found

    def _part(self, name: str, measure: Callable[[], None]) -> None:
        if self._late():
            self.found["left_out"].append(name)
            self._keep()
            return
        self._attempt(name, measure)

    def _attempt(self, name: str, measure: Callable[[], None]) -> None:
        start = time.perf_counter()
        try:
            measure()
        except Exception as error:  # no failure of one part may affect the others
            said = f"{type(error).__name__}: {error}"[:2000]
            self.found["failed"][name] = f"{said}\n{traceback.format_exc()[-_TRACEBACK:]}"
        self.seconds[name] = time.perf_counter() - start
        self._keep()

    def _late(self) -> bool:
        return time.time() > self._ask.until

    def _keep(self) -> None:
        self.found |= {
            "seconds": self.seconds,
            "graphs": _graphs(self.pair),
            "peak_memory_bytes": device_peak(self.pair.device) or process_peak(),
        }
        self._save(self.found)

    def _measure_steps(self) -> None:
        """Time the steps once; the profile of the nearest context is also used for synthetic runs."""
        blocks = blocks_for([self._ask.k], self.pair.context)
        found = bench(self.pair, contexts=self._ask.contexts, blocks=blocks, repeats=self.repeats)
        reset_device_peak(self.pair.device)  # report the peak of decoding, without the copy's buffers
        self.found |= {
            "copy_bytes_per_second": found.copy_bytes_per_second,
            "ratio_of_bytes": found.ratio_of_bytes,
            "profiles": [_of_profile(found, at) for at in found.profiles],
        }
        self.steps = min(found.profiles, key=lambda at: abs(at.context - synthetic_context(self.tokens)))

    def _speculate(self, acceptance: float) -> None:
        ks = (self._ask.k,)
        found = synthetic_runs(self.pair, acceptance, ks=ks, tokens=self.tokens, repeats=self.repeats, steps=self.steps)
        self.found["speculation"].append(_of_replay(found))
        self.found["speculation"].sort(key=lambda each: each["chosen_acceptance"])
        self._compare()

    def _beside(self) -> None:
        """Time generate and assisted generation, whose rounds may write only one token: random models seldom agree."""
        self.found["transformers"] = transformers_baseline(
            self.pair,
            PROMPT,
            self._ask.k,
            tokens=max(self.tokens // 2, 2),
            assisted_tokens=max(min(self.tokens // 2, _ASSISTED_TOKENS), 2),
            repeats=2 if self.heavy else 3,
            late=self._late,
        )
        self._compare()

    def _beside_static(self) -> None:
        """Time generate with a static cache: transformers then compiles its steps, as cascli does in this row."""
        tokens, repeats = max(self.tokens // 2, 2), 2 if self.heavy else 3
        found = static_cache_baseline(self.pair, PROMPT, tokens=tokens, repeats=repeats, late=self._late)
        self.found["transformers"] = found

    def _compare(self) -> None:
        """Compute the speed of assisted generation at each acceptance rate from its time per round."""
        if self.found["transformers"] is None:
            return
        for entry in self.found["speculation"]:
            tokens = theory.expected_tokens(entry["chosen_acceptance"], self._ask.k)
            rate = tokens / self.found["transformers"]["assisted_seconds_per_round"]
            entry["assisted_tokens_per_second_at_this_acceptance"] = rate
            entry["ratio_to_assisted_at_this_acceptance"] = entry["tokens_per_second"] / rate

    def _work(self, strategy: str) -> None:
        self.found["work"][strategy] = work_of(self.pair, strategy, PROMPT)

    def _answers(self) -> None:
        """Compare with transformers on built-in prompts, for real weights: speed, and whether answers are the same."""
        dtype = "float32" if self._ask.dtype == "int8" else self._ask.dtype
        asked = compare_engines.arguments(["-k", str(self._ask.k), "--peer-dtype", dtype, "--prompts", "4"])
        engines = compare_engines.everybody(self.pair, asked)
        ids = [
            encode(self.pair, prompt, Conversation(None), raw=False) for prompt in compare_engines.spread(asked.prompts)
        ]
        compare_engines.measure(engines, ids, self.tokens)
        self.found["answers"] = compare_engines.rows(engines)


def _of_profile(found: Bench, at: Profile) -> dict[str, Any]:
    return {
        "context": at.context,
        "draft_ms": 1000 * at.draft[1].median,
        "target_ms": {str(n): 1000 * each.median for n, each in at.target.items()},
        "c": at.c,
        "c_over_ratio_of_bytes": at.c / found.ratio_of_bytes if found.ratio_of_bytes else None,
        "v": {str(n): at.v(n) for n in at.target},
        "bandwidth_share": {role: found.bandwidth_share(role, at) for role in ("draft", "target")},
    }


def _of_replay(found: SyntheticRuns) -> dict[str, Any]:
    """Return the entry of one acceptance rate: measured and predicted."""
    return {
        "chosen_acceptance": found.acceptance,
        "target_tokens_per_second": found.target_tokens_per_second,
        "tokens_per_second": found.tokens_per_second[0],
        "outside_the_models": 1 - found.models_share[0],
        "target_outside_the_model": 1 - (found.target_models_share or 1.0),
        **found.accounts[0].model_dump(),
    }


def _graphs(pair: Pair) -> dict[str, dict[str, float] | None]:
    """Return number and capture time of the models' graphs, and of a round's; None where nothing is captured."""
    found = {role: _graphs_of(getattr(pair, role).runner) for role in ROLES}
    return found | {"rounds": {"capture_seconds": pair.graphs.seconds} if pair.graphs.captures else None}


def _graphs_of(runner: object) -> dict[str, float] | None:
    if not isinstance(runner, GraphRunner):
        return None
    return {
        "count": runner.graphs,
        "capture_seconds": runner.capture_seconds,
        "compile_seconds": runner.compile_seconds or 0.0,
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _gpu(device: torch.device) -> dict[str, Any] | None:
    """Return what figures depend on besides the device's name; None for a CPU."""
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    return {
        "capability": [about.major, about.minor],
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "no_kernels_because": kernels.missing(device),
    }


if __name__ == "__main__":
    main()
