"""Every plot of the case study, in one style, each drawn from the CSV (a DataFrame) that it shows.

Each public function returns a matplotlib Figure: as the last value of a cell a notebook shows it once, and
`outputs.write_figure` writes it. An interval is the 95 % one of the CSV's ci_low and ci_high. A model has the
same colour and marker in every figure. ValueError names the figure where a frame is empty or lacks a column.
"""

import functools
import io
import math
import textwrap

from rlhf.lab.gold import WEIGHTS
from rlhf.metrics import SUMMARY_COLUMNS, bootstrap_interval

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, MaxNLocator
from PIL import Image

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GREY, BLACK = "#8C8C8C", "#222222"
BLUE, SKY, GREEN, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
VERMILION, ORANGE = "#D55E00", "#E69F00"

# Colour, marker and label by name; the order here is the order in every figure.
SERIES = {
    "base": (GREY, "o", "base"),
    "sft_qlora": (SKY, "s", "QLoRA SFT"),
    "sft_full": (BLUE, "D", "full SFT"),
    "ppo": (VERMILION, "^", "PPO (TRL)"),
    "ppo_scratch": (ORANGE, "v", "PPO (scratch)"),
    "ppo_half": (GREEN, "P", "PPO (half the pairs)"),
    "lora": (GREEN, "P", "LoRA"),
    "qlora": (SKY, "s", "QLoRA"),
    "full": (BLUE, "D", "full"),
    "prompt": (GREY, "o", "prompt"),
    "chosen": (GREEN, "s", "chosen"),
    "rejected": (PURPLE, "D", "rejected"),
    "eos": (GREEN, "o", "EOS"),
    "none": (PURPLE, "s", "no EOS"),
    "pad_is_eos": (ORANGE, "D", "pad = EOS"),
    "proxy": (VERMILION, "^", "proxy reward"),
    "judge": (PURPLE, "s", "second judge"),
    "gold": (BLUE, "D", "gold score"),
    "blind": (ORANGE, "v", "blind reward model"),
    "seeing": (GREEN, "o", "seeing reward model"),
}
SPARE_COLOURS, SPARE_MARKERS = (GREEN, PURPLE, BLACK, ORANGE), "PXdp"
METRICS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "gold": "gold score",
    "kl": "KL (nats per answer)",
    "win_rate_vs_sft": "win rate against SFT",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
}
INTERVAL_COLUMNS = ["ci_low", "ci_high"]
SHARES = (-0.03, 1.03)  # the whole axis: on a part of it, one answer in a hundred looks like a collapse
RUNNING = 5  # updates in the running mean of the PPO curves

