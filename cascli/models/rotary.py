"""Which rotary position encodings a model uses."""

from __future__ import annotations

LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""Types whose angles depend on the current length of the sequence."""


def rope_types(config: object) -> set[str]:
    """The model's types: a single one, or one per kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [value for value in given.values() if isinstance(value, dict)] or [given]
    return {str(value.get("rope_type", "default")) for value in each}
