"""Whether tokens cost more as the answer grows: the seconds of every round of one long run, with a plot.

`python -m benchmarks.answer_length -o FILE.json --plot FILE.png`. No token ends the answer. Attention over a longer
cache is unavoidable; any other growth would come from the decoding loop itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from cascli import generate, load_pair
from cascli.analysis.statistics import median
from cascli.chat import Conversation, encode
from cascli.models.pair import Pair
from cascli.render.plots import pyplot
from cascli.trace import Run

PROMPT = "Write the history of flight, from Leonardo da Vinci to the Moon, in as many words as you can."
STRATEGIES = ("target", "speculative:k=2")
Point = dict[str, float]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=128, help="tokens that one point of the picture is about")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here")
    parser.add_argument("--plot", type=Path, help="draw it into this .png or .svg file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON document."""
    options = arguments(argv)
    pair = load_pair(options.config, dtype=options.dtype)
    curves = {
        strategy: windows(_run(pair, strategy, options.max_new_tokens), options.window) for strategy in STRATEGIES
    }
    document: dict[str, Any] = {
        "schema": "cascli.answer-length/1",
        **facts(),
        "pair": options.config,
        "dtypes": [pair.info.draft.dtype, pair.info.target.dtype],
        "curves": curves,
    }
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(curves, options.plot, f"{options.config}, {options.dtype}")
    print(json.dumps(document))


def _run(pair: Pair, strategy: str, tokens: int) -> Run:
    endless = replace(pair, eos_ids=frozenset())
    ids = encode(pair, PROMPT, Conversation(None), raw=False)
    generate(endless, prompt_ids=ids, strategy=strategy, temperature=0.0, max_new_tokens=16)
    return generate(endless, prompt_ids=ids, strategy=strategy, temperature=0.0, max_new_tokens=tokens)


def windows(run: Run, width: int) -> list[Point]:
    """Per window of `width` tokens: median milliseconds of a round, those outside the models, and per token."""
    points, here, position = [], [], 0
    for each in run.rounds[1:]:  # the first round includes the prompt
        here.append(each)
        position += len(each.emitted)
        emitted = sum(len(one.emitted) for one in here)
        if emitted < width:
            continue
        seconds = [one.seconds for one in here]
        points.append(
            {
                "after": position,
                "round_ms": 1000 * median([one.total for one in seconds]),
                "verify_ms": 1000 * median([one.verify for one in seconds]),
                "other_ms": 1000 * median([one.total - one.draft - one.verify for one in seconds]),
                "token_ms": 1000 * sum(one.total for one in seconds) / emitted,
            }
        )
        here = []
    return points


def draw(curves: dict[str, list[Point]], path: Path, title: str) -> None:
    """Plot milliseconds of a round, and of its part outside the models, over the length of the answer."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for color, (strategy, points) in zip(("#1d4ed8", "#c2410c"), curves.items(), strict=True):
        after = [point["after"] for point in points]
        axes.plot(after, [point["round_ms"] for point in points], "o-", color=color, label=f"{strategy}: a round")
        other = [point["other_ms"] for point in points]
        axes.plot(after, other, "o:", color=color, label=f"{strategy}: outside the models")
    axes.set(xlabel="tokens answered", ylabel="ms (median)", title=title, ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
