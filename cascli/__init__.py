"""Compare decoding strategies for a draft and a target language model.

    from cascli import load_pair, generate
    pair = load_pair("qwen2.5-coder")
    run = generate(pair, "Who is Buzz Aldrin?", strategy="speculative:k=4", temperature=0)

Importing this package does not import torch or transformers; the names below do so on first use.
"""

from __future__ import annotations

from cascli.version import __version__

# Nothing else is imported here, not even typing: Ctrl-C shows a traceback until `cascli.__main__` can catch it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cascli.jobs.advise import advise
    from cascli.jobs.batch import generate_many
    from cascli.jobs.compare import compare
    from cascli.jobs.generate import generate
    from cascli.models.load import load_pair
    from cascli.models.pair import Pair
    from cascli.rules.base import KeepRule, Rule, ThresholdRule
    from cascli.strategies.base import Strategy
    from cascli.sweeps.run import sweep
    from cascli.trace import Run

__all__ = [
    "KeepRule",
    "Pair",
    "Rule",
    "Run",
    "Strategy",
    "ThresholdRule",
    "__version__",
    "advise",
    "compare",
    "generate",
    "generate_many",
    "load_pair",
    "sweep",
]

_HOMES = {
    "advise": "cascli.jobs.advise",
    "compare": "cascli.jobs.compare",
    "generate": "cascli.jobs.generate",
    "generate_many": "cascli.jobs.batch",
    "load_pair": "cascli.models.load",
    "sweep": "cascli.sweeps.run",
    "Pair": "cascli.models.pair",
    "Rule": "cascli.rules.base",
    "KeepRule": "cascli.rules.base",
    "ThresholdRule": "cascli.rules.base",
    "Strategy": "cascli.strategies.base",
    "Run": "cascli.trace",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cascli' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names for tab completion, without importing them."""
    return [*globals(), *_HOMES]
