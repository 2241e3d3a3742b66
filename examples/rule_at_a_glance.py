"""What a rule's alpha buys: target calls per token and mean TV to the target at several alphas."""

from __future__ import annotations

import sys

from cascli import generate, load_pair

ALPHAS = (0.0, 0.1, 0.3, 0.6)


def main(pair_name: str = "qwen2.5-coder", rule: str = "token-v3", prompt: str = "Why is the sky blue?") -> None:
    """Decode the same prompt at several alphas; all of them use the same random numbers."""
    pair = load_pair(pair_name)
    print(f"{'alpha':>6} {'calls/token':>12} {'mean TV':>8}")
    for alpha in ALPHAS:
        strategy = f"speculative-cascade:rule={rule},alpha={alpha},k=4"
        metrics = generate(pair, prompt, strategy=strategy, max_new_tokens=64, temperature=1).metrics
        print(f"{alpha:6.2f} {metrics.target_calls_per_token:12.3f} {metrics.mean_tv_to_target:8.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
