"""YAML files as the user means them: numbers of YAML 1.2, no lost keys, bounded size; errors name the file and line.

Does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cascli.errors import ConfigError, UsageError
from cascli.files import YAML_BYTES, text_of

MOST_NODES = 100_000
"""Limit on the values in a YAML file: with aliases, 400 bytes can expand to a hundred million."""


def read_yaml(path: Path, keys: str) -> dict[str, Any]:
    """Parse a YAML file whose top level is a mapping; `keys` are examples for the error message.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        data = _parsed(text_of(path, YAML_BYTES))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {_said(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # an invalid date, a number with thousands of digits
        raise ConfigError(f"{path}: not valid YAML: {str(error).split(';')[0]}") from None
    except UsageError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys such as {keys} at the top level")
    return data


def _said(error: yaml.YAMLError) -> str:
    """What PyYAML says of an error; where there are two documents, its first half is in `context`."""
    problem = str(getattr(error, "problem", None) or error)
    return f"{getattr(error, 'context', None)}, {problem}" if problem.startswith("but ") else problem


def yaml_text(value: str) -> str:
    """A string written as a YAML value, quoted if needed."""
    plain = value.isprintable() and not set(value) & set("{}[],#&*!|>'\"%@`:")
    return value if plain and _parsed(value) == value else json.dumps(value, ensure_ascii=False)


class _Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2: PyYAML (1.1) reads `1e-5` as text, since it has no dot, `010` as 8 and `1:30` as 90."""

    def decimal(self, node: yaml.ScalarNode) -> int:
        """An integer, whatever zeros it begins with; 0x and 0o as in Python."""
        text = node.value.replace("_", "").lower()
        return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o") else int(text)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.decimal)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:\d[\d_]*|0x[\da-f][\da-f_]*|0o[0-7][0-7_]*)$", re.I),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\d[\d_]*)?\.\d[\d_]*(?:e[-+]?\d+)?|\d[\d_]*\.?(?:e[-+]?\d+)|\d[\d_]*\.|\.(?:inf|nan))$", re.I
    ),
    list("-+0123456789."),
)


def _parsed(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: not YAML, a duplicate key, or more than `MOST_NODES` values once aliases are expanded.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > MOST_NODES:
            raise yaml.YAMLError("too many values for a config file")
        duplicate = _duplicate_key(node)
        if duplicate is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{duplicate.value}' is given twice", problem_mark=duplicate.start_mark
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _duplicate_key(node: yaml.Node) -> yaml.Node | None:
    """Return a key that occurs twice in a mapping within `node`, since its first value would be lost; else None."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                return key
            seen.add(name or "")
    return next((key for key in map(_duplicate_key, _parts(node)) if key is not None), None)


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in `node` with all aliases expanded."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # found by a value that contains itself
        known[id(node)] = 1 + sum(_nodes(part, known) for part in _parts(node))
    return known[id(node)]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    """The items of a list, or the keys and values of a mapping."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for entry in node.value:
            yield from entry
