"""What is measured: ROUGE, preference accuracy, intervals, paired differences, diversity, stopping."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

RESAMPLES = 2_000
SUMMARY_COLUMNS = ["model", "metric", "mean", "ci_low", "ci_high", "n"]


@cache
def _rouge_metric():
    import evaluate  # takes more than a second, which who needs no ROUGE need not wait for

    return evaluate.load(str(Path(__file__).parent / "rouge_metric"), keep_in_memory=True)


def rouge_per_example(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measure of rouge1, rouge2 and rougeL of each prediction, with stemming: arrays of (n,).

    Raises ValueError for empty or unequal lists.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references; give equally many, at least one of each."
        )
    scores = _rouge_metric().compute(predictions=list(predictions), references=list(references))
    return {name: np.asarray(values) for name, values in scores.items()}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measure of rouge1, rouge2 and rougeL, with stemming, as in the published evaluation."""
    return {name: float(values.mean()) for name, values in rouge_per_example(predictions, references).items()}


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `values` with its percentile bootstrap interval (Efron 1979): (mean, low, high).

    The values must be independent: one per prompt, not several answers to one. Raises ValueError for no values.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape} have no bootstrap interval; give one number per prompt.")
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of values - baseline, prompt by prompt, with its 95 % bootstrap interval.

    Pairing takes out the spread between easy and hard prompts, which both models share. Raises ValueError for
    unequal lengths.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)}; a paired test needs both for every prompt.")
    return bootstrap_interval(np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float), seed=seed)


def wins(values: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
    """1 where a value beats its baseline, 0.5 where they tie, 0 elsewhere: its mean is the win rate."""
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return (np.sign(difference) + 1) / 2


def summary_rows(model: str, measured: dict[str, Sequence[float]]) -> pd.DataFrame:
    """One row per metric with the columns model, metric, mean, ci_low, ci_high, n."""
    rows = [(model, metric, *bootstrap_interval(values), len(values)) for metric, values in measured.items()]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def paired_rows(measured: dict[str, dict[str, Sequence[float]]], against: str) -> pd.DataFrame:
    """Paired differences of every model to `against`, for values measured[metric][model] in the order of the prompts.

    Columns: model, against, metric, difference, ci_low, ci_high, n.
    """
    rows = [
        (model, against, metric, *paired_difference(values, models[against]), len(values))
        for metric, models in measured.items()
        for model, values in models.items()
        if model != against
    ]
    return pd.DataFrame(rows, columns=["model", "against", "metric", "difference", "ci_low", "ci_high", "n"])


def sliced(values: Sequence[float], groups: pd.DataFrame) -> pd.DataFrame:
    """Mean of `values` in each group of each column of `groups`, with its interval.

    Columns: by, slice, mean, ci_low, ci_high, n.
    """
    values = np.asarray(values, dtype=float)
    rows = [
        (by, name, *bootstrap_interval(values[members]), len(members))
        for by in groups.columns
        for name, members in groups.reset_index(drop=True).groupby(by).groups.items()
    ]
    return pd.DataFrame(rows, columns=["by", "slice", "mean", "ci_low", "ci_high", "n"])


def length_rule(chosen: Sequence[str], rejected: Sequence[str]) -> np.ndarray:
    """1 where the rule "the longer answer is better" picks the chosen answer, 0.5 for equal numbers of words."""
    return wins([len(text.split()) for text in chosen], [len(text.split()) for text in rejected])


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of distinct n-grams of words among all of them, over all texts together (Li et al. 2016)."""
    grams = [gram for text in texts for gram in zip(*[text.lower().split()[i:] for i in range(n)], strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def calibration(margins: Sequence[float], bins: int = 10) -> pd.DataFrame:
    """Reliability of sigmoid(margin) as the probability that the preferred answer is the chosen one.

    margins: reward(chosen) - reward(rejected), (n,). Each pair counts for the answer that the model prefers, so that
    confidence runs from 0.5 to 1. Columns: confidence, accuracy, ci_low, ci_high, n; one row per bin that is not empty.
    """
    margins = np.asarray(margins, dtype=float)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    correct = (np.sign(margins) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    rows = []
    for i in range(bins):
        inside = place == i
        if inside.any():
            rows.append((confidence[inside].mean(), *bootstrap_interval(correct[inside]), int(inside.sum())))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "ci_low", "ci_high", "n"])


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean gap between confidence and accuracy over the bins of `calibration`, weighted by their size."""
    return float(np.average((table.confidence - table.accuracy).abs(), weights=table.n))
