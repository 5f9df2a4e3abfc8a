"""Figures of stage 1: lengths of the texts, the search, the loss, the cost of a method, and how answers end."""

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch


@style.draws("text tokens count")
def token_lengths(frame: pd.DataFrame) -> Figure:
    """How long the texts (prompt, chosen, rejected) are; `tokens` is the left edge of a bin."""
    figure, (axes,) = style.new_panels("Length of prompts and answers", 3.4)
    width = style.bin_width(frame.tokens)
    for rows, look in style.each_series(frame, "text"):
        axes.stairs(*style.bins(rows, "tokens", width), color=look["color"], label=look["label"], linewidth=1.8)
    style.label(axes, "tokens", f"texts per bin of {width:g} token{'s' * (width != 1)}")
    axes.set_ylim(bottom=0)
    return style.legend(figure)


@style.draws("method learning_rate validation_loss")
def learning_rates(frame: pd.DataFrame) -> Figure:
    """The search over learning rates of each method (full, qlora): filled is the rate that is chosen."""
    figure, (axes,) = style.new_panels(
        "The learning rate chosen for each method: that of the lowest validation loss", 3.6
    )
    for rows, look in style.each_series(frame.sort_values("learning_rate", kind="stable"), "method"):
        axes.plot(rows.learning_rate, rows.validation_loss, **look | {"markerfacecolor": "white", "markersize": 8})
        best = rows.loc[rows.validation_loss.idxmin()]
        place = best.learning_rate, best.validation_loss
        axes.plot(*place, color=look["color"], marker=look["marker"], markersize=13)
        text = f"{look['label']}: {_scientific(best.learning_rate)}"
        axes.annotate(text, place, (0, -10), textcoords="offset points", ha="center", va="top")
    axes.set_xscale("log")
    rates = np.unique(frame.learning_rate)
    axes.set_xticks(rates, map(_scientific, rates))
    axes.set_xticks([], minor=True)
    axes.margins(0.1, 0.28)
    style.label(axes, "learning rate (log scale)", "validation loss\n(nats per token)")
    return style.legend(figure)


def _scientific(rate: float) -> str:
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


@style.draws("run split step loss")
def loss_curves(frame: pd.DataFrame) -> Figure:
    """Loss over the steps of up to four runs, on two splits (train, validation)."""
    if frame.run.nunique() > 4:
        raise ValueError(f"{frame.run.nunique()} runs are too many to tell apart; give at most 4.")
    figure, (axes,) = style.new_panels("Loss while training (thin: training batches, thick: validation split)", 3.8)
    for rows, look in style.each_series(frame.sort_values("step", kind="stable"), "run"):
        train, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
        axes.plot(train.step, train.loss, color=look["color"], linewidth=1, alpha=0.6)
        axes.plot(validation.step, validation.loss, linewidth=2.4, **look)
    style.label(axes, "optimiser steps", "loss (nats per token)")
    style.ticks(axes.xaxis, 6, integer=True)
    return style.legend(figure)


@style.draws("method trainable_parameters weight_megabytes memory_megabytes seconds_per_step")
def cost_bars(frame: pd.DataFrame) -> Figure:
    """Memory and time of a training step by method; a cost that is missing was not measured."""
    title = "What each method costs in training: memory and time"
    figure, (memory, time) = style.new_panels(title, 3.2, 1, 2, sharey=True, width_ratios=[2, 1])
    series = style.series_of(frame.method)
    rows = frame.set_index("method").loc[list(series)].reset_index()
    bars = {"color": [look["color"] for look in series.values()], "height": 0.6}
    weights = rows.weight_megabytes.where(rows.memory_megabytes.notna(), 0)
    memory.barh(rows.index, weights, **bars)
    added = memory.barh(rows.index, rows.memory_megabytes.fillna(0) - weights, left=weights, alpha=0.4, **bars)
    memory.bar_label(added, map(_compact, rows.memory_megabytes), padding=4)
    steps = time.barh(rows.index, rows.seconds_per_step.fillna(0), **bars)
    time.bar_label(steps, map(_compact, rows.seconds_per_step), padding=4)
    trained = zip(series.values(), rows.trainable_parameters, strict=True)
    style.name_rows(memory, [f"{look['label']}\n{_compact(count)} trained" for look, count in trained])
    style.label(memory, "memory without activations (megabytes)", "method")
    style.label(time, "time per step (seconds)", "")
    for axes in (memory, time):
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.3)
        style.ticks(axes.xaxis, 4)
    shades = {"weights": 1, "gradients and optimiser states": 0.4}
    return style.legend(figure, [Patch(color=style.BLACK, alpha=alpha, label=name) for name, alpha in shades.items()])


def _compact(value: float) -> str:
    """Three significant digits, with M for millions and k for thousands."""
    if pd.isna(value):
        return "not measured"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@style.draws("ending metric mean ci_low ci_high", "ending tokens count")
def stop_and_length(stops: pd.DataFrame, lengths: pd.DataFrame) -> Figure:
    """Whether answers end by themselves, and how long they are, by the ending that training examples had.

    ending: eos, none or pad_is_eos. Of the metrics of `stops` only stop_rate is drawn. `tokens` is the left edge of a
    bin; the last bin holds the answers that the limit stopped.
    """
    stops = style.check(stops[stops.metric == "stop_rate"]).set_index("ending")
    series = style.series_of([*stops.index, *lengths.ending])
    figure = style.new_figure("Answers by the ending of the training examples", 4.4)
    left, right = figure.subfigures(1, 2)
    _stop_rates(left.subplots(), stops, series)
    width, limit = style.bin_width(lengths.tokens), lengths.tokens.max()
    panels = right.subplots(len(series), sharex=True, squeeze=False).ravel()
    for axes, (name, look) in zip(panels, series.items(), strict=True):
        rows = lengths[lengths.ending == name]
        if len(rows):
            axes.stairs(*style.bins(rows, "tokens", width), fill=True, color=look["color"])
        style.ticks(axes.yaxis, 3, integer=True)
        style.label(axes, "", "answers", f"length, {look['label']}")
    panels[0].set_xlim(0, limit + width)
    panels[-1].set_xlabel("tokens (last bin: stopped by the limit)")
    return figure


def _stop_rates(axes, stops: pd.DataFrame, series: dict[str, dict]) -> None:
    for i, (name, look) in enumerate(series.items()):
        if name in stops.index:
            row = stops.loc[[name]]
            axes.bar(i, row["mean"], color=look["color"], width=0.6)
            style.points(axes, [i], row, color=style.BLACK, elinewidth=1.6)
            axes.text(i, row.ci_high.iloc[0] + 0.02, f"{row['mean'].iloc[0]:.3f}", ha="center")
    axes.set_xticks(range(len(series)), [look["label"] for look in series.values()])
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    style.label(axes, "ending of the examples", "share of answers", "stopped by themselves")
