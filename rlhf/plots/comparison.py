"""Figures that compare the models: their metrics, their differences, and the reward beside what answers are worth."""

import math

from rlhf.lab.gold import WEIGHTS
from rlhf.metrics import bootstrap_interval
from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


@style.draws("model metric mean ci_low ci_high")
def model_metrics(frame: pd.DataFrame, metrics: list[str], title: str, ylabel: str = "mean") -> Figure:
    """Some metrics of all models, with their intervals."""
    frame = style.check(frame[frame.metric.isin(metrics)])
    figure, (axes,) = style.new_panels(title, 3.8)
    _metric_groups(axes, frame, metrics, style.series_of(frame.model))
    style.label(axes, "metric", ylabel)
    if all(metric.startswith("stop_rate") for metric in metrics):
        axes.set_ylim(*style.SHARES)
    return style.legend(figure)


def _group_points(axes, frame: pd.DataFrame, metrics: list[str], series: dict[str, dict], across: bool = False) -> None:
    """Around the place of each metric one point per model, with its interval where it has one."""
    for offset, (name, look) in zip(style.offsets(len(series)), series.items(), strict=True):
        rows = frame[frame.model == name].drop_duplicates("metric").set_index("metric").reindex(metrics)
        style.points(axes, np.arange(len(metrics)) + offset, rows, across=across, **look)


def _metric_groups(axes, frame: pd.DataFrame, metrics: list[str], series: dict[str, dict]) -> None:
    _group_points(axes, frame, metrics, series)
    axes.set_xticks(range(len(metrics)), [style.words(metric) for metric in metrics])
    axes.set_xlim(-0.5, len(metrics) - 0.5)


@style.draws("model metric mean ci_low ci_high", "model metric value")
def published_beside(frame: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """ROUGE of this run beside the published one, which has no intervals."""
    metrics = ["rouge1", "rouge2", "rougeL"]
    other = published.rename(columns={"value": "mean"}).assign(ci_low=np.nan, ci_high=np.nan)
    series = style.series_of([*frame.model, *published.model])
    title = "ROUGE on the test prompts (95 % intervals; none were published)"
    figure, panels = style.new_panels(title, 4, 1, 2, sharey=True)
    for axes, rows, name in zip(panels, (frame, other), ("this run", "published: GPT-2, Dahoas data"), strict=True):
        _metric_groups(axes, style.check(rows[rows.metric.isin(metrics)]), metrics, series)
        style.label(axes, "metric", "", name)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean F-measure")
    return style.legend(figure)


@style.draws("model against metric difference ci_low ci_high n")
def paired(frame: pd.DataFrame) -> Figure:
    """Differences between models, prompt by prompt: a panel for each metric."""
    series = style.series_of([*frame.model, *frame.against])
    pairs = [(m, a) for m in series for a in series if ((frame.model == m) & (frame.against == a)).any()]
    metrics = list(dict.fromkeys(frame.metric))
    columns = min(len(metrics), 3)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # below a number, where it hides the zero line
    rows = math.ceil(len(metrics) / columns)
    title = "Difference between two models on the same prompts (95 % intervals)"
    figure, grid = style.new_panels(title, 1 + rows * (0.95 + 0.38 * len(pairs)), rows, columns, sharey=True)
    for i, (axes, metric) in enumerate(zip(grid, metrics, strict=False)):
        style.zero_line(axes)
        axes.margins(x=0.2)
        here = frame[frame.metric == metric].set_index(["model", "against"])
        for place, pair in enumerate(pairs):
            if pair in here.index:
                row = here.loc[[pair]]
                style.points(axes, [place], row, "difference", across=True, **series[pair[0]])
                text = f"{row.difference.iloc[0]:+.3f}".replace("-", "−")
                at = {"xy": (row.difference.iloc[0], place), "xytext": (0, 7), "textcoords": "offset points"}
                axes.annotate(text, **at, ha="center", bbox=ground)
        style.name_rows(axes, [f"{series[m]['label']} − {series[a]['label']}" for m, a in pairs])
        style.ticks(axes.xaxis, 4 if columns < 3 else 3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "−"))
        counts = "–".join(str(int(n)) for n in sorted({here.n.min(), here.n.max()}))
        style.label(axes, f"difference (n = {counts})", "" if i % columns else "models", style.words(metric))
    for axes in grid[len(metrics) :]:
        axes.remove()
    return figure


@style.draws("model metric mean ci_low ci_high")
def gold_parts(frame: pd.DataFrame, title: str = "Parts of the gold score (mean with 95 % interval)") -> Figure:
    """The parts of the gold score by model, or what they have gained; rows of other metrics are left out."""
    frame = style.check(frame[frame.metric.isin(list(WEIGHTS))])
    parts = [part for part in WEIGHTS if part in set(frame.metric)]
    figure, (axes,) = style.new_panels(title, 1.6 + 0.45 * len(parts))
    style.zero_line(axes)
    _group_points(axes, frame, parts, style.series_of(frame.model), across=True)
    style.name_rows(axes, parts)
    style.label(axes, "points of gold score per answer", "part")
    return style.legend(figure)


@style.draws("model reward gold")
def reward_against_gold(frame: pd.DataFrame) -> Figure:
    """Proxy against truth for at most two models, one point per prompt."""
    series = style.each_series(frame, "model")
    if len(series) > 2:
        raise ValueError(f"{len(series)} models hide each other; give at most 2.")
    title = "Reward and gold score of each answer (cross: mean with 95 % interval)"
    figure, (axes,) = style.new_panels(title, 4.2)
    for rows, look in series:
        axes.scatter(rows.gold, rows.reward, s=9, alpha=0.3, color=look["color"], linewidths=0)
    for rows, look in series:
        (x, *x_ends), (y, *y_ends) = bootstrap_interval(rows.gold), bootstrap_interval(rows.reward)
        errors = {"xerr": np.abs([[end - x] for end in x_ends]), "yerr": np.abs([[end - y] for end in y_ends])}
        axes.errorbar(x, y, **errors, color="white", elinewidth=6, zorder=3)  # sets the cross off from the points
        axes.errorbar(x, y, **errors, **look, elinewidth=2.6, markersize=4, zorder=4)
    style.label(axes, "gold score (points)", "reward (logit)")
    return style.legend(figure)


@style.draws("probe reward ci_low ci_high")
def reward_probes(frame: pd.DataFrame) -> Figure:
    """The reward of each probe beside that of the chosen answers, the first row."""
    title = "Reward of answers that deserve none (mean with 95 % interval)"
    figure, (axes,) = style.new_panels(title, 1.4 + 0.36 * len(frame))
    axes.axvline(frame.reward.iloc[0], color=style.GREEN, linestyle="--", label="chosen answers")
    style.points(axes, range(len(frame)), frame, "reward", across=True, color=style.BLUE, marker="D")
    style.name_rows(axes, list(frame.probe))
    style.label(axes, "reward (logit)", "answer")
    return style.legend(figure)
