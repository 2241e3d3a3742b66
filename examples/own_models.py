"""Two models of your own, no pair file: `python examples/own_models.py SMALL LARGE "a prompt"` (folders or .gguf)."""

from __future__ import annotations

import sys

from cascli import generate, load_pair


def main(draft: str, target: str, prompt: str = "Hello") -> None:
    """Answer with the target alone and speculatively, and print the target calls of both."""
    pair = load_pair({"draft": {"source": {"path": draft}}, "target": {"source": {"path": target}}})
    alone = generate(pair, prompt, strategy="target", max_new_tokens=32, temperature=0)
    speculative = generate(pair, prompt, strategy="speculative:k=4", max_new_tokens=32, temperature=0)
    print(speculative.text)
    print(f"{alone.metrics.target_calls} target calls alone, {speculative.metrics.target_calls} with speculation")
    print("the same tokens" if alone.token_ids == speculative.token_ids else "the tokens differ: rounding, see verify")


if __name__ == "__main__":
    main(*sys.argv[1:])
