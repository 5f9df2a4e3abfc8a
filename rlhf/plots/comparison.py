"""Figures that compare the models: their metrics, their differences, and the reward beside what answers are worth."""

import math

from rlhf.lab.gold import WEIGHTS
from rlhf.metrics import bootstrap_interval
from rlhf.plots.style import (
    BLUE, GREEN, SHARES, check, draws, each_series, label, legend, name_rows, new_panels, offsets, points, series_of,
    ticks, words, zero_line,
)  # fmt: skip

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


@draws("model metric mean ci_low ci_high")
def model_metrics(
    frame: pd.DataFrame, metrics: list[str], title: str, ylabel: str = "mean with 95 % interval"
) -> Figure:
    """Some metrics of all models."""
    frame = check(frame[frame.metric.isin(metrics)])
    figure, (axes,) = new_panels(title, 3.8)
    _metric_groups(axes, frame, metrics, series_of(frame.model))
    label(axes, "metric", ylabel)
    if all(metric.startswith("stop_rate") for metric in metrics):
        axes.set_ylim(*SHARES)
    legend(figure)
    return figure


def _group_points(axes, frame: pd.DataFrame, metrics: list[str], series: dict[str, dict], across: bool = False) -> None:
    """Around the place of each metric one point per model, with its interval where it has one."""
    for offset, (name, style) in zip(offsets(len(series)), series.items(), strict=True):
        rows = frame[frame.model == name].drop_duplicates("metric").set_index("metric").reindex(metrics)
        points(axes, np.arange(len(metrics)) + offset, rows, across=across, **style)


def _metric_groups(axes, frame: pd.DataFrame, metrics: list[str], series: dict[str, dict]) -> None:
    _group_points(axes, frame, metrics, series)
    axes.set_xticks(range(len(metrics)), [words(metric) for metric in metrics])
    axes.set_xlim(-0.5, len(metrics) - 0.5)


@draws("model metric mean ci_low ci_high", "model metric value")
def published_beside(frame: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """ROUGE of this run beside the published one, which has no intervals."""
    metrics = ["rouge1", "rouge2", "rougeL"]
    other = published.rename(columns={"value": "mean"}).assign(ci_low=np.nan, ci_high=np.nan)
    series = series_of([*frame.model, *published.model])
    title = "ROUGE on the test prompts (95 % intervals; none were published)"
    figure, panels = new_panels(title, 4, 1, 2, sharey=True)
    for axes, rows, name in zip(panels, (frame, other), ("this run", "published: GPT-2, Dahoas data"), strict=True):
        _metric_groups(axes, check(rows[rows.metric.isin(metrics)]), metrics, series)
        label(axes, "metric", "", name)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean F-measure")
    legend(figure)
    return figure


@draws("model against metric difference ci_low ci_high n")
def paired(frame: pd.DataFrame) -> Figure:
    """Differences between models, prompt by prompt: a panel for each metric."""
    series = series_of([*frame.model, *frame.against])
    pairs = [(m, a) for m in series for a in series if ((frame.model == m) & (frame.against == a)).any()]
    metrics = list(dict.fromkeys(frame.metric))
    columns = min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    title = "Difference between two models on the same prompts (95 % intervals)"
    figure, grid = new_panels(title, 1 + rows * (0.95 + 0.38 * len(pairs)), rows, columns, sharey=True)
    for i, (axes, metric) in enumerate(zip(grid, metrics, strict=False)):
        zero_line(axes)
        axes.margins(x=0.2)
        here = frame[frame.metric == metric].set_index(["model", "against"])
        for place, pair in enumerate(pairs):
            if pair in here.index:
                row = here.loc[[pair]]
                points(axes, [place], row, "difference", across=True, **series[pair[0]])
                _write_above(axes, row.difference.iloc[0], place)
        name_rows(axes, [f"{series[m]['label']} − {series[a]['label']}" for m, a in pairs])
        ticks(axes.xaxis, 4 if columns < 3 else 3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "−"))
        counts = "–".join(str(int(n)) for n in sorted({here.n.min(), here.n.max()}))
        label(axes, f"difference (n = {counts})", "" if i % columns else "models", words(metric))
    for axes in grid[len(metrics) :]:
        axes.remove()
    return figure


def _write_above(axes, value: float, place: float) -> None:
    text = f"{value:+.3g}".replace("-", "−")
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the zero line
    axes.annotate(text, (value, place), xytext=(0, 7), textcoords="offset points", ha="center", bbox=ground)


@draws("model metric mean ci_low ci_high")
def gold_parts(frame: pd.DataFrame) -> Figure:
    """The parts of the gold score by model; rows of other metrics are left out."""
    frame = check(frame[frame.metric.isin(list(WEIGHTS))])
    parts = [part for part in WEIGHTS if part in set(frame.metric)]
    figure, (axes,) = new_panels("Parts of the gold score (mean with 95 % interval)", 1.6 + 0.45 * len(parts))
    zero_line(axes)
    _group_points(axes, frame, parts, series_of(frame.model), across=True)
    name_rows(axes, parts)
    label(axes, "points of gold score per answer", "part")
    legend(figure)
    return figure


@draws("model reward gold")
def reward_against_gold(frame: pd.DataFrame) -> Figure:
    """Proxy against truth for at most two models, one point per prompt."""
    series = each_series(frame, "model")
    if len(series) > 2:
        raise ValueError(f"{len(series)} models hide each other; give at most 2.")
    title = "Reward and gold score of each answer (cross: mean with 95 % interval)"
    figure, (axes,) = new_panels(title, 4.2)
    for rows, style in series:
        axes.scatter(rows.gold, rows.reward, s=9, alpha=0.3, color=style["color"], linewidths=0)
    for rows, style in series:
        (x, *x_ends), (y, *y_ends) = bootstrap_interval(rows.gold), bootstrap_interval(rows.reward)
        errors = {"xerr": np.abs([[end - x] for end in x_ends]), "yerr": np.abs([[end - y] for end in y_ends])}
        axes.errorbar(x, y, **errors, color="white", elinewidth=6, zorder=3)  # sets the cross off from the points
        axes.errorbar(x, y, **errors, **style, elinewidth=2.6, markersize=4, zorder=4)
    label(axes, "gold score (points)", "reward (logit)")
    legend(figure)
    return figure


@draws("probe reward ci_low ci_high")
def reward_probes(frame: pd.DataFrame) -> Figure:
    """The reward of each probe beside that of the chosen answers, the first row."""
    title = "Reward of answers that deserve none (mean with 95 % interval)"
    figure, (axes,) = new_panels(title, 1.4 + 0.36 * len(frame))
    axes.axvline(frame.reward.iloc[0], color=GREEN, linestyle="--", label="chosen answers")
    points(axes, range(len(frame)), frame, "reward", across=True, color=BLUE, marker="D")
    name_rows(axes, list(frame.probe))
    label(axes, "reward (logit)", "answer")
    legend(figure)
    return figure
