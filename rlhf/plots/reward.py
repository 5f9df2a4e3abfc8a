"""Figures of stage 2: the pairs, the training of the reward model, and how far its rewards can be believed."""

import math

from rlhf.plots.style import (
    BLACK, BLUE, GREEN, GREY, PURPLE, SKY, bin_width, bins, draws, label, legend, name_rows, new_panels, points, ticks,
    words, zero_line,
)  # fmt: skip

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


@draws("error share length_rule gold_agreement")
def error_kinds(frame: pd.DataFrame) -> Figure:
    """Pairs by what is wrong with the rejected answer."""
    panels = {
        "share": ("how frequent", "share of pairs"),
        "length_rule": ("length rule", "share right"),
        "gold_agreement": ("gold score", "share right"),
    }
    rows = frame.sort_values(["share", "error"], ascending=[False, True])
    title = "Pairs by kind of error, and who picks the chosen answer (dashed: chance)"
    figure, grid = new_panels(title, 1.4 + 0.27 * len(rows), 1, 3, sharey=True)
    for axes, (column, (name, unit)) in zip(grid, panels.items(), strict=True):
        axes.barh(np.arange(len(rows)), rows[column], color=GREY if column == "share" else BLUE, height=0.65)
        name_rows(axes, [words(error) for error in rows.error])
        axes.tick_params(axis="y", length=0)
        label(axes, unit, "kind of error" if column == "share" else "", name)
        if column == "share":
            ticks(axes.xaxis, 3)
        else:
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.axvline(0.5, color=BLACK, linestyle="--", linewidth=1)
        if rows[column].isna().all():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", backgroundcolor="white")
    return figure


@draws("difference count")
def length_difference(frame: pd.DataFrame) -> Figure:
    """Words of the chosen minus words of the rejected answer; `difference` is the left edge of a bin."""
    figure, (axes,) = new_panels("Length of the chosen answer minus length of the rejected one", 3.2)
    width = bin_width(frame.difference)
    axes.stairs(*bins(frame, "difference", width), fill=True, color=SKY)
    zero_line(axes)
    label(axes, "chosen minus rejected (words)", f"pairs per bin of {width:g} word{'s' * (width != 1)}")
    return figure


@draws("split step loss accuracy")
def reward_curve(frame: pd.DataFrame) -> Figure:
    """Loss and accuracy of the reward model over its training, on two splits (train, validation)."""
    figure, panels = new_panels("Reward model while training", 3.5, 1, 2)
    splits = {
        "train": {"color": GREY, "linewidth": 1.2, "label": "training batches"},
        "validation": {"color": BLUE, "linewidth": 2.4, "marker": "o", "label": "validation split"},
    }
    columns = {"loss": ("loss (nats per pair)", math.log(2)), "accuracy": ("accuracy (share of pairs)", 0.5)}
    for axes, (column, (unit, chance)) in zip(panels, columns.items(), strict=True):
        axes.axhline(chance, color=BLACK, linestyle="--", linewidth=1, label="chance", zorder=1.5)
        for split, style in splits.items():
            rows = frame[frame.split == split].sort_values("step")
            if len(rows):
                axes.plot(rows.step, rows[column], **style)
        label(axes, "optimiser steps", unit)
        ticks(axes.xaxis, 6, integer=True)
    legend(figure)
    return figure


@draws("confidence accuracy ci_low ci_high n")
def calibration(frame: pd.DataFrame) -> Figure:
    """Reliability of sigmoid(margin), from metrics.calibration; a point's area is in proportion to its pairs."""
    figure, (axes,) = new_panels("Accuracy of the reward model by its confidence (95 % intervals)", 4.2)
    (perfect,) = axes.plot([0.5, 1], [0.5, 1], color=BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    points(axes, frame.confidence, frame, "accuracy", color=BLUE)
    scale = 220 / frame.n.max()  # of a marker's area, in points²
    axes.scatter(frame.confidence, frame.accuracy, s=scale * frame.n, color=BLUE, zorder=3)
    marker = {"linestyle": "none", "marker": "o", "color": BLUE}
    sizes = np.unique(np.quantile(frame.n, [0, 0.5, 1], method="nearest"))
    handles = [Line2D([], [], markersize=math.sqrt(scale * n), label=f"{n:.0f} pairs", **marker) for n in sizes]
    axes.set_xlim(0.48, 1.02)
    label(axes, "confidence: sigmoid(|margin|)", "accuracy (share of pairs)")
    legend(figure, [perfect, *handles])
    return figure


@draws("slice mean ci_low ci_high n")
def accuracy_slices(frame: pd.DataFrame, reference: float) -> Figure:
    """Accuracy by slice beside that of all pairs (`reference`)."""
    rows = frame.sort_values(["mean", "slice"], ascending=[False, True])
    title = "Accuracy of the reward model by slice of the pairs (95 % intervals)"
    figure, (axes,) = new_panels(title, 1.5 + 0.28 * len(rows))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1.4, label="chance")
    axes.axvline(reference, color=BLACK, linestyle="--", linewidth=1.4, label=f"all pairs ({reference:.3f})")
    points(axes, np.arange(len(rows)), rows, across=True, color=BLUE, marker="o")
    name_rows(axes, [f"{words(name)} (n = {n})" for name, n in zip(rows["slice"], rows.n, strict=True)])
    label(axes, "accuracy (share of pairs)", "slice")
    legend(figure)
    return figure


@draws("margin count correct")
def margins(frame: pd.DataFrame) -> Figure:
    """Reward of the chosen minus reward of the rejected answer; `margin` is the left edge of a bin."""
    figure, (axes,) = new_panels("Margin of the reward model: reward(chosen) minus reward(rejected)", 3.5)
    width = bin_width(frame.margin)
    both, edges = bins(frame, "margin", width)
    right, _ = bins(frame.assign(count=frame["count"] * frame.correct.astype(bool)), "margin", width)
    axes.stairs(right, edges, fill=True, color=GREEN, label="ranked right")
    axes.stairs(both, edges, baseline=right, fill=True, color=PURPLE, label="ranked wrong")
    zero_line(axes)
    label(axes, "margin (logits)", f"pairs per bin of {width:.2g}")
    legend(figure)
    return figure
