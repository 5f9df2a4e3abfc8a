"""Figures of stage 1: lengths of the texts, the search, the loss, the cost of a method, and how answers end."""

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


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
    """The search over learning rates of each method (full, qlora)."""
    figure, (axes,) = style.new_panels("Validation loss by learning rate (ring: the lowest of a method)", 3.6)
    for rows, look in style.each_series(frame.sort_values("learning_rate"), "method"):
        axes.plot(rows.learning_rate, rows.validation_loss, **look)
        best = rows.loc[rows.validation_loss.idxmin()]
        ring = {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(best.learning_rate, best.validation_loss, "o", color=look["color"], **ring)
    axes.set_xscale("log")
    rates = np.unique(frame.learning_rate)
    axes.set_xticks(rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates])
    axes.set_xticks([], minor=True)
    axes.margins(0.08, 0.15)
    style.label(axes, "learning rate (log scale)", "validation loss\n(nats per token)")
    return style.legend(figure)


@style.draws("run split step loss")
def loss_curves(frame: pd.DataFrame) -> Figure:
    """Loss over the steps of up to four runs, on two splits (train, validation)."""
    if frame.run.nunique() > 4:
        raise ValueError(f"{frame.run.nunique()} runs are too many to tell apart; give at most 4.")
    figure, (axes,) = style.new_panels("Loss while training (thin: training batches, thick: validation split)", 3.8)
    for rows, look in style.each_series(frame.sort_values("step"), "run"):
        train, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
        axes.plot(train.step, train.loss, color=look["color"], linewidth=1, alpha=0.6)
        axes.plot(validation.step, validation.loss, linewidth=2.4, **look)
    style.label(axes, "optimiser steps", "loss (nats per token)")
    style.ticks(axes.xaxis, 6, integer=True)
    return style.legend(figure)


@style.draws("method trainable_parameters weight_megabytes memory_megabytes seconds_per_step")
def cost_bars(frame: pd.DataFrame) -> Figure:
    """What each method costs; a cost that is missing was not measured."""
    panels = {
        "trainable_parameters": ("trainable parameters", "parameters"),
        "weight_megabytes": ("weights", "megabytes"),
        "memory_megabytes": ("weights, gradients, optimiser", "megabytes"),
        "seconds_per_step": ("time per step", "seconds"),
    }
    figure, grid = style.new_panels("Cost of a method: size, memory and time", 5, 2, 2)
    series = style.series_of(frame.method)
    rows = frame.set_index("method").loc[list(series)]
    labels, colours = ([look[key] for look in series.values()] for key in ("label", "color"))
    for axes, (column, (title, unit)) in zip(grid, panels.items(), strict=True):
        bars = axes.bar(labels, rows[column].fillna(0), color=colours, width=0.6)
        axes.bar_label(bars, [_compact(value) for value in rows[column]], padding=2)
        axes.yaxis.set_major_formatter(lambda value, _: _compact(value))
        style.ticks(axes.yaxis, 4)
        axes.margins(y=0.18)
        style.label(axes, "method", unit, title)
    return figure


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
