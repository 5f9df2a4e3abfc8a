"""Figures that compare the models: their metrics, their differences, and the reward beside what answers are worth."""

import math

from rlhf.lab.gold import WEIGHTS
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
    """Reward over gold score of the answers of at most two models, one point per prompt, in a panel for each.

    Shaded are the answers that mislead PPO: reward above, gold score below the median of the first model's answers.
    """
    series = style.each_series(frame, "model")
    if len(series) > 2:
        raise ValueError(f"{len(series)} models don't fit beside each other; give at most 2.")
    first, first_look = series[0]
    reward, gold = first.reward.median(), first.gold.median()
    title = f"Answers with reward above and gold score below {first_look['label']}'s medians (shaded)"
    figure, panels = style.new_panels(title, 3.8, 1, len(series), sharex=True, sharey=True)
    for axes, (rows, look) in zip(panels, series, strict=True):
        inside = (rows.reward > reward) & (rows.gold < gold)
        points = {"linestyle": "none", "markeredgewidth": 0, "marker": look["marker"], "color": look["color"]}
        axes.plot(rows.gold[~inside], rows.reward[~inside], alpha=0.25, markersize=3.5, **points)
        axes.plot(rows.gold[inside], rows.reward[inside], markersize=4.5, label=look["label"], **points)
        style.label(axes, "gold score (points)", "", f"{look['label']}: {inside.mean():.0%} of answers shaded")
        style.ticks(axes.xaxis, 5)
    ends = panels[0].get_xlim(), panels[0].get_ylim()
    for axes in panels:
        axes.fill_between([ends[0][0], gold], reward, ends[1][1], color=style.GREY, alpha=0.2, linewidth=0, zorder=0)
        axes.set(xlim=ends[0], ylim=ends[1])
    panels[0].set_ylabel("reward (logit)")
    return figure


@style.draws("probe reward ci_low ci_high beats_chosen")
def reward_probes(frame: pd.DataFrame) -> Figure:
    """How far the reward of each probe is from that of the chosen answers, the first row, and how often it beats it."""
    chosen, probes = frame.reward.iloc[0], frame.iloc[1:].sort_values("reward", ascending=False, kind="stable")
    title = "Reward of spoiled answers, and how often each beats the chosen one"
    figure, (axes,) = style.new_panels(title, 1.5 + 0.36 * len(frame))
    axes.axvline(chosen, color=style.GREEN, linestyle="--", label="chosen answers, mean")
    axes.hlines(range(len(probes)), probes.reward, chosen, color=style.GREY, linewidth=1.2, zorder=1.5)
    look = {"color": style.BLUE, "marker": "D", "label": "spoiled answers, mean with 95 % interval"}
    style.points(axes, range(len(probes)), probes, "reward", across=True, **look)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for place, (mean, beats) in enumerate(zip(probes.reward, probes.beats_chosen, strict=True)):
        axes.text((mean + chosen) / 2, place, f"{beats:.1%}", ha="center", va="center", bbox=ground)
    style.name_rows(axes, list(probes.probe))
    style.label(axes, "reward (logit)", "spoiled answer")
    return style.legend(figure)