WIDTH = 7  # inches
STYLE = {
    "figure.dpi": 110,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "figure.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


class NotebookFigure(Figure):
    """A figure that a notebook shows as the value of a cell, and only there: pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()

    def savefig(self, target, **kwargs) -> None:
        """Save as matplotlib does, but a PNG with a palette: a third of the bytes, and no colour visibly changed."""
        if kwargs.get("format") != "png":
            super().savefig(target, **kwargs)
            return
        buffer = io.BytesIO()
        super().savefig(buffer, **kwargs)
        image = Image.open(buffer).convert("RGB")
        image = image.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(target, format="png", optimize=True)


def _styled(draw):
    """Draw in this module's style, whatever matplotlib is set to.

    Ticks and layout are fixed at the end: matplotlib would choose them anew each time that the figure is saved.
    """

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
                if isinstance(axis.get_major_locator(), AutoLocator):
                    _ticks(axis, 7)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return drawn


def _check(name: str, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The frame, or ValueError naming the figure if columns or rows are missing."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"figure {name}: column {missing[0]!r} not in the frame (found: {list(frame.columns)}); it needs {columns}."
        )
    if frame.empty:
        raise ValueError(f"figure {name}: the frame has no rows to draw; run the cell that fills its CSV first.")
    return frame


def _figure(title: str, height: float, rows: int = 1, columns: int = 1, **kwargs):
    """A figure with its title and an array of axes, (rows * columns,)."""
    figure = _empty_figure(title, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()


def _empty_figure(title: str, height: float) -> NotebookFigure:
    figure = NotebookFigure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    figure.suptitle(textwrap.fill(title, 78), x=0.015, ha="left")
    return figure


def _label(axes, x: str, y: str, title: str = "") -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)


def _legend(figure, handles: list | None = None, columns: int = 5) -> None:
    """One legend for all panels, below them: never over the data."""
    if handles is None:
        found = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles = list({label: handle for pair in found for handle, label in zip(*pair, strict=True)}.values())
    figure.legend(handles=handles, loc="outside lower center", borderaxespad=0.2, ncols=min(columns, len(handles)))


def _series(names) -> dict[str, dict]:
    """Colour, marker and label of each name: known ones in their order, then the others with the next colour."""
    names = list(dict.fromkeys(names))
    known = [name for name in SERIES if name in names]
    spare = [colour for colour in SPARE_COLOURS if colour not in {SERIES[name][0] for name in known}]
    found = {name: SERIES[name] for name in known}
    for i, name in enumerate(name for name in names if name not in SERIES):
        found[name] = (spare[i % len(spare)], SPARE_MARKERS[i % len(SPARE_MARKERS)], _words(name))
    keys = ("color", "marker", "label")
    return {name: dict(zip(keys, values, strict=True)) for name, values in found.items()}


def _words(name: str) -> str:
    """What a reader calls a metric, an error or a run; `_sample` marks a metric of sampled answers."""
    name, sampled, _ = name.partition("_sample")
    return METRICS.get(name, name.replace("_", " ")) + (", sampled" if sampled else "")


def _errors(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Distances from the mean to the ends of its interval, (2, rows); never negative, as rounding may make them."""
    ends = rows[["ci_low", "ci_high"]].to_numpy(dtype=float).T
    return np.abs(ends - rows[column].to_numpy(dtype=float))


def _points(axes, places, rows: pd.DataFrame, column: str = "mean", across: bool = False, **style) -> None:
    """Points with intervals over `places`; `across` lays them along the horizontal axis."""
    style = {"linestyle": "none", "capsize": 2.5, "elinewidth": 1.4} | style
    if across:
        axes.errorbar(rows[column], places, xerr=_errors(rows, column), **style)
    else:
        axes.errorbar(places, rows[column], yerr=_errors(rows, column), **style)


def _offsets(count: int, width: float = 0.6) -> np.ndarray:
    """Where `count` points stand around a tick at 0, side by side."""
    return (np.arange(count) - (count - 1) / 2) * width / max(count, 2)


def _rows_of(axes, names: list[str], label: str) -> None:
    """Names down the vertical axis, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel(label)
    _ticks(axes.xaxis, 5)


def _bin_width(edges) -> float:
    """The widest bin on whose grid all left edges lie (Euclid's algorithm); 1 for a single edge."""
    edges = np.unique(edges)
    gaps = np.diff(edges)
    if not len(gaps):
        return 1.0
    width, tolerance = gaps[0], gaps.min() * 1e-3
    for gap in gaps[1:]:
        while gap > tolerance:
            width, gap = gap, width % gap
    span = edges[-1] - edges[0]
    return float(span / round(span / width))  # without the rounding of the single edges


def _bins(rows: pd.DataFrame, column: str, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of a histogram whose CSV leaves out the empty bins."""
    low = rows[column].min()
    place = np.rint((rows[column] - low) / width).astype(int)
    counts = np.bincount(place, weights=rows["count"])
    return counts, low + width * np.arange(len(counts) + 1)


def _zero_line(axes) -> None:
    axes.axvline(0, color=BLACK, linewidth=1, zorder=1.5)


def _ticks(axis, count: int, integer: bool = False) -> None:
    """At most `count` intervals between round numbers."""
    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer))


# Stage 1


@_styled
def token_lengths(frame: pd.DataFrame) -> Figure:
    """How long the texts are.

    Columns: text (prompt, chosen, rejected), tokens (left edge of a bin), count.
    """
    _check("token_lengths", frame, ["text", "tokens", "count"])
    figure, (axes,) = _figure("Length of prompts and answers", 3.4)
    width = _bin_width(frame.tokens)
    for name, style in _series(frame.text).items():
        counts, edges = _bins(frame[frame.text == name], "tokens", width)
        axes.stairs(counts, edges, color=style["color"], label=style["label"], linewidth=1.8)
    _label(axes, "tokens", f"texts per bin of {width:g} token{'s' * (width != 1)}")
    axes.set_ylim(bottom=0)
    _legend(figure)
    return figure


@_styled
def learning_rates(frame: pd.DataFrame) -> Figure:
    """The search over learning rates. Columns: method (full, qlora), learning_rate, validation_loss."""
    _check("learning_rates", frame, ["method", "learning_rate", "validation_loss"])
    figure, (axes,) = _figure("Validation loss by learning rate (ring: the lowest of a method)", 3.6)
    for name, style in _series(frame.method).items():
        rows = frame[frame.method == name].sort_values("learning_rate")
        axes.plot(rows.learning_rate, rows.validation_loss, **style)
        best = rows.loc[rows.validation_loss.idxmin()]
        ring = {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(best.learning_rate, best.validation_loss, "o", color=style["color"], **ring)
    axes.set_xscale("log")
    rates = np.unique(frame.learning_rate)
    axes.set_xticks(rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates])
    axes.set_xticks([], minor=True)
    axes.margins(0.08, 0.15)
    _label(axes, "learning rate (log scale)", "validation loss\n(nats per token)")
    _legend(figure)
    return figure


@_styled
def loss_curves(frame: pd.DataFrame) -> Figure:
    """Loss over the steps of up to four runs. Columns: run, split (train, validation), step, loss."""
    _check("loss_curves", frame, ["run", "split", "step", "loss"])
    series = _series(frame.run)
    if len(series) > 4:
        raise ValueError(f"figure loss_curves: {len(series)} runs are too many to tell apart; give at most 4.")
    figure, (axes,) = _figure("Loss while training (thin: training batches, thick: validation split)", 3.8)
    for name, style in series.items():
        rows = frame[frame.run == name].sort_values("step")
        train, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
        axes.plot(train.step, train.loss, color=style["color"], linewidth=1, alpha=0.6)
        axes.plot(validation.step, validation.loss, linewidth=2.4, **style)
    _label(axes, "optimiser steps", "loss (nats per token)")
    _ticks(axes.xaxis, 6, integer=True)
    _legend(figure)
    return figure


@_styled
def cost_bars(frame: pd.DataFrame) -> Figure:
    """What each method costs.

    Columns: method, trainable_parameters, weight_megabytes, memory_megabytes, seconds_per_step.
    """
    panels = {
        "trainable_parameters": ("trainable parameters", "parameters"),
        "weight_megabytes": ("weights", "megabytes"),
        "memory_megabytes": ("weights, gradients, optimiser", "megabytes"),
        "seconds_per_step": ("time per step", "seconds"),
    }
    _check("cost_bars", frame, ["method", *panels])
    figure, grid = _figure("Cost of a method: size, memory and time", 5, 2, 2)
    series = _series(frame.method)
    rows = frame.set_index("method").loc[list(series)]
    labels = [style["label"] for style in series.values()]
    for axes, (column, (title, unit)) in zip(grid, panels.items(), strict=True):
        colours = [style["color"] for style in series.values()]
        bars = axes.bar(labels, rows[column].fillna(0), color=colours, width=0.6)
        axes.bar_label(bars, [_compact(value) for value in rows[column]], padding=2)
        axes.yaxis.set_major_formatter(lambda value, _: _compact(value))
        _ticks(axes.yaxis, 4)
        axes.margins(y=0.18)
        _label(axes, "method", unit, title)
    return figure


def _compact(value: float) -> str:
    """Three significant digits, with M for millions and k for thousands."""
    if pd.isna(value):
        return "not measured"
    for size, unit in ((1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@_styled
def stop_and_length(stops: pd.DataFrame, lengths: pd.DataFrame) -> Figure:
    """Whether answers end by themselves, and how long they are, by the ending that training examples had.

    stops: ending (eos, none, pad_is_eos), metric (only stop_rate is drawn), mean, ci_low, ci_high.
    lengths: ending, tokens, count; the last bin holds the answers that the limit stopped.
    """
    _check("stop_and_length", stops, ["ending", "metric", "mean", *INTERVAL_COLUMNS])
    _check("stop_and_length", lengths, ["ending", "tokens", "count"])
    stops = _check("stop_and_length", stops[stops.metric == "stop_rate"], ["ending"]).set_index("ending")
    series = _series([*stops.index, *lengths.ending])
    figure = _empty_figure("Answers by the ending of the training examples", 4.4)
    left, right = figure.subfigures(1, 2)
    _stop_rates(left.subplots(), stops, series)
    width, limit = _bin_width(lengths.tokens), lengths.tokens.max()
    panels = right.subplots(len(series), sharex=True, squeeze=False).ravel()
    for axes, (name, style) in zip(panels, series.items(), strict=True):
        rows = lengths[lengths.ending == name]
        if len(rows):
            axes.stairs(*_bins(rows, "tokens", width), fill=True, color=style["color"])
        _ticks(axes.yaxis, 3, integer=True)
        _label(axes, "", "answers", f"length, {style['label']}")
    panels[0].set_xlim(0, limit + width)
    panels[-1].set_xlabel("tokens (last bin: stopped by the limit)")
    return figure


def _stop_rates(axes, stops: pd.DataFrame, series: dict[str, dict]) -> None:
    for i, (name, style) in enumerate(series.items()):
        if name in stops.index:
            row = stops.loc[[name]]
            axes.bar(i, row["mean"], color=style["color"], width=0.6)
            _points(axes, [i], row, color=BLACK, elinewidth=1.6)
            axes.text(i, row.ci_high.iloc[0] + 0.02, f"{row['mean'].iloc[0]:.3f}", ha="center")
    axes.set_xticks(range(len(series)), [style["label"] for style in series.values()])
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    _label(axes, "ending of the examples", "share of answers", "stopped by themselves")


# Comparison of models


@_styled
def model_metrics(
    frame: pd.DataFrame, metrics: list[str], title: str, ylabel: str = "mean with 95 % interval"
) -> Figure:
    """Some metrics of all models. The frame has the columns model, metric, mean, ci_low, ci_high, n."""
    _check("model_metrics", frame, SUMMARY_COLUMNS)
    frame = _check("model_metrics", frame[frame.metric.isin(metrics)], SUMMARY_COLUMNS)
    figure, (axes,) = _figure(title, 3.8)
    _metric_groups(axes, frame, metrics, _series(frame.model))
    _label(axes, "metric", ylabel)
    if all(metric.startswith("stop_rate") for metric in metrics):
        axes.set_ylim(*SHARES)
    _legend(figure)
    return figure


def _metric_groups(axes, frame: pd.DataFrame, metrics: list[str], series: dict[str, dict]) -> None:
    """One group per metric, in it one point per model, with its interval where it has one."""
    for offset, (name, style) in zip(_offsets(len(series)), series.items(), strict=True):
        rows = frame[frame.model == name].drop_duplicates("metric").set_index("metric").reindex(metrics)
        _points(axes, np.arange(len(metrics)) + offset, rows, **style)
    axes.set_xticks(range(len(metrics)), [_words(metric) for metric in metrics])
    axes.set_xlim(-0.5, len(metrics) - 0.5)


@_styled
def published_beside(frame: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """ROUGE of this run beside the published one.

    frame: model, metric, mean, ci_low, ci_high, n; published: model, metric, value.
    """
    metrics = ["rouge1", "rouge2", "rougeL"]
    _check("published_beside", frame, SUMMARY_COLUMNS)
    _check("published_beside", published, ["model", "metric", "value"])
    other = published.rename(columns={"value": "mean"}).assign(ci_low=np.nan, ci_high=np.nan)
    series = _series([*frame.model, *published.model])
    figure, panels = _figure("ROUGE on the test prompts (95 % intervals; none were published)", 4, 1, 2, sharey=True)
    titles = ("this run", "published: GPT-2, Dahoas data")
    for axes, rows, title in zip(panels, (frame, other), titles, strict=True):
        _check("published_beside", rows[rows.metric.isin(metrics)], ["model"])
        _metric_groups(axes, rows, metrics, series)
        _label(axes, "metric", "", title)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean F-measure")
    _legend(figure)
    return figure


@_styled
def paired(frame: pd.DataFrame) -> Figure:
    """Differences between models, prompt by prompt.

    Columns: model, against, metric, difference, ci_low, ci_high, n.
    """
    _check("paired", frame, ["model", "against", "metric", "difference", *INTERVAL_COLUMNS, "n"])
    series = _series([*frame.model, *frame.against])
    pairs = [(m, a) for m in series for a in series if ((frame.model == m) & (frame.against == a)).any()]
    names = [f"{series[m]['label']} − {series[a]['label']}" for m, a in pairs]
    metrics = list(dict.fromkeys(frame.metric))
    columns = min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    height = 1 + rows * (0.95 + 0.38 * len(pairs))
    title = "Difference between two models on the same prompts (95 % intervals)"
    figure, grid = _figure(title, height, rows, columns, sharey=True)
    for i, (axes, metric) in enumerate(zip(grid, metrics, strict=False)):
        _zero_line(axes)
        axes.margins(x=0.2)
        here = frame[frame.metric == metric].set_index(["model", "against"])
        for place, pair in enumerate(pairs):
            if pair in here.index:
                row = here.loc[[pair]]
                _points(axes, [place], row, "difference", True, **series[pair[0]])
                _write_above(axes, row.difference.iloc[0], place)
        _rows_of(axes, names, "" if i % columns else "models")
        _ticks(axes.xaxis, 4 if columns < 3 else 3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "−"))
        _label(axes, f"difference (n = {_range(here.n)})", axes.get_ylabel(), _words(metric))
    for axes in grid[len(metrics) :]:
        axes.remove()
    return figure


def _write_above(axes, value: float, place: float) -> None:
    text = f"{value:+.3g}".replace("-", "−")
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the zero line
    axes.annotate(text, (value, place), xytext=(0, 7), textcoords="offset points", ha="center", bbox=ground)


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}–{high}"


@_styled
def gold_parts(frame: pd.DataFrame) -> Figure:
    """The parts of the gold score by model.

    Columns: model, metric, mean, ci_low, ci_high, n; rows of other metrics are left out.
    """
    _check("gold_parts", frame, SUMMARY_COLUMNS)
    frame = _check("gold_parts", frame[frame.metric.isin(list(WEIGHTS))], SUMMARY_COLUMNS)
    parts = [part for part in WEIGHTS if part in set(frame.metric)]
    series = _series(frame.model)
    figure, (axes,) = _figure("Parts of the gold score (mean with 95 % interval)", 1.6 + 0.45 * len(parts))
    _zero_line(axes)
    for offset, (name, style) in zip(_offsets(len(series)), series.items(), strict=True):
        rows = frame[frame.model == name].set_index("metric").reindex(parts)
        _points(axes, np.arange(len(parts)) + offset, rows, across=True, **style)
    _rows_of(axes, parts, "part")
    axes.set_xlabel("points of gold score per answer")
    _legend(figure)
    return figure


@_styled
def reward_against_gold(frame: pd.DataFrame) -> Figure:
    """Proxy against truth for at most two models, one point per prompt. Columns: model, reward, gold."""
    _check("reward_against_gold", frame, ["model", "reward", "gold"])
    series = _series(frame.model)
    if len(series) > 2:
        raise ValueError(f"figure reward_against_gold: {len(series)} models hide each other; give at most 2.")
    title = "Reward and gold score of each answer (cross: mean with 95 % interval)"
    figure, (axes,) = _figure(title, 4.2)
    for name, style in series.items():
        rows = frame[frame.model == name]
        axes.scatter(rows.gold, rows.reward, s=9, alpha=0.3, color=style["color"], linewidths=0)
    for name, style in series.items():
        rows = frame[frame.model == name]
        (x, *x_ends), (y, *y_ends) = bootstrap_interval(rows.gold), bootstrap_interval(rows.reward)
        errors = {"xerr": np.abs([[end - x] for end in x_ends]), "yerr": np.abs([[end - y] for end in y_ends])}
        axes.errorbar(x, y, **errors, color="white", elinewidth=6, zorder=3)  # sets the cross off from the points
        axes.errorbar(x, y, **errors, **style, elinewidth=2.6, markersize=4, zorder=4)
    _label(axes, "gold score (points)", "reward (logit)")
    _legend(figure)
    return figure


@_styled
def reward_probes(frame: pd.DataFrame) -> Figure:
    """The reward of each probe beside that of the chosen answers, the first row.

    Columns: probe, reward, ci_low, ci_high.
    """
    _check("reward_probes", frame, ["probe", "reward", *INTERVAL_COLUMNS])
    figure, (axes,) = _figure("Reward of answers that deserve none (mean with 95 % interval)", 1.4 + 0.36 * len(frame))
    axes.axvline(frame.reward.iloc[0], color=GREEN, linestyle="--", label="chosen answers")
    _points(axes, range(len(frame)), frame, "reward", across=True, color=BLUE, marker="D")
    _rows_of(axes, list(frame.probe), "answer")
    axes.set_xlabel("reward (logit)")
    _legend(figure)
    return figure


# Stage 2


@_styled
def error_kinds(frame: pd.DataFrame) -> Figure:
    """Pairs by what is wrong with the rejected answer. Columns: error, share, length_rule, gold_agreement."""
    panels = {
        "share": ("how frequent", "share of pairs"),
        "length_rule": ("length rule", "share right"),
        "gold_agreement": ("gold score", "share right"),
    }
    _check("error_kinds", frame, ["error", *panels])
    rows = frame.sort_values(["share", "error"], ascending=[False, True])
    title = "Pairs by kind of error, and who picks the chosen answer (dashed: chance)"
    figure, grid = _figure(title, 1.4 + 0.27 * len(rows), 1, 3, sharey=True)
    for axes, (column, (name, unit)) in zip(grid, panels.items(), strict=True):
        axes.barh(np.arange(len(rows)), rows[column], color=GREY if column == "share" else BLUE, height=0.65)
        _rows_of(axes, [_words(error) for error in rows.error], "" if axes is not grid[0] else "kind of error")
        axes.tick_params(axis="y", length=0)
        _label(axes, unit, axes.get_ylabel(), name)
        if column == "share":
            _ticks(axes.xaxis, 3)
        else:
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.axvline(0.5, color=BLACK, linestyle="--", linewidth=1)
        if rows[column].isna().all():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", backgroundcolor="white")
    return figure


@_styled
def length_difference(frame: pd.DataFrame) -> Figure:
    """Words of the chosen minus words of the rejected answer.

    Columns: difference (left edge of a bin), count.
    """
    _check("length_difference", frame, ["difference", "count"])
    figure, (axes,) = _figure("Length of the chosen answer minus length of the rejected one", 3.2)
    width = _bin_width(frame.difference)
    counts, edges = _bins(frame, "difference", width)
    axes.stairs(counts, edges, fill=True, color=SKY)
    _zero_line(axes)
    _label(axes, "chosen minus rejected (words)", f"pairs per bin of {width:g} word{'s' * (width != 1)}")
    return figure


@_styled
def reward_curve(frame: pd.DataFrame) -> Figure:
    """Reward model over its training. Columns: split (train, validation), step, loss, accuracy."""
    _check("reward_curve", frame, ["split", "step", "loss", "accuracy"])
    figure, panels = _figure("Reward model while training", 3.5, 1, 2)
    splits = {
        "train": {"color": GREY, "linewidth": 1.2, "label": "training batches"},
        "validation": {"color": BLUE, "linewidth": 2.4, "marker": "o", "label": "validation split"},
    }
    columns = {"loss": ("loss (nats per pair)", math.log(2)), "accuracy": ("accuracy (share of pairs)", 0.5)}
    for axes, (column, (label, chance)) in zip(panels, columns.items(), strict=True):
        axes.axhline(chance, color=BLACK, linestyle="--", linewidth=1, label="chance", zorder=1.5)
        for split, style in splits.items():
            rows = frame[frame.split == split].sort_values("step")
            if len(rows):
                axes.plot(rows.step, rows[column], **style)
        _label(axes, "optimiser steps", label)
        _ticks(axes.xaxis, 6, integer=True)
    _legend(figure)
    return figure


@_styled
def calibration(frame: pd.DataFrame) -> Figure:
    """Reliability of sigmoid(margin), from metrics.calibration.

    Columns: confidence, accuracy, ci_low, ci_high, n.
    """
    _check("calibration", frame, ["confidence", "accuracy", *INTERVAL_COLUMNS, "n"])
    figure, (axes,) = _figure("Accuracy of the reward model by its confidence (95 % intervals)", 4.2)
    axes.plot([0.5, 1], [0.5, 1], color=BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    _points(axes, frame.confidence, frame, "accuracy", color=BLUE)
    scale = 220 / frame.n.max()  # of a marker's area, in points²
    axes.scatter(frame.confidence, frame.accuracy, s=scale * frame.n, color=BLUE, zorder=3)
    sizes = np.unique(np.quantile(frame.n, [0, 0.5, 1], method="nearest"))
    handles = [
        Line2D(
            [], [], linestyle="none", marker="o", color=BLUE, markersize=math.sqrt(scale * n), label=f"{n:.0f} pairs"
        )
        for n in sizes
    ]
    axes.set_xlim(0.48, 1.02)
    _label(axes, "confidence: sigmoid(|margin|)", "accuracy (share of pairs)")
    _legend(figure, [axes.lines[0], *handles])
    return figure


@_styled
def accuracy_slices(frame: pd.DataFrame, reference: float) -> Figure:
    """Accuracy by slice beside that of all pairs (`reference`). Columns: slice, mean, ci_low, ci_high, n."""
    _check("accuracy_slices", frame, ["slice", "mean", *INTERVAL_COLUMNS, "n"])
    rows = frame.sort_values(["mean", "slice"], ascending=[False, True])
    title = "Accuracy of the reward model by slice of the pairs (95 % intervals)"
    figure, (axes,) = _figure(title, 1.5 + 0.28 * len(rows))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1.4, label="chance")
    axes.axvline(reference, color=BLACK, linestyle="--", linewidth=1.4, label=f"all pairs ({reference:.3f})")
    _points(axes, np.arange(len(rows)), rows, across=True, color=BLUE, marker="o")
    names = [f"{_words(name)} (n = {n})" for name, n in zip(rows["slice"], rows.n, strict=True)]
    _rows_of(axes, names, "slice")
    axes.set_xlabel("accuracy (share of pairs)")
    _legend(figure)
    return figure


@_styled
def margins(frame: pd.DataFrame) -> Figure:
    """Reward of the chosen minus reward of the rejected answer.

    Columns: margin (left edge of a bin), count, correct.
    """
    _check("margins", frame, ["margin", "count", "correct"])
    figure, (axes,) = _figure("Margin of the reward model: reward(chosen) minus reward(rejected)", 3.5)
    width = _bin_width(frame.margin)
    low = frame.margin.min()
    places = np.rint((frame.margin - low) / width).astype(int)
    edges = low + width * np.arange(places.max() + 2)
    base = np.zeros(len(edges) - 1)
    for correct, colour, label in ((True, GREEN, "ranked right"), (False, PURPLE, "ranked wrong")):
        here = frame.correct.astype(bool) == correct
        top = base + np.bincount(places[here], weights=frame["count"][here], minlength=len(base))
        axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=label)
        base = top
    _zero_line(axes)
    _label(axes, "margin (logits)", f"pairs per bin of {width:.2g}")
    _legend(figure)
    return figure


# Stage 3


@_styled
def ppo_curves(frame: pd.DataFrame) -> Figure:
    """PPO over its episodes, one row per update of each model.

    Columns: model, episode, reward, kl, reward_minus_kl, entropy, value_loss, clip_fraction, response_length,
    stop_rate.
    """
    panels = {
        ("reward", "reward_minus_kl"): ("reward", "deviations of SFT answers"),
        ("kl",): ("KL from the reference policy", "nats per answer"),
        ("entropy",): ("entropy of the policy", "nats per token"),
        ("value_loss",): ("value loss", "squared reward"),
        ("clip_fraction",): ("clipped by the policy loss", "share of tokens"),
        ("response_length",): ("length of an answer", "tokens"),
        ("stop_rate",): ("stopped by themselves", "share of answers"),
    }
    _check("ppo_curves", frame, ["model", "episode", *[column for columns in panels for column in columns]])
    series = _series(frame.model)
    names = " and ".join(style["label"] for style in series.values())
    figure, grid = _figure(f"{names} over the episodes of training", 8.6, 4, 2, sharex=True)
    for model, style in series.items():
        rows = frame[frame.model == model].sort_values("episode")
        means = rows.rolling(RUNNING, center=True, min_periods=1, on="episode").mean(numeric_only=True)
        for axes, columns in zip(grid, panels, strict=False):
            for column, dashes in zip(columns, ("-", ":"), strict=False):
                axes.plot(
                    rows.episode, rows[column], color=style["color"], linewidth=0.8, alpha=0.45, linestyle=dashes,
                    marker=".", markersize=3,
                )  # fmt: skip
                axes.plot(rows.episode, means[column], color=style["color"], linewidth=2.2, linestyle=dashes)
    for axes, (title, unit) in zip(grid, panels.values(), strict=False):
        _label(axes, "", unit, title)
        _ticks(axes.xaxis, 5, integer=True)
        _ticks(axes.yaxis, 5)
    grid[6].set_ylim(*SHARES)
    for axes in grid[5:7]:  # the lowest of each column
        axes.set_xlabel("episodes")
        axes.tick_params(labelbottom=True)
    grid[7].axis("off")
    grid[7].legend(handles=_curve_handles(series), loc="center left")
    return figure


def _curve_handles(series: dict[str, dict]) -> list[Line2D]:
    colour = next(iter(series.values()))["color"] if len(series) == 1 else BLACK
    models = [Line2D([], [], color=s["color"], linewidth=2.2, label=s["label"]) for s in series.values()]
    thin = Line2D([], [], color=colour, linewidth=0.8, alpha=0.45, marker=".", markersize=3, label="one update")
    thick = Line2D([], [], color=colour, linewidth=2.2, label=f"running mean of {RUNNING}")
    penalised = Line2D([], [], color=colour, linewidth=2.2, linestyle=":", label="reward minus KL penalty")
    return [*(models if len(series) > 1 else []), thin, thick, penalised]


@_styled
def clipped_objective(frame: pd.DataFrame, clip: float) -> Figure:
    """What PPO maximises for one token, over the ratio of its probabilities.

    Columns: advantage (its sign gives the panel), ratio, unclipped, clipped.
    """
    _check("clipped_objective", frame, ["advantage", "ratio", "unclipped", "clipped"])
    signs = sorted(frame.advantage.unique(), reverse=True)
    figure, panels = _figure("The clipped objective of one token", 3.3, 1, len(signs), sharey=True)
    for axes, advantage in zip(panels, signs, strict=True):
        rows = frame[frame.advantage == advantage]
        axes.plot(rows.ratio, rows.unclipped, color=GREY, linestyle="--", label="ratio × advantage")
        axes.plot(rows.ratio, rows.clipped, color=VERMILION, linewidth=2.4, label="clipped: what is maximised")
        axes.axvspan(1 - clip, 1 + clip, color=GREY, alpha=0.15, linewidth=0)
        axes.axvline(1, color=BLACK, linewidth=0.8)
        _label(axes, "ratio: new probability / old", "", f"advantage {advantage:+g}")
    panels[0].set_ylabel("objective")
    _legend(figure)
    return figure


@_styled
def kl_estimators(frame: pd.DataFrame) -> Figure:
    """Distribution over answers of two estimates of the KL, their means marked. Columns: k1, k3, in nats per answer."""
    _check("kl_estimators", frame, ["k1", "k3"])
    figure, (axes,) = _figure("Two estimates of the same KL, one value per answer", 3.3)
    low, high = frame[["k1", "k3"]].min().min(), frame[["k1", "k3"]].max().max()
    step = (high - low) / 40
    edges = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)  # one edge is 0, where k3 begins
    for column, colour, label in (("k1", BLUE, "k1 = d"), ("k3", ORANGE, "k3 = exp(−d) − 1 + d")):
        axes.hist(frame[column], edges, color=colour, alpha=0.55, label=label)
        axes.axvline(frame[column].mean(), color=colour, linewidth=2.2)
    _label(axes, "nats per answer (line: mean)", "answers")
    _legend(figure)
    return figure


# The study


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with gold as its change from SFT in SFT's deviations, the unit that proxy and judge have."""
    start = frame[frame.x == frame.x.min()].groupby(["setting", "seed"]).gold.first()
    base = start.reindex(pd.MultiIndex.from_frame(frame[["setting", "seed"]])).to_numpy()
    return frame.assign(gold=(frame.gold - base) / frame.gold_unit)


def _seed_lines(axes, rows: pd.DataFrame, x: str, y: str, step: str, colour: str, **style) -> None:
    """y over x: a thin line for each seed, a thick one for their mean over the rows of equal `step`."""
    for _, seed in rows.groupby("seed"):
        axes.plot(seed[x], seed[y], color=colour, linewidth=0.8, alpha=0.5)
    mean = rows.groupby(step, as_index=False)[list({x, y} - {step})].mean()
    axes.plot(mean[x], mean[y], color=colour, linewidth=2.4, **style)


def _three_scores(axes, rows: pd.DataFrame, x: str) -> None:
    """Proxy, judge and gold over x, those that are known; means at equal updates or n."""
    for name in ("proxy", "judge", "gold"):
        if rows[name].notna().all():
            colour, _, label = SERIES[name]
            _seed_lines(axes, rows, x, name, "x", colour, label=label)
    axes.axhline(0, color=BLACK, linewidth=0.8, zorder=1.5)


@_styled
def overoptimisation(frame: pd.DataFrame, turns: pd.DataFrame) -> Figure:
    """Proxy, second judge and gold along PPO: one panel for each setting of overoptimisation.csv.

    A triangle marks, for each seed, where gold peaks if it falls from there while the proxy rises (turning_points.csv).
    Columns: method, setting, seed, x, kl, proxy, judge, gold, gold_unit; of turns: method, setting, seed, by, peak_x,
    found.
    """
    _check("overoptimisation", frame, ["method", "setting", "seed", "x", "kl", "proxy", "judge", "gold", "gold_unit"])
    frame = _check("overoptimisation", frame[frame.method == "ppo"], ["setting"])
    frame = _scored(frame).assign(distance=np.sqrt(frame.kl.clip(lower=0)))
    settings = list(dict.fromkeys(frame.setting))
    rows = math.ceil(len(settings) / 3)
    title = "The same answers by three scores, the further PPO moves from SFT"
    figure, grid = _figure(title, 1.2 + 2.3 * rows, rows, min(3, len(settings)), sharey=True)
    for i, (axes, setting) in enumerate(zip(grid, settings, strict=False)):
        here = frame[frame.setting == setting]
        _three_scores(axes, here, "distance")
        _mark_turns(axes, here, turns, "ppo", setting, "distance")
        _label(axes, "square root of KL (nats)", "" if i % 3 else "SFT's deviations", setting.replace(", ", ",\n"))
        _ticks(axes.xaxis, 4)
    for axes in grid[len(settings) :]:
        axes.remove()
    _turn_legend(figure, grid[0])
    return figure


@_styled
def best_of_n(frame: pd.DataFrame, turns: pd.DataFrame) -> Figure:
    """Proxy, second judge and gold of the best of n answers by the proxy: a panel for each reward model.

    A triangle marks, for each seed, where gold peaks if it falls from there while the proxy rises. Columns: method,
    setting, seed, x, proxy, judge, gold, gold_unit; of turns: method, setting, seed, by, peak_x, found.
    """
    _check("best_of_n", frame, ["method", "setting", "seed", "x", "proxy", "judge", "gold", "gold_unit"])
    frame = _scored(_check("best_of_n", frame[frame.method == "best_of_n"], ["setting"]))
    settings = list(dict.fromkeys(frame.setting))
    figure, panels = _figure("The best of n answers of SFT, chosen by the proxy", 3.6, 1, len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        rows = frame[frame.setting == setting]
        starts = rows[rows.x == rows.x.min()].set_index("seed")  # a sample's mean is not quite SFT's
        for name in ("proxy", "judge"):
            rows = rows.assign(**{name: rows[name] - rows.seed.map(starts[name])})
        _three_scores(axes, rows, "x")
        _mark_turns(axes, rows, turns, "best_of_n", setting, "x")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows.x.unique()), [f"{n:g}" for n in sorted(rows.x.unique())])
        _label(axes, "n", "", f"reward model on {setting}")
    panels[0].set_ylabel("SFT's deviations above n = 1")
    _turn_legend(figure, panels[0])
    return figure


def _mark_turns(axes, rows: pd.DataFrame, turns: pd.DataFrame, method: str, setting: str, x: str) -> None:
    """A triangle on gold where over-optimisation begins, for each seed for which turning_points.csv finds it."""
    for turn in turns[(turns.method == method) & (turns.setting == setting) & (turns.by == "gold")].itertuples():
        if turn.found:
            point = rows[(rows.seed == turn.seed) & (rows.x == turn.peak_x)]
            axes.plot(point[x], point.gold, "v", color=BLACK, markersize=8, zorder=5)


def _turn_legend(figure, axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    turn = Line2D([], [], color=BLACK, marker="v", markersize=8, linestyle="none", label="over-optimised after")
    _legend(figure, [*handles, turn], columns=4)


@_styled
def relevance(frame: pd.DataFrame) -> Figure:
    """A blind reward model beside one that sees relevance, and what PPO makes of each; one point per seed.

    Columns: reward_model, seed, metric, mean, ci_low, ci_high; of the metrics of scripts/study.py those there are.
    """
    _check("relevance", frame, ["reward_model", "seed", "metric", "mean", *INTERVAL_COLUMNS])
    accuracies = [m for m in dict.fromkeys(frame.metric) if m.startswith("accuracy")]
    changes = [m for m in ("relevance", "gold") if m in set(frame.metric)] or ["reward"]
    names = [m.removeprefix("accuracy").strip().replace("_", " ") or "all test pairs" for m in accuracies]
    title = "What the reward model sees, and what PPO makes of it (one point per seed)"
    height = 1.6 + 0.7 * max(len(accuracies), len(changes))
    figure, (left, right) = _figure(title, height, 1, 2)
    series = _series(frame.reward_model)
    seeds = sorted(frame.seed.unique())
    offsets = _offsets(len(series) * len(seeds), 0.75)
    for axes, metrics in ((left, accuracies), (right, changes)):
        for k, (name, style) in enumerate(series.items()):
            for i, seed in enumerate(seeds):
                rows = frame[(frame.reward_model == name) & (frame.seed == seed)].set_index("metric").reindex(metrics)
                style = style | {"label": style["label"] if not i else "_"}
                places = np.arange(len(metrics)) + offsets[k * len(seeds) + i]
                _points(axes, places, rows, across=True, **style)
    left.axvline(0.5, color=BLACK, linewidth=0.8, linestyle=":", zorder=1.5)
    _zero_line(right)
    _rows_of(left, names, "kind of error")
    _rows_of(right, [f"{m} score" if m == "gold" else m for m in changes], "measure")
    for axes in (left, right):
        _ticks(axes.xaxis, 3)
    _label(left, "share right (dotted: chance)", "kind of error", "reward model on test pairs")
    _label(right, "points of gold score" if "gold" in changes else "SFT's deviations", "measure", "PPO minus SFT")
    _legend(figure)
    return figure


@_styled
def data_size(frame: pd.DataFrame, slices: tuple[str, ...]) -> Figure:
    """Accuracy over the number of training pairs, for all test pairs and some slices; a thin line for each seed.

    Columns: pairs, seed, slice, accuracy.
    """
    _check("data_size", frame, ["pairs", "seed", "slice", "accuracy"])
    figure, (axes,) = _figure("Accuracy on the test pairs by number of training pairs (thin: each seed)", 3.6)
    colours = (BLACK, BLUE, VERMILION, GREEN)
    shown = [name for name in ("all", *slices) if name in set(frame.slice)]
    for name, colour in zip(shown, colours, strict=False):
        label = "all test pairs" if name == "all" else _words(name)
        _seed_lines(axes, frame[frame.slice == name], "pairs", "accuracy", "pairs", colour, marker="o", label=label)
    axes.set_xscale("log", base=2)
    sizes = sorted(frame.pairs.unique())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.axhline(0.5, color=BLACK, linewidth=0.8, linestyle=":")
    _label(axes, "training pairs (dotted: chance)", "share right")
    _legend(figure)
    return figure


@_styled
def judges(frame: pd.DataFrame) -> Figure:
    """Win rates against SFT by proxy, second judge and gold; one point per seed. Columns: model, seed, metric, mean."""
    _check("judges", frame, ["model", "seed", "metric", "mean"])
    frame = frame[frame.metric.str.startswith("win_by_")].assign(by=lambda f: f.metric.str.removeprefix("win_by_"))
    _check("judges", frame, ["by"])
    labels = {name: style["label"] for name, style in _series(frame.model).items()}
    series = {name: _series([name])[name] for name in ("proxy", "judge", "gold") if name in set(frame.by)}
    figure, (axes,) = _figure("Share of prompts where a model beats SFT (each point a seed)", 1.4 + 0.5 * len(labels))
    for offset, (name, style) in zip(_offsets(len(series)), series.items(), strict=True):
        rows = frame[frame.by == name]
        places = rows.model.map({model: i for i, model in enumerate(labels)}) + offset
        axes.plot(rows["mean"], places, linestyle="none", alpha=0.75, **style)
    axes.axvline(0.5, color=BLACK, linewidth=1, zorder=1.5)
    _rows_of(axes, list(labels.values()), "model")
    axes.set_xlabel("win rate against SFT")
    _legend(figure)
    return figure


@_styled
def frontier(frame: pd.DataFrame) -> Figure:
    """Reward and gold of every model against its KL from SFT; one point per seed.

    Columns: model, seed, metric, mean.
    """
    _check("frontier", frame, ["model", "seed", "metric", "mean"])
    wide = frame.pivot_table(index=["model", "seed"], columns="metric", values="mean").reset_index()
    _check("frontier", wide, ["kl_from_sft", "reward"])
    panels = {"reward": "proxy reward (SFT's deviations)", "gold": "gold score (points)"}
    panels = {metric: label for metric, label in panels.items() if metric in wide}
    figure, grid = _figure("Reward and truth against the distance from SFT", 3.9, 1, len(panels))
    best = wide.model.str.startswith("best of")
    series = _series(wide.model[~best])
    for axes, (metric, label) in zip(grid, panels.items(), strict=True):
        for name, style in series.items():
            rows = wide[wide.model == name]
            axes.plot(rows.kl_from_sft, rows[metric], linestyle="none", **style)
        for i, (_, rows) in enumerate(wide[best].groupby("seed")):
            rows = rows.sort_values("kl_from_sft")
            axes.plot(
                rows.kl_from_sft, rows[metric], color=GREEN, marker="P", linewidth=0.8, label="_" if i else "best of n"
            )
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(left=-0.02)
        axes.set_xticks([0, 1, 5, 10, 20, 40])
        _label(axes, "KL from SFT (nats per answer)", label)
    _legend(figure)
    return figure
