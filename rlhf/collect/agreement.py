"""How far raters agree on pairs of answers: Cohen's kappa, Krippendorff's alpha, and intervals by item."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations

from rlhf.collect.items import Item
from rlhf.collect.journal import Journal
from rlhf.metrics import LIMITS

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

RESAMPLES = 500  # of the items; a kappa takes the library milliseconds


def pair_labels(
    items: Sequence[Item], ranks: Mapping[object, Mapping[str, list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """What each rater said of each pair of answers of an item: labels (raters, pairs), and the item's number (pairs,).

    ranks: for each rater, the ranks by the item's key. A label is 1 where the answer that stands first in the item is
    the better one, -1 where the second is, 0 for a tie, NaN where the rater did not rank the item.
    """
    labels, numbers = [], []
    for number, item in enumerate(items):
        given = [of.get(item.key) for of in ranks.values()]
        for i, j in combinations(range(len(item.answers)), 2):
            labels.append([np.nan if said is None else np.sign(said[j] - said[i]) for said in given])
            numbers.append(number)
    return np.array(labels, dtype=float).reshape(-1, len(ranks)).T, np.array(numbers)


def agreed(labels: np.ndarray) -> float:
    """The share of pairs of which two raters said the same, among those that both rated. labels: (2, pairs)."""
    first, second = _both(labels)
    return float((first == second).mean()) if len(first) else np.nan


def cohens_kappa(labels: np.ndarray) -> float:
    """Agreement of two raters above that of chance (Cohen 1960): 1 is perfect, 0 chance. labels: (2, pairs).

    Chance is that of each rater's own shares of the labels. NaN where it is certain to agree, or nothing is rated.
    """
    first, second = _both(labels)
    if len(set(first) | set(second)) < 2:
        return np.nan
    return float(cohen_kappa_score(first, second))


def _both(labels: np.ndarray) -> np.ndarray:
    return labels[:, ~np.isnan(labels).any(axis=0)]


def krippendorffs_alpha(labels: np.ndarray, ordinal: bool = False) -> float:
    """1 - observed / expected disagreement of any number of raters, who may have left units out.

    labels: (raters, units), NaN where a rater said nothing. Two values differ by 1 (nominal), or where they have an
    order by the square of how many values lie between them (ordinal). NaN where all values are the same or no unit has
    two. Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections C to E.
    """
    values, places = np.unique(labels[~np.isnan(labels)], return_inverse=True)
    counts = np.zeros((labels.shape[1], len(values)))  # of each value in each unit
    np.add.at(counts, (np.nonzero(~np.isnan(labels))[1], places), 1)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return np.nan
    shares = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = shares.T @ counts - np.diag(shares.sum(axis=0))
    totals = coincidences.sum(axis=1)
    middles = totals.cumsum() - totals / 2  # how many values lie below, and half of the equal ones
    distances = (middles[:, None] - middles) ** 2 if ordinal else 1 - np.eye(len(values))
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distances).sum() / expected) if expected else np.nan


def with_interval(
    statistic: Callable[[np.ndarray], float], labels: np.ndarray, numbers: np.ndarray
) -> tuple[float, float, float, int]:
    """A statistic of labels (raters, pairs) with its 95 % bootstrap interval over items: (value, low, high, items).

    numbers: (pairs,), the item of each pair; the pairs of an item depend on each other, so they are drawn together.
    What fewer than two raters ranked counts for nothing. Draws of which the statistic is NaN are left out; the interval
    is NaN where all are.
    """
    shared = (~np.isnan(labels)).sum(axis=0) > 1
    labels, numbers = labels[:, shared], numbers[shared]
    rng, columns = np.random.default_rng(0), [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    draws = rng.integers(len(columns), size=(RESAMPLES, len(columns))) if columns else ()
    found = [statistic(labels[:, np.concatenate([columns[i] for i in draw])]) for draw in draws]
    found = [value for value in found if not np.isnan(value)]
    low, high = np.quantile(found, LIMITS) if found else (np.nan, np.nan)
    return statistic(labels), float(low), float(high), len(columns)


def compare(items: Sequence[Item], journals: Sequence[Journal]) -> pd.DataFrame:
    """Each two raters, and each with itself on what it was shown again, by three measures.

    Columns: raters, measure (share of pairs, kappa, ordinal alpha), value, ci_low, ci_high, items (that both ranked).
    """
    ordinal = partial(krippendorffs_alpha, ordinal=True)
    compared = {f"{a.name} / {b.name}": (a.ranks(), b.ranks()) for a, b in combinations(journals, 2)}
    compared |= {f"{journal.name}, again": (journal.ranks(), journal.ranks(again=True)) for journal in journals}
    rows = []
    for name, both in compared.items():
        labels, numbers = pair_labels(items, dict(enumerate(both)))
        for measure, statistic in {"share": agreed, "kappa": cohens_kappa, "alpha": ordinal}.items():
            rows.append((name, measure, *with_interval(statistic, labels, numbers)))
    return pd.DataFrame(rows, columns=["raters", "measure", "value", "ci_low", "ci_high", "items"])
