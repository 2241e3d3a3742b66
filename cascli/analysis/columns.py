"""The columns of csv and Parquet files and of data frames, with the same names in all of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

TableKind = Literal["generate", "compare", "sweep", "curves", "bench", "verify"]
"""The commands that write tables; `curves` is `sweep --rule-curves`."""


class Column(NamedTuple):
    """A column's name, type and meaning, and the kinds of tables that have it."""

    name: str
    type: type
    meaning: str
    kinds: tuple[TableKind, ...]


GENERATE: tuple[TableKind, ...] = ("generate",)
COMPARE: tuple[TableKind, ...] = ("compare",)
SWEEP: tuple[TableKind, ...] = ("sweep",)
CURVES: tuple[TableKind, ...] = ("curves",)
BENCH: tuple[TableKind, ...] = ("bench",)
VERIFY: tuple[TableKind, ...] = ("verify",)
RACES = COMPARE + SWEEP
ANSWERS = GENERATE + RACES
RUNS = GENERATE + COMPARE
RULES = ANSWERS + CURVES
SPEEDS = ANSWERS + BENCH
STRATEGIES = RULES + BENCH
ALL = STRATEGIES + VERIFY

_IDENTITY = (
    (STRATEGIES, "strategy", str, "the strategy with all its parameters, in command-line syntax"),
    (STRATEGIES, "name", str, "its name, such as `speculative-cascade`"),
    (STRATEGIES, "rule", str, "its deferral rule"),
    (STRATEGIES, "alpha", float, "the rule's alpha"),
    (STRATEGIES, "k", int, "drafted tokens per round"),
    (STRATEGIES, "draft", str, "where drafted tokens come from: `model`, or a drafter such as `prompt-lookup`"),
    (ANSWERS, "score", str, "a cascade's score of the draft model's answer"),
    (
        ANSWERS,
        "threshold",
        float,
        "lowest score at which that answer is kept; also the threshold of a rule that has one",
    ),
    (RUNS, "oracle", bool, "whether it used information that it would lack if it saved the calls it claims to save"),
    (RUNS, "depends_on_rounds", bool, "whether its output distribution depends on where rounds begin"),
    (RUNS, "exit", str, "where drafts exit the target, with draft=early-exit, and whether it was trained for that"),
    (BENCH, "kind", str, "`step`: one model's call; `synthetic`: decoding at a chosen acceptance"),
    (BENCH, "model", str, "the model whose call was timed: `draft` or `target`"),
    (BENCH, "context", int, "tokens before the timed call"),
    (BENCH, "block", int, "tokens that the timed call reads"),
    (GENERATE, "prompt_id", str, "the prompt's id, if there are several prompts"),
    (GENERATE, "category", str, "the prompt's category, if its file gives one"),
    (GENERATE, "turn", int, "turn of the conversation, counted from 0"),
    (GENERATE, "prompt", str, "the prompt"),
    (GENERATE, "text", str, "the answer"),
    (GENERATE, "finish_reason", str, "why it ended: `eos`, `stop`, `length` or `interrupted`"),
    (VERIFY, "kind", str, "the kind of check, such as `law` or `parity`"),
    (VERIFY, "subject", str, "what was checked"),
)
_CONDITIONS = (
    (ALL, "pair", str, "the pair's name"),
    (ALL, "draft_dtype", str, "precision of the draft model; empty where the pair has none"),
    (ALL, "target_dtype", str, "precision of the target"),
    (ALL, "device", str, "where the target is, such as `cpu` or `cuda:0`"),
    (ALL, "hardware", str, "the device's name"),
    (ALL, "threads", int, "number of torch threads"),
    (SWEEP, "task", str, "a sweep's kind of task, such as `jsonl` or `humaneval`"),
    (SWEEP, "metric", str, "how a sweep's answers are scored"),
    (RULES, "temperature", float, "0 is greedy"),
    (GENERATE, "seed", int, "seed of the run's random numbers"),
    (ANSWERS, "top_k", int, "0 is off"),
    (ANSWERS, "top_p", float, "1 is off"),
    (ANSWERS, "max_new_tokens", int, "the longest answer allowed, in tokens"),
    (
        SPEEDS,
        "batch_size",
        int,
        "answers generated concurrently: with 2 or more, times are throughput; empty where sizes differ",
    ),
)


