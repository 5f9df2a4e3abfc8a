"""Figures of the benchmarks: how many times faster each stage is, and how cost grows."""

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

WAYS = {"published": (style.GREY, "o", "published recipe"), "trl": (style.BLUE, "s", "TRL's defaults")}
AXES = {"texts": "texts", "tokens": "tokens of a text", "parameters": "parameters"}
MEASURES = {"seconds": "seconds", "memory_mb": "memory (MB)"}


def _short(number: float) -> str:
    """Three digits, with K, M or B for thousands, millions and billions."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


@style.draws("stage way ratio ratio_low ratio_high")
def benchmark_ratios(frame: pd.DataFrame) -> Figure:
    """Seconds of the other ways over ours, median and range over pairs of turns, one row for each stage."""
    stages = list(dict.fromkeys(frame.stage))
    figure, (axes,) = style.new_panels("How many times as long as ours each stage takes (bars: the range)", 3.6)
    for offset, (way, (colour, marker, label)) in zip((-0.12, 0.12), WAYS.items(), strict=True):
        rows = frame[frame.way == way]
        if len(rows):
            rows = rows.assign(ci_low=rows.ratio_low, ci_high=rows.ratio_high)
            places = [stages.index(stage) + offset for stage in rows.stage]
            look = {"color": colour, "marker": marker, "label": label}
            style.points(axes, places, rows, "ratio", across=True, **look)
    axes.axvline(1, color=style.BLACK, linewidth=1, zorder=1.5)
    style.name_rows(axes, stages)
    axes.set_xlim(left=0)
    style.label(axes, "seconds / ours", "stage")
    return style.legend(figure) if axes.get_legend_handles_labels()[0] else figure


@style.draws("axis value seconds memory_mb seconds_exponent memory_mb_exponent reckoned")
def growth(frame: pd.DataFrame) -> Figure:
    """Seconds (above) and memory (below) over texts, tokens and parameters, both logarithmic, with their exponents.

    Lines are the fitted powers; hollow points are reckoned from them.
    """
    names = [name for name in AXES if name in set(frame.axis)]
    title = "How a pass of fine-tuning grows (lines: fitted powers; hollow: reckoned)"
    figure, panels = style.new_panels(title, 5.2, rows=2, columns=len(names))
    for place, axes in enumerate(panels):
        measure, name = list(MEASURES)[place // len(names)], names[place % len(names)]
        rows = frame[frame.axis == name]
        measured, power = rows[~rows.reckoned], rows[f"{measure}_exponent"].iloc[0]
        factor = (np.log(measured[measure]) - power * np.log(measured.value)).mean()
        axes.plot(rows.value, np.exp(factor + power * np.log(rows.value)), color=style.GREY, linewidth=1)
        for reckoned, part in rows.groupby("reckoned"):
            axes.plot(part.value, part[measure], "o", color=style.BLUE, fillstyle="none" if reckoned else "full")
        axes.set(xscale="log", yscale="log")
        for axis, values in ((axes.xaxis, rows.value), (axes.yaxis, rows[measure].dropna())):
            ends = [values.min(), values.max()] if values.max() > 1.2 * values.min() else [values.max()]
            axis.set_ticks(ends, [_short(end) for end in ends])
            axis.set_minor_locator(NullLocator())
        axes.set_ylim(*(rows[measure].agg(["min", "max"]) * [0.7, 1.4]))  # the noise of equal values is no growth
        style.label(axes, AXES[name], MEASURES[measure], f"exponent {power:z.2f}")
    return figure
