"""How good translations are, against references: BLEU and chrF, by sacrebleu."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from fastllm.errors import UserError, UserValueError

NAMES = ("bleu", "chrf")


def can_score() -> bool:
    """Return whether sacrebleu is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def score(translations: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return corpus BLEU (Papineni et al., 2002) and chrF (Popović, 2015) of translations, each in [0, 100].

    Args:
        translations: texts, not tokenized.
        references: as many.

    Returns:
        The scores by name, "bleu" and "chrf"; and the signature of each, without which a score says little (Post, "A
        call for clarity in reporting BLEU scores", 2018).

    Raises:
        UserError: sacrebleu is missing, there is nothing to score, or there are not as many references.
    """
    if not can_score():
        raise UserError("score: BLEU and chrF need the package sacrebleu: pip install 'fastllm[translation]'")
    if len(translations) != len(references) or not references:
        raise UserValueError(
            f"score: 'references' must be one for each of the {len(translations)} translations, at least one, got "
            f"{len(references)}"
        )
    from sacrebleu.metrics import BLEU, CHRF

    metrics: dict[str, Any] = {"bleu": BLEU(), "chrf": CHRF()}
    texts, expected = list(translations), [list(references)]
    scores = {name: float(metric.corpus_score(texts, expected).score) for name, metric in metrics.items()}
    return scores, {name: str(metric.get_signature()) for name, metric in metrics.items()}