def _ratio(name: str, meaning: str) -> tuple[tuple[tuple[TableKind, ...], str, type, str], ...]:
    """Return the columns of a ratio to a reference, paired by prompt and seed."""
    return (
        (RACES, name, float, f"{meaning}: ratio of the means"),
        (RACES, f"{name}_mean", float, "mean of the per-prompt ratios"),
        (
            RACES,
            f"{name}_low",
            float,
            "lower bound of the interval of the ratio of the means, over prompts",
        ),
        (RACES, f"{name}_high", float, "upper bound of that interval"),
        (RACES, f"{name}_kind", str, "kind of interval, as in `quality_kind`"),
        (RACES, f"{name}_prompts", int, "number of prompts it covers"),
    )


def _percentiles(name: str, meaning: str) -> tuple[tuple[tuple[TableKind, ...], str, type, str], ...]:
    """Return the columns of a quantity's percentiles over prompts."""
    return (
        (RACES, f"{name}_p50", float, f"{meaning}: median over prompts"),
        (RACES, f"{name}_p90", float, "90th percentile, with 10 or more prompts"),
        (RACES, f"{name}_p99", float, "99th percentile, with 100 or more prompts"),
    )


_RESULTS = (
    (RACES, "num_prompts", int, "distinct prompts; the turns of a conversation count as one"),
    (RACES, "num_answers", int, "answers: one per turn, seed and repeat in a sweep, one per turn in a comparison"),
    (SWEEP, "num_conversations", int, "prompts by seed and repeat; the turns of a conversation count as one"),
    (SWEEP, "errors", int, "answers that failed; excluded from all other numbers"),
    (SWEEP, "quality", float, "score of the answers: the mean over prompts, or BLEU over all of them (`corpus-bleu`)"),
    (SWEEP, "quality_low", float, "lower bound of its interval over prompts"),
    (SWEEP, "quality_high", float, "upper bound of its interval over prompts"),
    (SWEEP, "quality_kind", str, "what the bounds are: `95%`, `range` (of fewer than six values) or `no scatter`"),
    (SWEEP, "quality_vs_target", float, "mean difference from the target's answers to the same prompts"),
    (SWEEP, "quality_vs_target_low", float, "lower bound of its interval over prompts"),
    (SWEEP, "quality_vs_target_high", float, "upper bound of its interval over prompts"),
    (SWEEP, "quality_vs_target_kind", str, "kind of interval, as in `quality_kind`"),
    (SWEEP, "quality_vs_random", float, "difference from random deferral with as many target calls per answer"),
    (SWEEP, "quality_vs_random_low", float, "lower bound of its interval over prompts"),
    (SWEEP, "quality_vs_random_high", float, "upper bound of its interval over prompts"),
    (SWEEP, "quality_vs_random_kind", str, "kind of interval, as in `quality_kind`"),
    (GENERATE, "prompt_tokens", int, "tokens of the prompt, chat template included"),
    (SPEEDS, "tokens", int, "tokens of all these answers; of one answer if the row is one, as in a bench"),
    (RACES, "mean_answer_tokens", float, "mean length of an answer"),
    (RACES, "answers_cut", int, "answers that ended at the length limit"),
    (RACES, "share_cut", float, "share of the answers that ended at the length limit"),
    (ANSWERS, "seconds", float, "total time of these answers; in a comparison, the median over repeats"),
    (BENCH, "seconds_per_call", float, "median of the timed calls"),
    (BENCH, "seconds_per_call_low", float, "their 25th percentile"),
    (BENCH, "seconds_per_call_high", float, "their 75th percentile"),
    (BENCH, "seconds_per_call_kind", str, "what the bounds are: `quartiles`"),
    (BENCH, "relative_to_step", float, "time over that of a one-token target call: c for a draft step, v for a block"),
    (SPEEDS, "tokens_per_second", float, "tokens over seconds; in a bench, after the prompt"),
    (BENCH, "predicted_tokens_per_second", float, "`tokens_per_second` predicted for a batch from its passes' times"),
    (RACES + BENCH, "speed_vs_target", float, "tokens per second over those of `target` in the same runs"),
    (COMPARE, "oracle_speed_vs_target", float, "bound on `speed_vs_target`: every round drafts exactly what is kept"),
    (RACES, "speed_vs_target_low", float, "lower bound of its interval; in a sweep, over prompts"),
    (RACES, "speed_vs_target_high", float, "upper bound of its interval"),
    (RACES, "speed_vs_target_kind", str, "kind of interval, as in `quality_kind`"),
    (COMPARE, "speed_vs_target_over", str, "what the interval is over: `repeats` or `prompts`"),
    (GENERATE, "ttft_seconds", float, "seconds to the first token; empty in a batch"),
    (GENERATE, "num_rounds", int, "number of rounds"),
    (GENERATE, "target_calls", int, "number of target calls"),
    (GENERATE, "draft_calls", int, "number of draft model calls"),
    (RULES, "target_calls_per_token", float, "target calls over tokens"),
    (ANSWERS, "draft_calls_per_token", float, "draft model calls over tokens"),
    (ANSWERS, "draft_acceptance_rate", float, "accepted over drafted tokens"),
    (
        RULES + BENCH,
        "tested_acceptance_rate",
        float,
        "accepted over tested drafts; drafts after a rejection are not tested; in a bench, the requested rate;"
        " empty with `verify=block`",
    ),
    (ANSWERS, "mean_acceptance_length", float, "1 + accepted tokens / rounds"),
    (RUNS, "shared_mass", float, "q(I): mean share of the draft model's mass on tokens in both vocabularies;"
     " empty if the models share a tokenizer"),
    (RULES, "deferral_rate", float, "mean q-mass deferred by the rule per token; for a cascade, the share of answers"),
    (RULES, "mean_tv_to_target", float, "mean TV(pi, p): how far the output distribution is from the target's"),
    (RUNS + CURVES, "max_tv_to_target", float, "largest TV(pi, p)"),
    (CURVES, "mean_tail", float, "mean probability of the tokens lumped together: how far off a token rule can be"),
    (CURVES, "max_tail", float, "largest such probability"),
    (RACES, "target_calls_per_answer", float, "mean number of target calls per prompt, over all its turns"),
    *_percentiles("prompt_target_calls", "target calls per prompt, over all its turns"),
    *_percentiles("prompt_tokens", "tokens of the answers to a prompt"),
    *_percentiles("prompt_tokens_per_round", "1 + accepted tokens / rounds, per prompt"),
    *_percentiles("prompt_seconds", "seconds for the answers to a prompt (empty in a batch)"),
    (ANSWERS, "looped_share", float, "share of the tokens in a phrase repeated three or more times in a row"),
    *_ratio("length_to_target", "tokens of an answer over those of the target's"),
    *_ratio("length_to_target_ended", "answer length over the target's, where both answers ended on their own"),
    *_ratio("calls_to_target", "target calls per answer over those of `target`"),
    *_ratio("calls_to_lossless", "target calls per answer over those of lossless speculation"),
    (RACES, "accepted_to_lossless", float, "tokens per round over those of `lossless_strategy`"),
    (RACES, "lossless_strategy", str, "the lossless speculation compared with"),
    (RACES, "length_withheld", str, "why these ratios of answers are empty: more than a tenth of the answers were cut"),
    (ANSWERS, "kl_per_answer", float, "KL(pi || p), where finite, summed over an answer with all its turns, in nats"),
    (ANSWERS, "kl_infinite_share", float, "share of the tokens at which KL(pi || p) is infinite"),
    (ANSWERS, "regret_per_answer", float, "sum of log max p1 - log p1(x) over an answer, in nats"),
    (ANSWERS, "max_overshoot", float, "largest pi / p of any token"),
    (ANSWERS, "waste", float, "mean TV(pi, q) + TV(pi, p) - TV(p, q): 0 where pi lies between p and q"),
    (ANSWERS, "efficiency", float, "rejections saved over TV(pi, p) spent, at most 1"),
    (ANSWERS, "out_of_head_per_1000", float, "kept drafts per 1,000 tokens that the exact test would have rejected and"
     " that the target finds less than a fifth as likely as its best token; empty if none was kept"),
    (RUNS, "lossless", bool, "whether `max_tv_to_target` is 0 up to rounding"),
    (COMPARE, "first_divergence", int, "the first token of the first prompt's answer that differs from the target's,"
     " counted from 0 (the table on the screen counts from 1); empty if none does"),
    (SWEEP, "prompts_compared", int, "prompts that `target` also answered, per seed and repeat"),
    (SWEEP, "prompts_same", int, "number of them with the target's answer, token for token"),
    (COMPARE, "answers_compared", int, "answers to a text that `target` also answered"),
    (COMPARE, "answers_same", int, "number of them that equal the target's, token for token"),
    (COMPARE, "same_as_target", bool, "whether all compared answers equal the target's"),
    (COMPARE, "ttft_seconds_p50", float, "seconds to the first token: median"),
    (COMPARE, "ttft_seconds_p90", float, "90th percentile, with 10 or more values"),
    (COMPARE, "ttft_seconds_p99", float, "99th percentile, with 100 or more values"),
    (COMPARE, "seconds_per_token_p50", float, "seconds per token after the first round: median"),
    (COMPARE, "seconds_per_token_p90", float, "90th percentile, with 10 or more values"),
    (COMPARE, "seconds_per_token_p99", float, "99th percentile, with 100 or more values"),
    (COMPARE, "round_seconds_p50", float, "seconds per round after the first: median"),
    (COMPARE, "round_seconds_p90", float, "90th percentile, with 10 or more values"),
    (COMPARE, "round_seconds_p99", float, "99th percentile, with 100 or more values"),
    (COMPARE, "other_share", float, "share of the time spent outside the two models"),
    (BENCH, "models_share", float, "share of the time after the prompt that the models' timed calls account for"),
    (ANSWERS, "flops_per_token", float, "an estimate, independent of the hardware; with all experts of a mixture"),
    (RUNS, "weight_bytes_per_token", float, "bytes of weights read, an estimate; with all experts of a mixture"),
    (RUNS, "peak_memory_bytes", int, "GPU memory at its peak; empty on a CPU and in a batch"),
    (SWEEP, "log_likelihood", float, "mean log-probability per token of the answers under the target, in nats"),
    (BENCH, "copy_bytes_per_second", float, "bytes that a plain copy reads and writes per second: the ceiling"),
    (VERIFY, "status", str, "`pass`, `fail` or `skipped`"),
    (VERIFY, "statistic", float, "the computed value"),
    (VERIFY, "bound", float, "the largest value allowed"),
    (VERIFY, "false_alarm", float, "upper bound on the probability that correct code fails; 0 if nothing is random"),
    (VERIFY, "detail", str, "details, in words"),
    (ALL, "date", str, "start time: ISO 8601, UTC"),
    (ALL, "cascli", str, "the cascli version that wrote it"),
)  # fmt: skip

COLUMNS = tuple(
    Column(name, kind, meaning, kinds) for kinds, name, kind, meaning in (*_IDENTITY, *_CONDITIONS, *_RESULTS)
)
"""All columns in order; parameters without a column here come after the last of `PARAMETERS`."""
PARAMETERS = ("rule", "alpha", "k", "draft", "score", "threshold")
"""Columns that are a strategy's parameters."""
PREFIX = "param_"
"""Prefix of a parameter that has the same name as another column."""


def columns_of(kind: TableKind) -> Sequence[Column]:
    """Return the columns that tables of a kind always have."""
    return [column for column in COLUMNS if kind in column.kinds]
