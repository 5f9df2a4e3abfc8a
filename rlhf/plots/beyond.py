"""Figures of the comparison of methods: the frontier of gold over KL, gold over answers, changes of log-probability."""

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

SCORES = {"gold": "gold score above SFT (points)", "reward": "reward above SFT (SFT's deviations)"}


def _score(frame: pd.DataFrame) -> str:
    """The column that is drawn: the gold score where it is known, else the reward."""
    return "gold" if frame.gold.notna().all() else "reward"


def _means(axes, frame: pd.DataFrame, x: str, step: str, dashed: str = "") -> None:
    """The score over x: a faint point for each seed, and for each method a line through the means of equal `step`.

    A seed for which a method has fewer steps than for another is not in the line: its means would be of other seeds
    from point to point.
    """
    score = _score(frame)
    for rows, look in style.each_series(frame, "method"):
        axes.scatter(rows[x], rows[score], color=look["color"], marker=look["marker"], s=18, alpha=0.4, linewidths=0)
        steps = rows.groupby("seed")[step].transform("size")
        mean = rows[steps == steps.max()].groupby(step, as_index=False).mean(numeric_only=True)
        line = "--" if rows.method.iloc[0] == dashed else "-"
        axes.plot(mean[x], mean[score], linewidth=1.4, linestyle=line, **look)
    axes.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1.5)


@style.draws("seed method value chosen kl reward reward_ci_low reward_ci_high gold gold_ci_low gold_ci_high")
def method_frontier(frame: pd.DataFrame) -> Figure:
    """Gold above SFT over KL: a line along the dial of each method, for the seeds that were trained along all of it.

    A ring stands at the chosen value, at the mean of all seeds; faint points are seeds, bars the intervals of the
    chosen ones. Best of n has the KL of its formula, and its line is dashed.
    """
    score, most = _score(frame), max(frame.kl.max(), 0.5)
    gained = f"The {style.words(score)} that each method gains for its distance from SFT"
    title = f"{gained} (rings: the chosen settings, bars: their 95 % intervals)"
    figure, (axes,) = style.new_panels(title, 4.6)
    _means(axes, frame, "kl", "value", dashed="best_of_n")
    for rows, look in style.each_series(frame[frame.chosen], "method"):
        axes.vlines(rows.kl, rows[f"{score}_ci_low"], rows[f"{score}_ci_high"], color=look["color"], lw=1.2, alpha=0.5)
        at = rows[["kl", score]].mean()
        axes.plot(at.kl, at[score], "o", markersize=12, fillstyle="none", markeredgecolor=look["color"])
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(left=0)
    places = [0, *(place for place in (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256) if most / 64 <= place <= most)]
    axes.set_xticks(places, [f"{place:g}" for place in places])
    style.label(axes, "KL from SFT (nats per answer; square-root scale)", SCORES[score])
    return style.legend(figure, columns=4)


@style.draws("seed method answers reward gold")
def method_answers(frame: pd.DataFrame) -> Figure:
    """Gold above SFT over the answers that a method has sampled: means over seeds."""
    score = _score(frame)
    title = f"The {style.words(score)} gained over the number of sampled answers (faint: each seed)"
    figure, (axes,) = style.new_panels(title, 3.8)
    _means(axes, frame, "answers", "answers")
    style.label(axes, "answers sampled and scored", SCORES[score])
    return style.legend(figure)


@style.draws("seed method side change")
def method_logprobs(frame: pd.DataFrame) -> Figure:
    """What training changed in the log-probability of chosen and rejected test answers: a point for each seed."""
    labels = {name: look["label"] for name, look in style.series_of(frame.method).items()}
    title = "Change of the log-probability of test answers (each point a seed)"
    figure, (axes,) = style.new_panels(title, 1.5 + 0.45 * len(labels))
    for offset, side in zip((-0.15, 0.15), ("chosen", "rejected"), strict=True):
        rows = frame[frame.side == side]
        places = [list(labels).index(name) + offset for name in rows.method]
        look = style.series_of([side])[side]
        axes.plot(rows.change, places, linestyle="none", alpha=0.8, **look | {"label": f"{side} answers"})
    style.zero_line(axes)
    style.name_rows(axes, list(labels.values()))
    style.label(axes, "nats per answer, after training minus before (SFT)", "method")
    return style.legend(figure)
