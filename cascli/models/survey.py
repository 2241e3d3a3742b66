"""What two models need, determined before their weights are read; used by `cascli init`."""

from __future__ import annotations

from typing import NamedTuple

from cascli.config import PairConfig
from cascli.models.description import describe, explained
from cascli.models.eagle3.reading import weights_of_head
from cascli.models.placement import BYTES
from cascli.models.size import LARGE, has_experts, weights_of
from cascli.models.stages import OnStage, unseen
from cascli.weights.report import Report


class ModelSurvey(NamedTuple):
    """One model."""

    kind: str
    """transformers' name of its architecture."""
    layers: int
    weights: int
    rows: int
    """Rows of its output matrix."""
    experts: bool = False
    """Whether it is a mixture of experts, which does not run in int8."""


class PairSurvey(NamedTuple):
    """Both models and what they share."""

    models: dict[str, ModelSurvey]
    vocab: int
    context: int | None
    shared: int | None
    """Number of the target's tokens that the draft can produce, if the tokenizers differ; otherwise None."""
    chat: bool
    """Whether the target's tokenizer has a chat template."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that both models run in on a CPU, widest first."""
        rounds = not any(each.experts for each in self.models.values())
        return ("float32", "bfloat16", "int8") if rounds else ("float32", "bfloat16")

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all models' weights in a precision."""
        return BYTES[dtype] * sum(each.weights for each in self.models.values())

    def auto_bytes(self) -> int:
        """Bytes of all models' weights with `auto` on a CPU with int8 kernels: float32, a large draft model in int8."""
        rounded = {
            role for role, each in self.models.items() if role == "draft" and each.weights >= LARGE and not each.experts
        }
        return sum(each.weights * (1 if role in rounded else 4) for role, each in self.models.items())


def survey(
    config: PairConfig, *, offline: bool = False, report: Report | None = None, on_stage: OnStage = unseen
) -> PairSurvey:
    """Download missing files, and check that the two models fit together.

    Raises:
        ConfigError: a model of an unsupported kind, or two models that have hardly any tokens in common.
        RunError: weights that are not available.
    """
    description = describe(config, offline=offline, report=report, on_stage=on_stage)
    models = {}
    if description.head is not None:
        weights = weights_of_head(description.head)
        models["draft"] = ModelSurvey(
            "eagle3", description.head.layer.num_hidden_layers, weights, description.head.draft_vocab
        )
    for role, model in config.models.items():
        if role not in description.configs:
            continue
        settings = description.configs[role]
        text = settings.get_text_config()
        with explained(model):
            models[role] = ModelSurvey(
                settings.model_type, text.num_hidden_layers, weights_of(settings), text.vocab_size, has_experts(text)
            )
    chat = description.tokenizer is not None and bool(getattr(description.tokenizer, "chat_template", None))
    shared = None if description.translation is None else description.translation.shared
    return PairSurvey(models, description.vocab, description.context, shared, chat)
