"""The offline world: a corpus of questions and answers, a gold score that is the truth, and a small base model."""

from rlhf.lab.gold import WEIGHTS, gold_by_sentence, gold_parts, gold_score

import numpy as np
import pandas as pd

__all__ = ["WEIGHTS", "gold_agreement", "gold_by_sentence", "gold_parts", "gold_score", "gold_table"]


def gold_agreement(profile, rows) -> np.ndarray:
    """1 where the gold score prefers the chosen answer of a row, 0.5 where it ties, 0 elsewhere; NaN for real data."""
    if not profile.lab:
        return np.full(len(rows), np.nan)
    chosen = [gold_score(p, a) for p, a in zip(rows["prompt"], rows["chosen"], strict=True)]
    rejected = [gold_score(p, a) for p, a in zip(rows["prompt"], rows["rejected"], strict=True)]
    return (np.sign(np.subtract(chosen, rejected)) + 1) / 2


def gold_table(profile, prompts: list[str], responses: list[str]) -> pd.DataFrame:
    """The gold score and its parts of each response, one row each; an empty table for real data, which has none."""
    if not profile.lab:
        return pd.DataFrame()
    parts = pd.DataFrame([gold_parts(p, r) for p, r in zip(prompts, responses, strict=True)])
    return parts.assign(gold=parts.sum(axis=1))
