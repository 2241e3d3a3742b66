"""Pairs at real shapes on a GPU, with random weights: `python -m benchmarks.gpu --help`, `make bench-gpu`.

By pair: step times, c against the ratio of bytes, v, share of the memory bandwidth, speculation at chosen acceptance
rates against theory, and transformers on the same weights. transformers cannot be told how many drafts to accept: its
assisted generation is timed by the round, and its speed at an acceptance rate is what that many tokens a round would
come to. Pairs are measured with steps as they are, then, as far as the time goes, with compiled ones. No network is
needed. The GPU tests run last. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import peers
from benchmarks.beside import transformers_beside
from benchmarks.gpu_table import show
from benchmarks.machine import facts
from benchmarks.shapes import PAIRS, pair_config
from cascli import Pair, generate, load_pair, theory
from cascli.bench import Bench
from cascli.chat import Conversation, encode
from cascli.errors import CascliError
from cascli.jobs.bench import bench
from cascli.memory import peak
from cascli.models.graph_runner import GraphRunner

PACKAGES = ("torch", "transformers", "triton")
ACCEPTANCES = (0.6, 0.8, 0.9)
PROMPT = [7] * 32


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a pair with real weights instead: name or YAML file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, nargs="*", help="only those with these numbers, from 0")
    parser.add_argument("--shrink", type=int, default=1, help="divide widths and layers, to try the program out")
    parser.add_argument("--seconds", type=float, default=330, help="begin no further pair after this long")
    parser.add_argument("--no-compiled", action="store_true", help="leave out compiled steps")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here, pair by pair")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON document."""
    options, start = arguments(argv), time.perf_counter()
    document: dict[str, Any] = {
        "schema": "cascli.gpu/1",
        **facts(PACKAGES),
        "device": _name(options.device),
        "pairs": [],
    }
    for config, compiled in _rounds(options):
        about = {"name": _title(config), "compiled": compiled}
        if time.perf_counter() - start > options.seconds:
            document["pairs"].append({**about, "skipped": "out of time"})
            continue
        try:
            found = of_pair(config, options, compiled)
        except (RuntimeError, ValueError, CascliError) as error:  # one pair's failure must not cost the others
            found = {**about, "error": f"{type(error).__name__}: {error}"[:2000]}
        document["pairs"].append(found)
        print(json.dumps(found), file=sys.stderr)
        _write(document, options.output)
        _free()
    if not options.no_tests:
        document["tests"] = run_tests()
    _write(document, options.output)
    show(document)
    print(json.dumps(document))


def _configs(options: argparse.Namespace) -> list[Any]:
    if options.config:
        return [options.config]
    chosen = PAIRS if options.pairs is None else [PAIRS[number] for number in options.pairs]
    return [pair_config(draft, target, options.shrink) for draft, target in chosen]


def _rounds(options: argparse.Namespace) -> list[tuple[Any, bool]]:
    """What is measured, in this order: every pair, then every pair again with compiled steps."""
    configs = _configs(options)
    again = [] if options.no_compiled or not options.device.startswith("cuda") else configs
    return [*((config, False) for config in configs), *((config, True) for config in again)]


