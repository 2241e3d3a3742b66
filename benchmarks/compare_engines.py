"""cascli compared with other engines on one pair: `python -m benchmarks.compare_engines --help`.

All engines continue the same prompts greedily by the same number of tokens, taking turns prompt by prompt. Rates and
ratios are totals over totals; the median of the per-prompt ratios is given as well, with its scatter. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import llama_cpp
from benchmarks.engines import Engine, load_stock, of_cascli, of_transformers
from benchmarks.machine import facts
from benchmarks.memory import process_peak
from benchmarks.report import scatter_of
from cascli import Pair, Run, load_pair
from cascli.analysis.explanation import account
from cascli.analysis.profile import Profile
from cascli.analysis.statistics import median, median_interval
from cascli.chat import Conversation, encode
from cascli.decoding.memory import device_peak
from cascli.jobs.profile import profile
from cascli.prompts import builtin

WARM_UP_TOKENS = 10


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtype", default=None, help="precision of cascli's models (default: the pair's own)")
    parser.add_argument("--peer-dtype", default="float32", help="precision of transformers' models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=6, help="how many built-in prompts, spread over the six kinds")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("-k", type=int, nargs="+", default=[2, 4, 6], help="block lengths")
    parser.add_argument("--assisted-k", type=int, nargs="*", help="those of transformers' assisted generation (as -k)")
    parser.add_argument("--no-transformers", action="store_true", help="cascli alone")
    parser.add_argument("--llama-bench", type=Path, help="path of llama.cpp's llama-bench")
    parser.add_argument("--llama-speculative", type=Path, help="path of llama.cpp's llama-speculative")
    parser.add_argument("--gguf", type=Path, nargs=2, metavar=("TARGET", "DRAFT"), help="models for llama.cpp")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, then the JSON document."""
    options = arguments(argv)
    if (options.llama_bench or options.llama_speculative) and not options.gguf:
        sys.exit("--llama-bench and --llama-speculative need --gguf TARGET DRAFT")
    pair = load_pair(options.config, dtype=options.dtype, device=options.device)
    chosen = spread(options.prompts)
    ids = [encode(pair, prompt, Conversation(None), raw=False) for prompt in chosen]
    engines = everybody(pair, options)
    measure(engines, ids, options.max_new_tokens)
    context = int(median([len(each) for each in ids])) + options.max_new_tokens // 2
    steps = profile(pair, context)
    document = {
        "schema": "cascli.engines/1",
        **facts(),
        "pair": pair.info.model_dump(),
        "prompts": chosen,
        "max_new_tokens": options.max_new_tokens,
        "rows": rows(engines),
        "predictions": predictions(engines, steps),
        "profile": steps.model_dump(),
        "llama_cpp": of_llama_cpp(options, chosen),
        "peak_memory_bytes": device_peak(pair.device) or process_peak(),
    }
    show(document)
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def spread(count: int) -> list[str]:
    """Return the first prompts of each kind in turn, so that even a few prompts cover all kinds."""
    kinds: dict[str, list[str]] = {}
    for prompt in builtin():
        kinds.setdefault(prompt.category, []).append(prompt.turns[0])
    by_turn = [
        of_kind[i] for i in range(max(map(len, kinds.values()))) for of_kind in kinds.values() if i < len(of_kind)
    ]
    return by_turn[:count]


def everybody(pair: Pair, options: argparse.Namespace) -> list[Engine]:
    """Return all engines, transformers first."""
    mine = (
        pair.target.dtype if pair.draft.dtype == pair.target.dtype else f"{pair.target.dtype}, draft {pair.draft.dtype}"
    )
    found = []
    if not options.no_transformers:
        target, draft = load_stock(pair, getattr(torch, options.peer_dtype))
        eos = sorted(pair.eos_ids)
        assisted = options.k if options.assisted_k is None else options.assisted_k
        found.append(of_transformers(target, None, None, eos, f"({options.peer_dtype})"))
        found += [of_transformers(target, draft, k, eos, f"({options.peer_dtype})") for k in assisted]
    found.append(of_cascli(pair, "target", f"({mine})"))
    found.append(of_cascli(pair, "draft", f"({mine})"))
    found += [of_cascli(pair, f"speculative:k={k}", f"({mine})") for k in options.k]
    return found


