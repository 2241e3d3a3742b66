"""Which rotary position encodings a model has."""

from __future__ import annotations

LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""Those whose angles depend on how long the text has become."""


def rope_types(config: object) -> set[str]:
    """Their kinds: one for the model, or one a kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [value for value in given.values() if isinstance(value, dict)] or [given]
    return {str(value.get("rope_type", "default")) for value in each}
