"""Figures of ensembles of reward models, of the laws fitted to curves, and of accuracy against what was gained."""

import math

from rlhf.laws import law
from rlhf.plots import style
from rlhf.plots.studies import seed_lines

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

METHODS = {"best_of_n": "best of n", "ppo": "PPO"}
DISTANCE = "square root of KL (nats per answer)"


@style.draws("seed method setting x kl proxy gold gold_unit")
def ensemble_curves(frame: pd.DataFrame) -> Figure:
    """Gold and proxy of ensembles.csv above SFT by distance, best of n beside PPO.

    A thin line for each seed, a thick one for the mean over points of equal x.
    """
    frame = _gains(frame, ["gold", "proxy"])
    rows = {"gold": "gold score", "proxy": "the proxy that was\noptimised"}
    title = "Gold score and proxy by distance from SFT, for a single reward model and for ensembles of three"
    figure, grid = style.new_panels(title, 1.4 + 2.3 * len(rows), len(rows), len(METHODS), sharex="col", sharey="row")
    for i, (axes, (score, method)) in enumerate(zip(grid, [(s, m) for s in rows for m in METHODS], strict=True)):
        for of_setting, look in style.each_series(frame[frame.method == method], "setting"):
            colour, label = look["color"], look["label"]
            seed_lines(axes, of_setting, "distance", score, "x", colour, label=label, marker=look["marker"])
        axes.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1.5)
        below, left = DISTANCE if i >= len(grid) - 2 else "", "" if i % 2 else f"{rows[score]}\n(SFT's deviations)"
        style.label(axes, below, left, METHODS[method] if i < 2 else "")
    return style.legend(figure, columns=2)


@style.draws("method setting seed x kl gold gold_unit", "method setting seed alpha beta peak_kl_low peak_kl_high")
def laws(frame: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Gold above SFT as measured (points) and by the fitted law (line), a panel for each method and setting of `fits`.

    frame: overoptimisation.csv or ensembles.csv; fits: that of laws.fits. At the foot of a panel, for each
    seed, the interval of the law's peak, as far as points were measured.
    """
    frame = _gains(frame[frame.method.isin(fits.method)], ["gold"])
    panels = list(dict.fromkeys(zip(fits.method, fits.setting, strict=True)))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    methods = " and ".join(METHODS[method] for method in dict.fromkeys(fits.method))
    title = f"{methods}: the gold score above SFT's and the law fitted to it (bars: where its peak may lie)"
    figure, grid = style.new_panels(title, 1.4 + 2.3 * rows, rows, columns, sharex=True, sharey=True)
    low, high = frame.gold.min(), frame.gold.max()
    for i, (axes, (method, setting)) in enumerate(zip(grid, panels, strict=False)):
        of_panel = fits[(fits.method == method) & (fits.setting == setting)]
        for number, row in enumerate(of_panel.itertuples()):
            name = f"ppo_seed_{row.seed}"
            look = style.series_of([name])[name] | {"label": f"seed {row.seed}"}
            points = frame[(frame.method == method) & (frame.setting == setting) & (frame.seed == row.seed)]
            axes.plot(points.distance, points.gold, linestyle="none", **look)
            far = points.distance.max() or 1.0
            along = np.linspace(far / 200, far, 200)
            axes.plot(along, law(method, along, row.alpha, row.beta), color=look["color"], linewidth=1.4)
            ends = np.minimum(np.sqrt([row.peak_kl_low, row.peak_kl_high]), far)
            axes.plot(ends, np.full(2, low - (0.12 + 0.06 * number) * (high - low)), color=look["color"], linewidth=4)
        axes.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1.5)
        below = "" if i + columns < len(panels) else DISTANCE
        left = "" if i % columns else "gold score above SFT\n(SFT's deviations)"
        name = style.words(setting).replace("kl coef", "KL coefficient")
        style.label(axes, below, left, f"{METHODS[method]}: {name}" if " and " in methods else name)
        axes.tick_params(labelbottom=bool(below))
    for axes in grid[len(panels) :]:
        axes.remove()
    return style.legend(figure)


@style.draws("optimised seed reward_model gold accuracy")
def accuracy_and_gain(frame: pd.DataFrame, accuracy: str = "accuracy") -> Figure:
    """Gold gained over the accuracy of the reward model: a panel for each way to optimise, a point for each seed.

    frame: that of studies.reward_models.accuracy_and_gain; accuracy: the column that is laid along.
    """
    frame = style.check(frame[frame[accuracy].notna()])
    names = list(dict.fromkeys(frame.optimised))
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    title = "The gold score gained over the accuracy of the reward model (a point for each seed)"
    figure, grid = style.new_panels(title, 1.5 + 2.1 * rows, rows, columns, sharex=True)
    for i, (axes, name) in enumerate(zip(grid, names, strict=False)):
        for points, look in style.each_series(frame[frame.optimised == name], "reward_model"):
            axes.plot(points[accuracy], points.gold, linestyle="none", **look | {"markersize": 7})
        axes.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1.5)
        axes.margins(0.1)
        last = i + columns >= len(names)
        below = f"{style.words(accuracy)} (share of pairs right)" if last else ""
        style.label(axes, below, "gold above SFT\n(points)", name.replace("kl_coef", "KL coefficient"))
        axes.tick_params(labelbottom=last)
        style.ticks(axes.xaxis, 4)
    for axes in grid[len(names) :]:
        axes.remove()
    return style.legend(figure, columns=3)


def _gains(frame: pd.DataFrame, scores: list[str]) -> pd.DataFrame:
    """The frame by x with its distance, and each score as its change from its curve's first point.

    Gold is in standard deviations of SFT's answers, as the proxy is.
    """
    frame = frame.sort_values("x", kind="stable")
    frame = frame.assign(gold=frame.gold / frame.gold_unit, distance=np.sqrt(frame.kl.clip(lower=0)))
    first = frame.groupby(["method", "setting", "seed"])[scores].transform("first")
    return frame.assign(**frame[scores] - first)
