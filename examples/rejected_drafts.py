"""Print each draft that the target rejects, with its probabilities and the token that replaced it."""

from __future__ import annotations

import sys

from cascli import generate, load_pair


def main(pair_name: str = "qwen2.5-coder", prompt: str = "Who is Buzz Aldrin?") -> None:
    """Decode one answer speculatively and list its rejections."""
    pair = load_pair(pair_name)
    run = generate(pair, prompt, strategy="speculative:k=4", max_new_tokens=48, temperature=0)
    print(run.text)
    for number, round_ in enumerate(run.rounds, 1):
        for place, token in enumerate(round_.drafted[: len(round_.emitted)]):
            if not token.accepted:
                instead = round_.emitted[place].text
                print(f"round {number}: {token.text!r} (q {token.q:.2f}, p {token.p:.2f}) became {instead!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