def measure(engines: Sequence[Engine], prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Let all engines answer each prompt in turn, after a warm-up that is not counted."""
    for engine in engines:
        engine.answer(prompts[0], WARM_UP_TOKENS)
    for number, ids in enumerate(prompts):
        for engine in engines:
            found = engine.take(ids, tokens)
            rate = len(found.token_ids) / found.seconds
            print(f"prompt {number + 1}/{len(prompts)}  {engine.name:50} {rate:6.2f} tokens/s", file=sys.stderr)


def rows(engines: Sequence[Engine]) -> list[dict[str, Any]]:
    """Return one row per engine, with its speed relative to the first engine and to cascli's target."""
    first = engines[0]
    ours = next(each for each in engines if each.name.startswith("cascli target"))
    return [
        {
            "name": each.name,
            "tokens": sum(len(answer.token_ids) for answer in each.answers),
            "seconds": sum(answer.seconds for answer in each.answers),
            "tokens_per_second": _rate(each),
            "ratio_to_first": _ratio(each, first),
            "ratio_to_cascli_target": _ratio(each, ours),
            "same_tokens_as_cascli_target": sum(
                mine.token_ids == theirs.token_ids for mine, theirs in zip(each.answers, ours.answers, strict=True)
            ),
            "other_share": _other(each),
        }
        for each in engines
    ]


def _rate(of: Engine) -> float:
    return sum(len(answer.token_ids) for answer in of.answers) / sum(answer.seconds for answer in of.answers)


def _ratio(of: Engine, to: Engine) -> dict[str, Any]:
    ratios = [
        (len(mine.token_ids) / mine.seconds) / (len(theirs.token_ids) / theirs.seconds)
        for mine, theirs in zip(of.answers, to.answers, strict=True)
    ]
    scatter = median_interval(ratios)
    return {
        "median": median(ratios),
        "interval": scatter and (scatter.low, scatter.high),
        "kind": scatter and scatter.kind,
        "totals": _rate(of) / _rate(to),
    }


def _other(of: Engine) -> float | None:
    runs = _runs(of)
    if not runs:
        return None
    return sum(run.metrics.seconds.other for run in runs) / sum(run.metrics.seconds.total for run in runs)


def _runs(of: Engine) -> list[Run]:
    return [answer.run for answer in of.answers if answer.run is not None]


def predictions(engines: Sequence[Engine], steps: Profile) -> list[dict[str, Any]]:
    """Return the predicted and measured speed-up of each of cascli's speculative engines."""
    target = [run for each in engines for run in _runs(each) if run.strategy == "target"]
    found = []
    for each in engines:
        runs = _runs(each)
        if runs and runs[0].strategy == "speculative":
            found.append(account(runs, [*target, *runs], steps).model_dump())
    return found


def of_llama_cpp(options: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any] | None:
    """Return what llama.cpp's programs report, if their paths were given."""
    threads, tokens = torch.get_num_threads(), options.max_new_tokens
    found: dict[str, Any] = {}
    if options.llama_bench:
        for role, path in zip(("target", "draft"), options.gguf, strict=True):
            found[role] = llama_cpp.target_speed(options.llama_bench, path, threads, tokens)
    if options.llama_speculative:
        target, draft = options.gguf
        for k in options.k:
            found[f"speculative k={k}"] = llama_cpp.speculative_speed(
                options.llama_speculative, target, draft, threads, k, prompts, tokens
            )
    return found or None


def show(document: dict[str, Any]) -> None:
    """Print the human-readable table on stdout, before the JSON line."""
    console = Console(width=120)
    table = Table(title=f"{document['processor']}, {document['cores']} cores", box=None)
    for heading in (
        "",
        "tokens/s",
        "to first",
        "median of prompts",
        "to cascli target",
        "same tokens",
        "outside models",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in document["rows"]:
        other = "" if row["other_share"] is None else f"{row['other_share']:.3f}"
        table.add_row(
            row["name"],
            f"{row['tokens_per_second']:.2f}",
            f"{row['ratio_to_first']['totals']:.2f}x",
            scatter_of(row["ratio_to_first"]),
            f"{row['ratio_to_cascli_target']['totals']:.2f}x",
            f"{row['same_tokens_as_cascli_target']}/{len(document['prompts'])}",
            other,
        )
    console.print(table)
    for each in document["predictions"]:
        console.print(
            f"k = {each['k']}: acceptance {each['acceptance']:.2f}, c {each['c']:.2f}, v {each['v']:.2f}; predicted"
            f" {each['predicted_speed_up']:.2f}x, measured {each['measured_speed_up']:.2f}x,"
            f" measured over predicted {each['measured_over_predicted']:.2f}"
        )


if __name__ == "__main__":
    main()
