"""The two laws of Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model Overoptimization", fitted to curves.

With d the square root of the KL from SFT, the gold score above SFT's is d (alpha - beta d) for best of n and
d (alpha - beta log d) for RL. Both are linear in alpha and beta, so least squares has one solution.
"""

from rlhf.metrics import LIMITS, RESAMPLES

import numpy as np
import pandas as pd

SHAPES = {"best_of_n": lambda d: d, "ppo": np.log}  # what beta is multiplied with
# The distance at which the derivative is zero: alpha - 2 beta d, and alpha - beta - beta log d.
PEAKS = {"best_of_n": lambda alpha, beta: alpha / (2 * beta), "ppo": lambda alpha, beta: np.exp(alpha / beta - 1)}
FITTED = ("alpha", "beta", "peak_kl")


def law(method: str, distance, alpha: float, beta: float):
    """The gold score above SFT's at a distance above 0."""
    return distance * (alpha - beta * SHAPES[method](distance))


def fit(method: str, distance: np.ndarray, gold: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """alpha, beta and the KL of the law's peak with 95 % intervals (_low, _high), by least squares; and the residual.

    gold, error: (points,), the mean gold scores and their standard errors, first those of SFT, whose distance is 0.
    The intervals are those of a parametric bootstrap: the fit is repeated on means drawn from normal distributions,
    independent of each other. The same prompts are asked at all points, so what really is drawn together makes the
    true intervals of a gain narrower; the error of the KL, which is taken as known, makes them wider. A law whose beta
    is not above 0 has no peak: it is at infinity; one that falls from the start has it at 0. residual: the root of the
    mean squared distance of the points from the law.
    """
    drawn = np.random.default_rng(0).normal(gold, error, size=(RESAMPLES, len(gold)))
    gains = np.vstack([gold, drawn])  # the first row is what was measured
    gains, distance = (gains - gains[:, :1])[:, 1:], distance[1:]
    terms = np.stack([distance, -distance * SHAPES[method](distance)], axis=1)
    alpha, beta = np.linalg.lstsq(terms, gains.T, rcond=None)[0]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        peak_kl = np.where(beta > 0, PEAKS[method](alpha, beta).clip(min=0), np.inf) ** 2
    found = {}
    for name, values in zip(FITTED, (alpha, beta, peak_kl), strict=True):
        low, high = np.quantile(values[1:], LIMITS, method="nearest")  # infinity has no neighbour to interpolate with
        found |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
    return found | {"residual": np.sqrt(np.mean((gains[0] - terms @ [alpha[0], beta[0]]) ** 2))}


def fits(curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, setting and seed of overoptimisation.csv or ensembles.csv that has three points or more.

    Gold is in standard deviations of SFT's answers. Columns: those of `fit`; error, the standard error of a point's
    gain, which a residual should not much exceed where the law holds; points beside SFT; first_kl and last_kl, between
    which they lie; best_kl, that of the highest mean; and peak_measured, whether the whole interval of the peak lies
    between the first and the last point, so that it is not the law alone that says where it is.
    """
    rows = []
    for (method, setting, seed), curve in curves.groupby(["method", "setting", "seed"], sort=False):
        curve = curve.sort_values("x", kind="stable")
        curve = curve[(curve.x == curve.x.min()) | (curve.kl > 0)]  # an estimate near SFT may be below 0
        if len(curve) < 4 or curve.gold.isna().any():
            continue
        kl, gold = curve.kl.to_numpy(), (curve.gold / curve.gold_unit).to_numpy()
        error = ((curve.gold_ci_high - curve.gold_ci_low) / curve.gold_unit / (2 * 1.96)).to_numpy()
        found = fit(method, np.sqrt(kl.clip(min=0)), gold, error)
        first, last = kl[1:].min(), kl[1:].max()
        found |= {"error": np.sqrt(error[0] ** 2 + np.mean(error[1:] ** 2)), "points": len(kl) - 1}
        found |= {"first_kl": first, "last_kl": last, "best_kl": kl[gold.argmax()]}
        found["peak_measured"] = bool(first <= found["peak_kl_low"] and found["peak_kl_high"] <= last)
        rows.append({"method": method, "setting": setting, "seed": seed} | found)
    return pd.DataFrame(rows)
