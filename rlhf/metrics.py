"""What is measured: ROUGE, intervals, paired differences, diversity, calibration, best of n, over-optimisation."""

import math
import warnings
from collections import namedtuple
from collections.abc import Sequence

from rlhf import finite

import numpy as np
import pandas as pd
import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from scipy.special import comb
from scipy.stats import spearmanr

RESAMPLES = 2_000
SUMMARY_COLUMNS = ["model", "metric", "mean", "ci_low", "ci_high", "n"]
LIMITS = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # of every interval
ROUGE = ("rouge1", "rouge2", "rougeL")


class AnyScript(Tokenizer):
    """Words of any script, and single signs where words are written without spaces between them."""

    def tokenize(self, text: str) -> list[str]:
        return regex.findall(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[\p{L}\p{M}\p{N}]+", text.lower())


def rouge_per_example(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measure of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of each prediction, with Porter stemming: arrays of (n,).

    rouge-score's own words are made of a-z and digits, so every text in another script would score 0. Where most
    letters of the references are of another script, its words are taken (AnyScript), with a warning: such numbers can't
    be compared with those of English texts. Fewer references without a word are counted in a warning. Raises
    ValueError for empty or unequal lists.
    """
    if len(predictions) != len(references) or not predictions:
        found = f"{len(predictions)} predictions and {len(references)} references"
        raise ValueError(f"{found}; give equally many, and some.")
    letters = [letter for text in references for letter in text.lower() if letter.isalpha()]
    other_script = sum(not "a" <= letter <= "z" for letter in letters) > len(letters) / 2
    if other_script:
        warnings.warn("ROUGE: most letters are none of a-z; words of any script are compared, unstemmed", stacklevel=2)
    elif wordless := sum(not regex.search("[a-z0-9]", text.lower()) for text in references):
        warnings.warn(f"ROUGE: {wordless} of {len(references)} references have no word of a-z or digits", stacklevel=2)
    scorer = RougeScorer(ROUGE, use_stemmer=True, tokenizer=AnyScript() if other_script else None)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: np.array([score[name].fmeasure for score in scores]) for name in ROUGE}


def _numbers(values: Sequence[float]) -> np.ndarray:
    finite.require("summary", {"values": values})
    return np.asarray(values, dtype=float)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `values` with its 95 % percentile bootstrap interval (Efron 1979): (mean, low, high).

    The values must be independent: one per prompt, not several answers to one. Raises ValueError for no values,
    NotFiniteError for one that is none.
    """
    values = _numbers(values)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape} have no bootstrap interval; give one number per prompt.")
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), LIMITS)
    return float(values.mean()), float(low), float(high)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values - baseline, prompt by prompt, with its 95 % bootstrap interval.

    Pairing takes out the spread between easy and hard prompts. Raises ValueError for unequal lengths.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)}; a paired test needs both for every prompt.")
    return bootstrap_interval(np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float))


def gap_closed(
    values: Sequence[float], baseline: Sequence[float], target: Sequence[float]
) -> tuple[float, float, float]:
    """The share of the way from the mean of `baseline` to that of `target` that `values` have gone: (share, low, high).

    All are given for the same prompts; the 95 % interval is over prompts (bootstrap), so the way has one too. Raises
    ValueError for unequal lengths and for no way.
    """
    values, baseline, target = map(_numbers, (values, baseline, target))
    if not len(values) == len(baseline) == len(target):
        raise ValueError(f"{len(values)}, {len(baseline)} and {len(target)} numbers; give one of each per prompt.")
    if target.mean() == baseline.mean():
        raise ValueError("baseline and target have the same mean: there is no gap to close.")
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    gained, missing = (numbers[draws].mean(axis=1) for numbers in (values - baseline, target - baseline))
    low, high = np.quantile(gained / missing, LIMITS)
    return float((values - baseline).mean() / (target - baseline).mean()), float(low), float(high)


