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

_WHICH = (
    (STRATEGIES, "strategy", str, "the strategy with all its parameters, as the command line takes it"),
    (STRATEGIES, "name", str, "its name, such as `speculative-cascade`"),
    (STRATEGIES, "rule", str, "its deferral rule"),
    (STRATEGIES, "alpha", float, "the rule's alpha"),
    (STRATEGIES, "k", int, "drafted tokens a round"),
    (STRATEGIES, "draft", str, "where drafted tokens come from: `model`, or a drafter such as `prompt-lookup`"),
    (ANSWERS, "score", str, "a cascade's score of the draft model's answer"),
    (ANSWERS, "threshold", float, "from which score that answer stands; also the threshold of a rule that has one"),
    (RUNS, "oracle", bool, "whether it used what it could not know if it saved what it claims to save"),
    (RUNS, "depends_on_rounds", bool, "whether its output distribution depends on where rounds begin"),
    (RUNS, "exit", str, "where drafts leave the target, with draft=early-exit, and whether it was trained for that"),
    (BENCH, "kind", str, "`step`: one model's call; `synthetic`: decoding at a chosen acceptance"),
    (BENCH, "model", str, "whose call was timed: `draft` or `target`"),
    (BENCH, "context", int, "tokens before the timed call"),
    (BENCH, "block", int, "tokens that the timed call reads"),
    (GENERATE, "prompt_id", str, "the prompt's id, of several prompts"),
    (GENERATE, "category", str, "its category, where its file has one"),
    (GENERATE, "turn", int, "which turn of the conversation, from 0"),
    (GENERATE, "prompt", str, "what was asked"),
    (GENERATE, "text", str, "the answer"),
    (GENERATE, "finish_reason", str, "by what it ended: `eos`, `stop`, `length` or `interrupted`"),
    (VERIFY, "kind", str, "which question, such as `law` or `parity`"),
    (VERIFY, "subject", str, "what was checked"),
)
_WHERE = (
    (ALL, "pair", str, "the pair's name"),
    (ALL, "draft_dtype", str, "precision of the draft model; empty where the pair has none"),
    (ALL, "target_dtype", str, "precision of the target"),
    (ALL, "device", str, "where the target is, such as `cpu` or `cuda:0`"),
    (ALL, "hardware", str, "the device's name"),
    (ALL, "threads", int, "torch's threads"),
    (SWEEP, "task", str, "a sweep's kind of task, such as `jsonl` or `humaneval`"),
    (SWEEP, "metric", str, "how a sweep's answers are scored"),
    (RULES, "temperature", float, "0 is greedy"),
    (GENERATE, "seed", int, "of the run's random numbers"),
    (ANSWERS, "top_k", int, "0 is off"),
    (ANSWERS, "top_p", float, "1 is off"),
    (ANSWERS, "max_new_tokens", int, "the longest answer allowed"),
    (SPEEDS, "batch_size", int, "answers under way at once: from 2 on times are throughput; empty where sizes differ"),
)


def _ratio(name: str, meaning: str) -> tuple[tuple[tuple[TableKind, ...], str, type, str], ...]:
    """Return the columns of a ratio to a reference, paired by prompt and seed."""
    return (
        (RACES, name, float, f"{meaning}: the ratio of the means"),
        (RACES, f"{name}_mean", float, "the mean of the prompts' own ratios"),
        (RACES, f"{name}_low", float, "the interval of the ratio of the means, over prompts and their seeds"),
        (RACES, f"{name}_high", float, "likewise"),
        (RACES, f"{name}_kind", str, "as `quality_kind`"),
        (RACES, f"{name}_prompts", int, "how many prompts it is over"),
    )


def _percentiles(name: str, meaning: str) -> tuple[tuple[tuple[TableKind, ...], str, type, str], ...]:
    """Return the columns of a quantity's percentiles over prompts."""
    return (
        (RACES, f"{name}_p50", float, f"{meaning}: the median over prompts"),
        (RACES, f"{name}_p90", float, "90th percentile, of 10 or more prompts"),
        (RACES, f"{name}_p99", float, "99th percentile, of 100 or more prompts"),
    )


