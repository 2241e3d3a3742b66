"""The flags that commands share, each defined once, and the decorator that adds them to a command.

A command that asks for common options receives one `Flags` object in their place: the pair's name and
what the user gave, checked. Precedence is settled later, when the pair's file is known.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cascli.cli import complete
from cascli.settings import Settings, checked

MODELS, STRATEGY, SAMPLING, PROMPT, OUTPUT = "Models", "Strategy", "Sampling", "Prompt", "Output"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


SHARED: dict[str, tuple[Any, Any]] = {
    "config": (
        str,
        _option("--config", "-c", panel=MODELS, help="Pair name or YAML file.", autocompletion=complete.pairs),
    ),
    "device": (
        str,
        _option("--device", panel=MODELS, help="auto, cpu, cuda or cuda:1.", autocompletion=complete.devices),
    ),
    "dtype": (
        str,
        _option(
            "--dtype", panel=MODELS, help="auto, float32, bfloat16, float16, int8.", autocompletion=complete.dtypes
        ),
    ),
    "cuda_graphs": (
        bool,
        _option("--cuda-graphs/--no-cuda-graphs", panel=MODELS, help="Record decoding steps on a GPU. (default yes)"),
    ),
    "compile": (
        bool,
        _option("--compile/--no-compile", panel=MODELS, help="Let torch.compile make the steps on a GPU. (default no)"),
    ),
    "offline": (bool, _option("--offline/--no-offline", panel=MODELS, help="Fail rather than download.")),
    "strategy": (
        list[str],
        _option(
            "--strategy",
            "-s",
            panel=STRATEGY,
            help="Name with parameters, e.g. speculative-cascade:rule=opt,alpha=0.3 (see: cascli strategies).",
            autocompletion=complete.strategies,
        ),
    ),
    "num_speculative_tokens": (
        int,
        _option("--num-speculative-tokens", "-k", panel=STRATEGY, help="Drafted tokens a round, 1 to 64. (default 4)"),
    ),
    "max_new_tokens": (int, _option("--max-new-tokens", panel=SAMPLING, help="Longest answer. (default 64)")),
    "temperature": (float, _option("--temperature", panel=SAMPLING, help="0 is greedy. (default the pair's, else 1)")),
    "top_k": (int, _option("--top-k", panel=SAMPLING, help="Keep the k most likely tokens; 0 is off.")),
    "top_p": (float, _option("--top-p", panel=SAMPLING, help="Keep the smallest set of this mass; 1 is off.")),
    "seed": (int, _option("--seed", panel=SAMPLING, help="Seed of the run's own random numbers. (default 0)")),
    "stop": (list[str], _option("--stop", panel=SAMPLING, help="End the answer before this text; may be repeated.")),
    "system": (str, _option("--system", panel=PROMPT, help="System text for the chat template.")),
    "raw": (bool, _option("--raw/--no-raw", panel=PROMPT, help="No chat template: continue the prompt as it is.")),
    "prompts": (
        str,
        _option(
            "--prompts", panel=PROMPT, help="JSONL file, or - for stdin: 'prompt' or 'turns' on each line; or: builtin."
        ),
    ),
    "limit": (int, _option("--limit", panel=PROMPT, help="Take only the first N prompts of the file.")),
    "top": (
        int,
        _option("--top", panel=OUTPUT, help="Keep each model's N likeliest tokens, 0 to 20. (default 0; 5 for .html)"),
    ),
    "json": (bool, _option("--json/--no-json", panel=OUTPUT, help="Print one JSON document instead of text.")),
    "output": (str, _option("--output", "-o", panel=OUTPUT, help="Also write the result to this file.")),
    "format": (
        str,
        _option(
            "--format",
            panel=OUTPUT,
            help="What -o writes, where its suffix does not say; without -o on stdout.",
            autocompletion=complete.formats,
        ),
    ),
    "quiet": (bool, _option("--quiet/--no-quiet", "-q", panel=OUTPUT, help="Print the essential result only.")),
    "verbose": (
        bool,
        _option("--verbose/--no-verbose", "-v", panel=OUTPUT, help="Show what was rejected, and more detail."),
    ),
    "color": (str, _option("--color", panel=OUTPUT, help="auto, always or never.", autocompletion=complete.colors)),
}


@dataclass(frozen=True)
class Flags:
    """What the user gave on the command line."""

    config: str | None
    given: Settings


def with_shared(*keys: str, **helps: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command the named common options (all of them if none is named), passed on as `flags`.

    `helps` are what this command's help says of an option in place of the common text, such as what `output` may be.
    """
    wanted: Sequence[str] = keys or tuple(SHARED)

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [parameter for name, parameter in own.items() if name != "flags"]
        for key in wanted:
            kind, option = SHARED[key]
            if key in helps:
                option = copy.copy(option)
                option.help = helps[key]
            parameters.append(
                inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
                )
            )

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            shared = {key: values.pop(key) for key in wanted}
            config = shared.pop("config", None)
            given = {key: value for key, value in shared.items() if value not in (None, [])}
            flags = Flags(config, checked(given, spell=flag_name))
            command(**values, flags=flags)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def flag_name(key: str) -> str:
    """How the user spells a setting on the command line."""
    return "--" + key.replace("_", "-")
