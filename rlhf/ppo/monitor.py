"""What tells a collapse while it happens: how varied the answers of a batch are, and how much it has changed."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

PATIENCE = 3  # updates in a row; one batch is noisy


class Limit(NamedTuple):
    """A measure is out of range below `share` of what it was at the first update, or above it by more than `rise`."""

    share: float = 0.0
    rise: float = float("inf")
    meaning: str = ""


LIMITS = {
    "entropy": Limit(share=0.5, meaning="the policy has become sure of nearly every token and explores no more"),
    "distinct_2": Limit(share=0.5, meaning="the answers of a batch use the same few pairs of tokens"),
    "reward_std": Limit(share=0.33, meaning="all answers earn nearly the same, so nothing tells them apart"),
    "repetition": Limit(rise=0.15, meaning="answers say again what they have said"),
}


def variety(responses: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """How varied answers are, in tokens: distinct_2 and repetition.

    responses, mask: (batch, tokens). distinct_2 is the share of distinct pairs among all pairs of neighbours in the
    batch (Li et al. 2016); repetition the share of an answer's runs of three tokens that stood in it before, averaged
    over the answers that have any. Both are 0 where there are none.
    """
    rows = [row[kept.bool()].tolist() for row, kept in zip(responses.cpu(), mask.cpu(), strict=True)]
    pairs = [pair for row in rows for pair in itertools.pairwise(row)]
    runs = [list(zip(row, row[1:], row[2:], strict=False)) for row in rows if len(row) > 2]
    repeated = [1 - len(set(run)) / len(run) for run in runs]
    return {"distinct_2": len(set(pairs)) / max(1, len(pairs)), "repetition": sum(repeated) / max(1, len(repeated))}


def first_outside(values: pd.Series, low, high) -> int | None:
    """The update, counted from 1, at which values have left low..high for PATIENCE updates in a row; None if never.

    values: one for each update; low, high: a number each, or one for each update. NaN is not outside.
    """
    outside = (values < low) | (values > high)
    in_a_row = (outside.rolling(PATIENCE).sum() == PATIENCE).to_numpy()
    return int(in_a_row.argmax()) + 1 if in_a_row.any() else None


def limits(name: str, first: float) -> tuple[float, float]:
    """The range of a measure of LIMITS that was `first` at the first update: (low, high)."""
    return LIMITS[name].share * first, first + LIMITS[name].rise


def band(runs: pd.DataFrame, name: str) -> tuple[pd.Series, pd.Series]:
    """The range of a measure by update in runs that are known to be good, widened by its mean width on both sides.

    runs: the rows of their curves, with the column update. Returns the low and the high ends, in the order of update.
    """
    by_update = runs.groupby("update")[name]
    low, high = by_update.min(), by_update.max()
    width = (high - low).mean()
    return low - width, high + width


def warnings(curve: pd.DataFrame | Sequence[dict[str, float]]) -> list[str]:
    """A line for each measure of LIMITS that has left its range for PATIENCE updates in a row; none for a good run.

    curve: the rows of a run so far, from its first update on. A measure that it lacks is not watched.
    """
    curve, found = pd.DataFrame(curve), []
    for name, limit in LIMITS.items():
        if name not in curve or curve[name].isna().any():
            continue
        first = curve[name].iloc[0]
        at = first_outside(curve[name], *limits(name, first))
        if at is not None:
            change = f"{name} went from {first:.2f} to {curve[name].iloc[at - 1]:.2f}"
            found.append(f"update {at}: {change}: {limit.meaning}.")
    return found


def report(curve: pd.DataFrame) -> str:
    """The warnings of a finished run, or that there are none."""
    watched = ", ".join(name for name in LIMITS if name in curve)
    return "\n".join(warnings(curve)) or f"The monitor saw nothing leave its range ({watched})."