def wins(values: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
    """1 where a value beats its baseline, 0.5 where they tie, 0 elsewhere: its mean is the win rate."""
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return (np.sign(difference) + 1) / 2


def summary_rows(model: str, measured: dict[str, Sequence[float]]) -> pd.DataFrame:
    """One row per metric with the columns model, metric, mean, ci_low, ci_high, n."""
    finite.require(f"summary of {model}", measured)
    rows = [(model, metric, *bootstrap_interval(values), len(values)) for metric, values in measured.items()]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def accuracy_row(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy on the test pairs that reward_model.csv (metric, value) holds, as summary_rows would give it."""
    value = table.set_index("metric").value
    row = ("reward_model", "accuracy", *value[["accuracy", "accuracy_ci_low", "accuracy_ci_high"]])
    return pd.DataFrame([(*row, int(value.test_pairs))], columns=SUMMARY_COLUMNS)


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
    """Mean of `values` in each group of each column of `groups`: by, slice, mean, ci_low, ci_high, n."""
    values = np.asarray(values, dtype=float)
    rows = [
        (by, name, *bootstrap_interval(values[members]), len(members))
        for by in groups.columns
        for name, members in groups.groupby(by).indices.items()
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
    margins = _numbers(margins)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    correct = wins(margins, np.zeros(len(margins)))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    members = [place == i for i in np.unique(place)]
    rows = [(confidence[m].mean(), *bootstrap_interval(correct[m]), int(m.sum())) for m in members]
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "ci_low", "ci_high", "n"])


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean gap between confidence and accuracy over the bins of `calibration`, weighted by their size."""
    return float(np.average((table.confidence - table.accuracy).abs(), weights=table.n))


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95 % bootstrap interval over the pairs: (correlation, low, high).

    A constant has no order: all three are NaN. Raises ValueError for unequal lengths or less than three pairs.
    """
    values, others = _numbers(values), _numbers(others)
    if len(values) != len(others) or len(values) < 3:
        raise ValueError(f"{len(values)} values and {len(others)} others; a correlation needs three pairs or more.")
    if np.ptp(values) == 0 or np.ptp(others) == 0:
        return (math.nan,) * 3
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    pairs = [(values[rows], others[rows]) for rows in draws if np.ptp(values[rows]) and np.ptp(others[rows])]
    drawn = [spearmanr(*pair).statistic for pair in pairs]
    return (float(spearmanr(values, others).statistic), *map(float, np.quantile(drawn, LIMITS)))


def best_of_n_kl(n: int) -> float:
    """KL in nats between the best of n answers and one answer: log n - (n - 1) / n (Stiennon et al. 2020, appendix G).

    Exact where no answer is drawn twice and no two score the same; where answers repeat it is an upper bound (Beirami
    et al. 2024, "Theoretical guarantees on the best-of-n alignment policy"). Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} answers does not exist; n is at least 1.")
    return math.log(n) - (n - 1) / n


def best_of_n(scores: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """What the answer with the highest score among n is worth on average, for each prompt: (prompts,).

    scores, values: (prompts, answers), of the same answers. The mean is over all choices of n of the answers: in rising
    order of score, answer i (from 0) is the best of C(i, n - 1) of the C(answers, n) choices (Nakano et al. 2021,
    appendix I). Raises ValueError for shapes that differ or an n that can't be drawn.
    """
    if scores.shape != values.shape:
        raise ValueError(f"scores {scores.shape} and values {values.shape} must be of the same (prompts, answers).")
    answers = scores.shape[1]
    if not 1 <= n <= answers:
        raise ValueError(f"the best of {n} can't be drawn from {answers} answers; n must be from 1 to {answers}.")
    weights = comb(np.arange(answers), n - 1) / comb(answers, n)
    return np.take_along_axis(values, np.argsort(scores, axis=1, kind="stable"), axis=1) @ weights


OverOptimisation = namedtuple("OverOptimisation", "peak end proxy truth found")


def over_optimisation(proxy: np.ndarray, truth: np.ndarray) -> OverOptimisation:
    """Whether the truth falls from its peak while the proxy goes on rising (Gao, Schulman and Hilton 2022).

    proxy, truth: (points, prompts), of the answers to the same prompts at points of growing optimisation. Returns peak,
    the point with the highest truth; end, the point from there on with the highest proxy; the changes of both between
    them with 95 % intervals; and found: the proxy's interval lies above zero and the truth's below. The highest of
    several noisy means is too high by chance, so peak and end are chosen on every other prompt, and the changes are
    measured on the rest. Raises ValueError for shapes that differ or less than four prompts.
    """
    if proxy.shape != truth.shape or proxy.shape[1] < 4:
        raise ValueError(f"proxy {proxy.shape} and truth {truth.shape} need the same points and four prompts or more.")
    finite.require("over-optimisation", {"proxy": proxy, "truth": truth})
    peak = int(truth[:, ::2].mean(axis=1).argmax())
    end = peak + int(proxy[peak:, ::2].mean(axis=1).argmax())
    changes = [paired_difference(curve[end, 1::2], curve[peak, 1::2]) for curve in (proxy, truth)]
    return OverOptimisation(peak, end, *changes, found=changes[0][1] > 0 and changes[1][2] < 0)