def of_pair(config: Any, options: argparse.Namespace, compiled: bool = False) -> dict[str, Any]:
    """Everything about one pair; transformers need not be measured again beside compiled steps."""
    start = time.perf_counter()
    pair = load_pair(config, device=options.device, dtype=options.dtype, compile=compiled)
    loaded = time.perf_counter() - start
    first = _bench(pair, ACCEPTANCES[0], options.context, options)
    benches = [first, *(_bench(pair, a, options.context[:1], options) for a in ACCEPTANCES[1:])]
    beside = None if compiled else transformers_beside(pair, PROMPT, options.k, options.tokens // 2)
    return {
        "name": pair.name,
        "compiled": compiled,
        "load_seconds": loaded,
        "dtype": options.dtype,
        "why_eager": {role: getattr(pair, role).eager_because for role in ("draft", "target")},
        "copy_bytes_per_second": first.copy_bytes_per_second,
        "ratio_of_bytes": first.ratio_of_bytes,
        "weight_bytes": {role: getattr(pair, role).info.weight_bytes for role in ("draft", "target")},
        "profiles": [_of_profile(first, number) for number in range(len(first.profiles))],
        "speculation": [_of_replay(found, beside, options.k) for found in benches],
        "transformers": beside,
        "work": {name: work_of(pair, name, options) for name in ("target", f"speculative:k={options.k}")},
        "answers": None if compiled else answers(pair, options),
        "graphs": {role: _graphs(pair, role) for role in ("draft", "target")},
        "peak_memory_bytes": peak(pair.device),
    }


def _bench(pair: Pair, acceptance: float, contexts: Sequence[int], options: argparse.Namespace) -> Bench:
    return bench(
        pair,
        contexts=contexts,
        repeats=options.repeats,
        synthetic_acceptance=acceptance,
        ks=(options.k,),
        tokens=options.tokens,
    )


def _of_profile(found: Bench, number: int) -> dict[str, Any]:
    at = found.profiles[number]
    return {
        "context": at.context,
        "draft_ms": 1000 * at.draft[1].median,
        "target_ms": {n: 1000 * each.median for n, each in at.target.items()},
        "c": at.c,
        "c_over_ratio_of_bytes": at.c / found.ratio_of_bytes if found.ratio_of_bytes else None,
        "v": {n: at.v(n) for n in at.target},
        "bandwidth_share": {role: found.bandwidth_share(role, at) for role in ("draft", "target")},
    }


def _of_replay(found: Bench, beside: dict[str, Any] | None, k: int) -> dict[str, Any]:
    """One acceptance rate: measured beside predicted, and beside transformers at as many tokens a round."""
    replay = found.synthetic
    if replay is None:
        raise ValueError("the bench has no replay")
    account = replay.accounts[0]
    document: dict[str, Any] = {
        "chosen_acceptance": replay.acceptance,
        "target_tokens_per_second": replay.target_tokens_per_second,
        "tokens_per_second": replay.tokens_per_second[0],
        "outside_the_models": 1 - replay.models_share[0],
        "target_outside_the_model": 1 - (replay.target_models_share or 1.0),
        **account.model_dump(),
    }
    if beside is not None:
        rate = theory.expected_tokens(replay.acceptance, k) / beside["assisted_seconds_per_round"]
        document["assisted_tokens_per_second_at_this_acceptance"] = rate
        document["ratio_to_assisted_at_this_acceptance"] = replay.tokens_per_second[0] / rate
    return document


def answers(pair: Pair, options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Real weights on built-in prompts, beside transformers: speed, and whether answers are the same."""
    if not all(model.model.config._name_or_path for model in (pair.draft, pair.target)):
        return None
    dtype = "float32" if options.dtype == "int8" else options.dtype
    asked = peers.arguments(["-k", str(options.k), "--peer-dtype", dtype, "--prompts", "4"])
    contestants = peers.everybody(pair, asked)
    ids = [encode(pair, prompt, Conversation(None), raw=False) for prompt in peers.spread(asked.prompts)]
    peers.measure(contestants, ids, options.tokens)
    return peers.rows(contestants)


def work_of(pair: Pair, strategy: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Kernels, and transfers to and from the host, for each round of a strategy, as the profiler counts them."""
    if pair.device.type != "cuda":
        return None
    ask: dict[str, Any] = {"strategy": strategy, "max_new_tokens": options.tokens // 4, "temperature": 1.0}
    generate(pair, prompt_ids=PROMPT, **ask)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run = generate(pair, prompt_ids=PROMPT, **ask)
    names = [event.name for event in seen.events()]
    counted = {
        "to_host": sum(name.startswith("Memcpy DtoH") for name in names),
        "from_host": sum(name.startswith("Memcpy HtoD") for name in names),
        "kernels": sum(not name.startswith(("Memcpy", "Memset")) for name in names),
    }
    return {"rounds": len(run.rounds)} | {name: count / len(run.rounds) for name, count in counted.items()}


def _graphs(pair: Pair, role: str) -> dict[str, float] | None:
    runner = getattr(pair, role).runner
    if not isinstance(runner, GraphRunner):
        return None
    return {
        "count": runner.graphs,
        "capture_seconds": runner.capture_seconds,
        "compile_seconds": runner.compile_seconds or 0.0,
    }


def run_tests() -> dict[str, Any]:
    """The GPU tests, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu", "tests/kernels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "output": done.stdout[-3000:]}


def _title(config: Any) -> str:
    return str(config["name"] if isinstance(config, dict) else config)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def _write(document: dict[str, Any], output: Path | None) -> None:
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
