"""Figures of stage 2: the pairs, the training of the reward model, and how far its rewards can be believed."""

import math

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


@style.draws("error share length_rule gold_agreement")
def error_kinds(frame: pd.DataFrame) -> Figure:
    """Pairs by what is wrong with the rejected answer."""
    panels = {
        "share": ("how frequent", "share of pairs"),
        "length_rule": ("length rule", "share right"),
        "gold_agreement": ("gold score", "share right"),
    }
    rows = frame.sort_values(["share", "error"], ascending=[False, True])
    title = "Pairs by kind of error, and who picks the chosen answer (dashed: chance)"
    figure, grid = style.new_panels(title, 1.4 + 0.27 * len(rows), 1, 3, sharey=True)
    for axes, (column, (name, unit)) in zip(grid, panels.items(), strict=True):
        axes.barh(
            np.arange(len(rows)), rows[column], color=style.GREY if column == "share" else style.BLUE, height=0.65
        )
        style.name_rows(axes, [style.words(error) for error in rows.error])
        axes.tick_params(axis="y", length=0)
        style.label(axes, unit, "kind of error" if column == "share" else "", name)
        if column == "share":
            style.ticks(axes.xaxis, 3)
        else:
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.axvline(0.5, color=style.BLACK, linestyle="--", linewidth=1)
        if rows[column].isna().all():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", backgroundcolor="white")
    return figure


@style.draws("difference count")
def length_difference(frame: pd.DataFrame) -> Figure:
    """How often the chosen or the rejected answer is longer, and by how much; `difference` is chosen minus rejected."""
    figure, (axes,) = style.new_panels("How often the chosen or the rejected answer is the longer one", 3.4)
    total, longest = frame["count"].sum() / 100, max(1, frame.difference.abs().max())
    step = math.ceil(longest / 30)
    edges = np.arange(1, longest + step + 1, step)
    looks = {"fill": True, "color": style.GREEN, "alpha": 0.5}, {"color": style.BLACK, "linewidth": 1.8}
    for side, sign, look in zip(("chosen", "rejected"), (1, -1), looks, strict=True):
        rows = frame[sign * frame.difference > 0]
        counts, _ = np.histogram(rows.difference.abs(), edges, weights=rows["count"])
        axes.stairs(counts, edges, label=f"{side} longer: {rows['count'].sum() / total:.1f} % of pairs", **look)
    equal = f"equally long, not drawn: {frame['count'][frame.difference == 0].sum() / total:.1f} % of pairs"
    axes.text(0.98, 0.94, equal, transform=axes.transAxes, ha="right", va="top")
    style.label(axes, "difference in length (words)", f"pairs per bin of {step:g} word{'s' * (step != 1)}")
    return style.legend(figure)


@style.draws("split step loss accuracy")
def reward_curve(frame: pd.DataFrame) -> Figure:
    """Loss and accuracy of the reward model over its training, on two splits (train, validation)."""
    figure, panels = style.new_panels("Reward model while training", 3.5, 1, 2)
    splits = {
        "train": {"color": style.GREY, "linewidth": 1.2, "label": "training batches"},
        "validation": {"color": style.BLUE, "linewidth": 2.4, "marker": "o", "label": "validation split"},
    }
    columns = {"loss": ("loss (nats per pair)", math.log(2)), "accuracy": ("accuracy (share of pairs)", 0.5)}
    for axes, (column, (unit, chance)) in zip(panels, columns.items(), strict=True):
        axes.axhline(chance, color=style.BLACK, linestyle="--", linewidth=1, label="chance", zorder=1.5)
        for split, look in splits.items():
            rows = frame[frame.split == split].sort_values("step", kind="stable")
            if len(rows):
                axes.plot(rows.step, rows[column], **look)
        style.label(axes, "optimiser steps", unit)
        style.ticks(axes.xaxis, 6, integer=True)
    return style.legend(figure)


@style.draws("confidence accuracy ci_low ci_high n")
def calibration(frame: pd.DataFrame, unit: str = "pairs", margin: str = "margin") -> Figure:
    """Reliability of sigmoid(margin), from metrics.calibration; a point's area is in proportion to its pairs.

    unit, margin: what is counted, and what the sigmoid is taken of.
    """
    figure, (axes,) = style.new_panels("Accuracy of the reward model by its confidence (95 % intervals)", 4.2)
    (perfect,) = axes.plot(
        [0.5, 1], [0.5, 1], color=style.BLACK, linestyle="--", linewidth=1, label="perfect calibration"
    )
    style.points(axes, frame.confidence, frame, "accuracy", color=style.BLUE)
    scale = 220 / frame.n.max()  # of a marker's area, in points²
    axes.scatter(frame.confidence, frame.accuracy, s=scale * frame.n, color=style.BLUE, zorder=3)
    marker = {"linestyle": "none", "marker": "o", "color": style.BLUE}
    sizes = np.unique(np.quantile(frame.n, [0, 0.5, 1], method="nearest"))
    handles = [Line2D([], [], markersize=math.sqrt(scale * n), label=f"{n:.0f} {unit}", **marker) for n in sizes]
    axes.set_xlim(0.48, 1.02)
    style.label(axes, f"confidence: sigmoid(|{margin}|)", f"accuracy (share of {unit})")
    return style.legend(figure, [perfect, *handles])


@style.draws("slice mean ci_low ci_high n")
def accuracy_slices(frame: pd.DataFrame, reference: float) -> Figure:
    """Accuracy by slice beside that of all pairs (`reference`)."""
    rows = frame.sort_values(["mean", "slice"], ascending=[False, True])
    title = "Accuracy of the reward model by slice of the pairs (95 % intervals)"
    figure, (axes,) = style.new_panels(title, 1.5 + 0.28 * len(rows))
    axes.axvline(0.5, color=style.GREY, linestyle="--", linewidth=1.4, label="chance")
    axes.axvline(reference, color=style.BLACK, linestyle="--", linewidth=1.4, label=f"all pairs ({reference:.3f})")
    style.points(axes, np.arange(len(rows)), rows, across=True, color=style.BLUE, marker="o")
    style.name_rows(axes, [f"{style.words(name)} (n = {n})" for name, n in zip(rows["slice"], rows.n, strict=True)])
    style.label(axes, "accuracy (share of pairs)", "slice")
    return style.legend(figure)


@style.draws("margin count correct")
def margins(frame: pd.DataFrame) -> Figure:
    """Reward of the chosen minus reward of the rejected answer; `margin` is the left edge of a bin."""
    figure, (axes,) = style.new_panels("Margin of the reward model: reward(chosen) minus reward(rejected)", 3.5)
    width = style.bin_width(frame.margin)
    both, edges = style.bins(frame, "margin", width)
    right, _ = style.bins(frame.assign(count=frame["count"] * frame.correct.astype(bool)), "margin", width)
    axes.stairs(right, edges, fill=True, color=style.GREEN, label="ranked right")
    axes.stairs(both, edges, baseline=right, fill=True, color=style.PURPLE, label="ranked wrong")
    style.zero_line(axes)
    style.label(axes, "margin (logits)", f"pairs per bin of {width:.2g}")
    return style.legend(figure)
