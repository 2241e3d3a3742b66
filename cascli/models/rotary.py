"""Which rotary position encodings a model uses."""

from __future__ import annotations

from typing import Any

LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""Types whose angles depend on the current length of the sequence."""


def rope_types(config: object) -> set[str]:
    """The model's types: a single one, or one per kind of layer."""
    return {_type(value) for value in _parameters(config)}


def changes_at(config: object) -> int | None:
    """Length in tokens beyond which all angles are others (longrope), within the model's context; None if none is.

    Keys in a cache keep the angles of shorter texts. For Phi-3, transformers drops its cache at this length and reads
    the whole text again.
    """
    most = getattr(config, "max_position_embeddings", None) or 0
    own = getattr(config, "original_max_position_embeddings", None)
    changing = [value for value in _parameters(config) if _type(value) == "longrope"]
    lengths = [value.get("original_max_position_embeddings", own) for value in changing]
    return min((int(length) for length in lengths if length and length < most), default=None)


def _parameters(config: object) -> list[dict[str, Any]]:
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [value for value in given.values() if isinstance(value, dict)] or [given]


def _type(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type", "default"))