_FOUND = (
    (RACES, "num_prompts", int, "different prompts; the turns of a conversation are one"),
    (RACES, "num_answers", int, "answers: one a turn, seed and repeat in a sweep, one a turn in a comparison"),
    (SWEEP, "errors", int, "answers that failed; they count in no number"),
    (SWEEP, "quality", float, "the score of the answers: its mean over prompts, or BLEU of all (`corpus-bleu`)"),
    (SWEEP, "quality_low", float, "its interval over prompts"),
    (SWEEP, "quality_high", float, "its interval over prompts"),
    (SWEEP, "quality_kind", str, "what low and high are: `95%`, `range` (of fewer than six values) or `no scatter`"),
    (SWEEP, "quality_vs_target", float, "the mean difference to the target's answers to the same prompts"),
    (SWEEP, "quality_vs_target_low", float, "its interval over prompts"),
    (SWEEP, "quality_vs_target_high", float, "its interval over prompts"),
    (SWEEP, "quality_vs_target_kind", str, "as `quality_kind`"),
    (SWEEP, "quality_vs_random", float, "the difference to random deferral at as many target calls an answer"),
    (SWEEP, "quality_vs_random_low", float, "its interval over prompts"),
    (SWEEP, "quality_vs_random_high", float, "its interval over prompts"),
    (SWEEP, "quality_vs_random_kind", str, "as `quality_kind`"),
    (GENERATE, "prompt_tokens", int, "tokens of the prompt, its template included"),
    (SPEEDS, "tokens", int, "tokens of all these answers; where a row is one answer, or in a bench, of one"),
    (RACES, "mean_answer_tokens", float, "the mean length of an answer"),
    (RACES, "answers_cut", int, "answers that ended at the length limit"),
    (RACES, "share_cut", float, "their share"),
    (ANSWERS, "seconds", float, "time of all these answers; in a comparison the median over repeats"),
    (BENCH, "seconds_per_call", float, "the median of the timed calls"),
    (BENCH, "seconds_per_call_low", float, "their 25th percentile"),
    (BENCH, "seconds_per_call_high", float, "their 75th percentile"),
    (BENCH, "seconds_per_call_kind", str, "what low and high are: `quartiles`"),
    (BENCH, "relative_to_step", float, "the call over the target's call of one token: c of a draft step, v of a block"),
    (SPEEDS, "tokens_per_second", float, "tokens over seconds; in a bench after the prompt"),
    (BENCH, "predicted_tokens_per_second", float, "of a batch, from the times of its passes"),
    (RACES + BENCH, "speed_vs_target", float, "the same over that of `target` in the same runs"),
    (COMPARE, "oracle_speed_vs_target", float, "what that would be at most, had every round drafted what is kept"),
    (RACES, "speed_vs_target_low", float, "its interval; in a sweep over prompts"),
    (RACES, "speed_vs_target_high", float, "its interval"),
    (RACES, "speed_vs_target_kind", str, "as `quality_kind`"),
    (COMPARE, "speed_vs_target_over", str, "what the interval is over: `repeats` or `prompts`"),
    (GENERATE, "ttft_seconds", float, "seconds to the first token; empty in a batch"),
    (GENERATE, "num_rounds", int, "rounds of the answer"),
    (GENERATE, "target_calls", int, "calls of the target"),
    (GENERATE, "draft_calls", int, "calls of the draft model"),
    (RULES, "target_calls_per_token", float, "calls of the target over tokens"),
    (ANSWERS, "draft_calls_per_token", float, "calls of the draft model over tokens"),
    (ANSWERS, "draft_acceptance_rate", float, "accepted over drafted tokens"),
    (
        RULES + BENCH,
        "tested_acceptance_rate",
        float,
        "accepted over tested drafts; what follows a rejection is not tested; in a bench the rate that was asked for;"
        " none with `verify=block`",
    ),
    (ANSWERS, "mean_acceptance_length", float, "1 + accepted tokens / rounds"),
    (RUNS, "shared_mass", float, "q(I): mean share of the draft model's mass on tokens that both models can say;"
     " empty where they have one tokenizer"),
    (RULES, "deferral_rate", float, "how much the rule gave to the target; of a cascade the share of answers"),
    (RULES, "mean_tv_to_target", float, "mean TV(pi, p): how far the output distribution is from the target's"),
    (RUNS + CURVES, "max_tv_to_target", float, "the largest"),
    (CURVES, "mean_tail", float, "mean probability of tokens lumped together: how far off a token rule can be"),
    (CURVES, "max_tail", float, "the largest"),
    (RACES, "target_calls_per_answer", float, "the mean of the target's calls for a prompt, all its turns"),
    *_percentiles("prompt_target_calls", "the target's calls for a prompt, all its turns"),
    *_percentiles("prompt_tokens", "tokens of the answers to a prompt"),
    *_percentiles("prompt_tokens_per_round", "1 + accepted tokens / rounds of a prompt"),
    *_percentiles("prompt_seconds", "seconds of the answers to a prompt; none in a batch"),
    (ANSWERS, "looped_share", float, "share of the tokens in a phrase that comes three times or more in a row"),
    *_ratio("length_to_target", "tokens of an answer over those of the target's"),
    *_ratio("length_to_target_ended", "likewise over the prompts whose answers both ended by themselves"),
    *_ratio("calls_to_target", "the target's calls for an answer over those of `target`"),
    *_ratio("calls_to_lossless", "the target's calls for an answer over those of speculation without loss"),
    (RACES, "accepted_to_lossless", float, "tokens a round over those of that speculation"),
    (RACES, "lossless_strategy", str, "which speculation that is"),
    (RACES, "length_withheld", str, "why the ratios above are empty: more than a tenth of the answers were cut"),
    (ANSWERS, "kl_per_answer", float, "KL(pi || p), where finite, summed over an answer with all its turns, in nats"),
    (ANSWERS, "kl_infinite_share", float, "share of the tokens at which it is infinite"),
    (ANSWERS, "regret_per_answer", float, "sum of log max p1 - log p1(x) over an answer, in nats"),
    (ANSWERS, "max_overshoot", float, "the largest pi / p of any token"),
    (ANSWERS, "waste", float, "mean TV(pi, q) + TV(pi, p) - TV(p, q): 0 where pi lies between p and q"),
    (ANSWERS, "efficiency", float, "rejections saved over TV(pi, p) spent, at most 1"),
    (ANSWERS, "out_of_head_per_1000", float, "kept drafts, of 1,000 tokens, that the exact test would have rejected and"
     " that the target finds less than a fifth as likely as its best token"),
    (RUNS, "lossless", bool, "whether that is 0 up to rounding"),
    (COMPARE, "first_divergence", int, "the first token of the first prompt's answer that differs from the target's,"
     " counted from 0 (the table on the screen counts from 1); empty if none does"),
    (SWEEP, "prompts_compared", int, "prompts that `target` answered too, by seed and repeat"),
    (SWEEP, "prompts_same", int, "how many of them have the target's answers, token by token"),
    (COMPARE, "answers_compared", int, "answers to the same text as one of the target's"),
    (COMPARE, "answers_same", int, "how many of them are the target's, token by token"),
    (COMPARE, "same_as_target", bool, "whether all are"),
    (COMPARE, "ttft_seconds_p50", float, "seconds to the first token: the median"),
    (COMPARE, "ttft_seconds_p90", float, "90th percentile, of 10 or more values"),
    (COMPARE, "ttft_seconds_p99", float, "99th percentile, of 100 or more values"),
    (COMPARE, "seconds_per_token_p50", float, "seconds per token after the first round"),
    (COMPARE, "seconds_per_token_p90", float, "likewise"),
    (COMPARE, "seconds_per_token_p99", float, "likewise"),
    (COMPARE, "round_seconds_p50", float, "seconds of a round after the first"),
    (COMPARE, "round_seconds_p90", float, "likewise"),
    (COMPARE, "round_seconds_p99", float, "likewise"),
    (COMPARE, "other_share", float, "share of the time outside the two models"),
    (BENCH, "models_share", float, "share of the time after the prompt that the models' timed calls account for"),
    (ANSWERS, "flops_per_token", float, "an estimate that does not depend on hardware"),
    (RUNS, "weight_bytes_per_token", float, "weights read, an estimate"),
    (RUNS, "peak_memory_bytes", int, "of a GPU"),
    (SWEEP, "log_likelihood", float, "mean log-probability of a token of the answers under the target, in nats"),
    (BENCH, "copy_bytes_per_second", float, "bytes read and written by a plain copy: the ceiling"),
    (VERIFY, "status", str, "`pass`, `fail` or `skipped`"),
    (VERIFY, "statistic", float, "what was computed"),
    (VERIFY, "bound", float, "what it may be at most"),
    (VERIFY, "false_alarm", float, "at most the probability that correct code fails; 0 if no chance is involved"),
    (VERIFY, "detail", str, "more about it, in words"),
    (ALL, "date", str, "when it began: ISO 8601, UTC"),
    (ALL, "cascli", str, "the version that made it"),
)  # fmt: skip

COLUMNS = tuple(Column(name, kind, meaning, kinds) for kinds, name, kind, meaning in (*_WHICH, *_WHERE, *_FOUND))
"""All columns in order; parameters without a column here come after the last of `PARAMETERS`."""
PARAMETERS = ("rule", "alpha", "k", "draft", "score", "threshold")
"""Columns that are a strategy's parameters."""
PREFIX = "param_"
"""Prefix of a parameter that has the same name as another column."""


def columns_of(kind: TableKind) -> Sequence[Column]:
    """Return the columns that tables of a kind always have."""
    return [column for column in COLUMNS if kind in column.kinds]
