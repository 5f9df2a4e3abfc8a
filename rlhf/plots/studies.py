"""Figures of the studies over seeds: over-optimisation, relevance, data size, labels, judges, distance from SFT."""

import math

from rlhf.plots import style

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

SCORES = ["proxy", "judge", "gold"]


@style.draws("method setting seed x kl proxy judge gold gold_unit")
def overoptimisation(frame: pd.DataFrame, turns: pd.DataFrame) -> Figure:
    """Proxy, second judge and gold of PPO's answers by distance: a panel for each setting of overoptimisation.csv.

    A triangle marks, for each seed, where gold peaks if it falls from there while the proxy rises: the rows of
    turning_points.csv (method, setting, seed, by, peak_x, found), of which there may be none.
    """
    frame = _from_start(style.check(frame[frame.method == "ppo"]))
    frame = frame.assign(distance=np.sqrt(frame.kl.clip(lower=0)))
    settings = list(dict.fromkeys(frame.setting))
    rows, columns = math.ceil(len(settings) / 2), min(2, len(settings))
    title = "The gap between proxy reward and gold score, by PPO's distance from SFT"
    figure, grid = style.new_panels(title, 1.3 + 2.3 * rows, rows, columns, sharex=True, sharey=True)
    for i, (axes, setting) in enumerate(zip(grid, settings, strict=False)):
        _three_scores(axes, frame[frame.setting == setting], turns, "distance")
        below = "" if i + columns < len(settings) else "square root of KL (nats per answer)"
        left = "" if i % columns else "change from SFT\n(standard deviations)"
        style.label(axes, below, left, setting.replace("kl_coef", "KL coefficient"))
        axes.tick_params(labelbottom=bool(below))
    for axes in grid[len(settings) :]:
        axes.remove()
    return style.legend(figure, columns=3)


@style.draws("method setting seed x proxy judge gold gold_unit")
def best_of_n(frame: pd.DataFrame, turns: pd.DataFrame) -> Figure:
    """Proxy, second judge and gold of the best of n answers by the proxy: a panel for each reward model.

    Both frames and the triangles are those of `overoptimisation`; x is n.
    """
    frame = _from_start(style.check(frame[frame.method == "best_of_n"]))
    settings = list(dict.fromkeys(frame.setting))
    title = "The gap between proxy reward and gold score of the best of n answers"
    figure, panels = style.new_panels(title, 3.8, 1, len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        rows = frame[frame.setting == setting]
        _three_scores(axes, rows, turns, "x")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows.x.unique()), [f"{n:g}" for n in sorted(rows.x.unique())])
        style.label(axes, "n: answers to choose from", "", f"reward model on {setting}")
    panels[0].set_ylabel("change from n = 1\n(standard deviations)")
    return style.legend(figure, columns=3)


def _from_start(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame by x, each score as its change from a seed's first row (SFT) in standard deviations of SFT's answers.

    Proxy and judge are in that unit already; the best of one answer is a sample, whose mean is not quite SFT's.
    """
    frame = frame.assign(gold=frame.gold / frame.gold_unit).sort_values("x", kind="stable")
    return frame.assign(**frame[SCORES] - frame.groupby(["setting", "seed"])[SCORES].transform("first"))


def seed_lines(axes, rows: pd.DataFrame, x: str, y: str, step: str, colour: str, **look) -> None:
    """y over x: a thin line for each seed, a thick one for their mean over the rows of equal `step`."""
    for _, seed in rows.groupby("seed"):
        axes.plot(seed[x], seed[y], color=colour, linewidth=0.8, alpha=0.5)
    mean = rows.groupby(step)[[x, y]].mean()
    axes.plot(mean[x], mean[y], color=colour, linewidth=2.4, **look)


def _three_scores(axes, rows: pd.DataFrame, turns: pd.DataFrame, x: str) -> None:
    """Proxy, judge and gold of one setting over x, those that are known, and a triangle at each turn of gold.

    The points of a seed are joined in the order of x; the mean is over the points of the same place in that order.
    """
    rows = rows.sort_values(["seed", x], kind="stable")
    rows = rows.assign(place=rows.groupby("seed").cumcount())
    for name, dashes in zip(SCORES, ("-", ":", "--"), strict=True):
        if rows[name].notna().all():
            colour, _, text = style.SERIES[name]
            seed_lines(axes, rows, x, name, "place", colour, label=text, linestyle=dashes)
    mean = rows.groupby("place")[[x, *SCORES]].mean()
    axes.fill_between(mean[x], mean.proxy, mean.gold, color=style.GREY, alpha=0.2, linewidth=0, label="gap")
    axes.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1.5)
    method, setting = rows[["method", "setting"]].iloc[0]
    for turn in turns[(turns.method == method) & (turns.setting == setting) & (turns.by == "gold")].itertuples():
        if turn.found:
            point = rows[(rows.seed == turn.seed) & (rows.x == turn.peak_x)]
            look = {"color": style.BLACK, "markersize": 8, "linestyle": "none", "zorder": 5}
            axes.plot(point[x], point.gold, marker="v", label="over-optimised after", **look)


@style.draws("reward_model seed metric mean ci_low ci_high")
def relevance(frame: pd.DataFrame) -> Figure:
    """A blind reward model beside one that sees relevance, and what PPO makes of each; one point per seed.

    Drawn are those metrics that there are of accuracy, accuracy <kind of error>, relevance, gold; without gold, reward.
    """
    accuracies = [m for m in dict.fromkeys(frame.metric) if m.startswith("accuracy")]
    changes = [m for m in ("relevance", "gold") if m in set(frame.metric)] or ["reward"]
    title = "What the reward model sees, and what PPO makes of it (one point per seed)"
    figure, (left, right) = style.new_panels(title, 1.6 + 0.7 * max(len(accuracies), len(changes)), 1, 2)
    series = style.each_series(frame, "reward_model")
    seeds = sorted(frame.seed.unique())
    places = style.offsets(len(series) * len(seeds), 0.75).reshape(len(series), len(seeds))
    for axes, metrics in ((left, accuracies), (right, changes)):
        for (of_model, look), near in zip(series, places, strict=True):
            for seed, offset in zip(seeds, near, strict=True):
                rows = of_model[of_model.seed == seed].set_index("metric").reindex(metrics)
                style.points(axes, np.arange(len(metrics)) + offset, rows, across=True, **look)
    left.axvline(0.5, color=style.BLACK, linewidth=0.8, linestyle=":", zorder=1.5)
    style.zero_line(right)
    style.name_rows(left, [style.words(m.removeprefix("accuracy").strip()) or "all test pairs" for m in accuracies])
    style.name_rows(right, [style.words(m) for m in changes])
    for axes in (left, right):
        style.ticks(axes.xaxis, 3)
    style.label(left, "share right (dotted: chance)", "kind of error", "reward model on test pairs")
    style.label(right, "points of gold score" if "gold" in changes else "SFT's deviations", "measure", "PPO minus SFT")
    return style.legend(figure)


@style.draws("pairs seed slice accuracy")
def data_size(frame: pd.DataFrame, slices: tuple[str, ...]) -> Figure:
    """Accuracy over the number of training pairs, for all test pairs and some slices; a thin line for each seed."""
    figure, (axes,) = style.new_panels("Accuracy on the test pairs by number of training pairs (thin: each seed)", 3.6)
    shown = [name for name in ("all", *slices) if name in set(frame.slice)]
    for name, colour in zip(shown, (style.BLACK, style.BLUE, style.VERMILION, style.GREEN), strict=False):
        text = "all test pairs" if name == "all" else style.words(name)
        seed_lines(axes, frame[frame.slice == name], "pairs", "accuracy", "pairs", colour, marker="o", label=text)
    axes.set_xscale("log", base=2)
    sizes = sorted(frame.pairs.unique())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.axhline(0.5, color=style.BLACK, linewidth=0.8, linestyle=":")
    style.label(axes, "training pairs (dotted: chance)", "share right")
    return style.legend(figure)


@style.draws("arm seed labels metric mean")
def labels(frame: pd.DataFrame) -> Figure:
    """Gold that PPO gains and the reward model's accuracy on SFT's answers, by number of labels; faint: each seed.

    Of the two measures those are drawn that there are. The points of an arm stand beside those of the others.
    """
    texts = {
        "gold": ("gold above SFT (points)", "PPO"),
        "accuracy_on_policy": ("share right (dotted: chance)", "reward model on SFT's answers"),
    }
    shown, places = [metric for metric in texts if metric in set(frame.metric)], sorted(frame.labels.unique())
    style.check(frame[frame.metric.isin(shown)])
    title = "Gold that PPO gains by number of labels, and accuracy of its reward model"
    figure, panels = style.new_panels(title, 3.9, 1, len(shown))
    arms = style.each_series(frame, "arm")
    for axes, metric in zip(panels, shown, strict=True):
        for (rows, look), offset in zip(arms, style.offsets(len(arms), 0.2), strict=True):
            rows = rows[rows.metric == metric]
            faint = {"color": look["color"], "marker": look["marker"], "s": 18, "alpha": 0.4, "linewidths": 0}
            axes.scatter(rows.labels * 2**offset, rows["mean"], **faint)
            mean = rows.groupby("labels")["mean"].mean()
            axes.plot(mean.index * 2**offset, mean, linewidth=1.4, **look)
        axes.axhline(0 if metric == "gold" else 0.5, color=style.BLACK, linewidth=0.8, linestyle=":", zorder=1.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.margins(x=0.08)
        style.label(axes, "labels", *texts[metric])
    return style.legend(figure, columns=4)


@style.draws("model seed metric mean")
def judges(frame: pd.DataFrame) -> Figure:
    """Win rates against SFT by proxy, second judge and gold (metrics win_by_<judge>); one point per seed."""
    frame = style.check(frame[frame.metric.str.startswith("win_by_")])
    labels = {name: look["label"] for name, look in style.series_of(frame.model).items()}
    judged = [name for name in SCORES if f"win_by_{name}" in set(frame.metric)]
    title = "Share of prompts where a model beats SFT (each point a seed)"
    figure, (axes,) = style.new_panels(title, 1.4 + 0.5 * len(labels))
    for offset, name in zip(style.offsets(len(judged)), judged, strict=True):
        rows = frame[frame.metric == f"win_by_{name}"]
        places = rows.model.map({model: i for i, model in enumerate(labels)}) + offset
        axes.plot(rows["mean"], places, linestyle="none", alpha=0.75, **style.series_of([name])[name])
    axes.axvline(0.5, color=style.BLACK, linewidth=1, zorder=1.5)
    style.name_rows(axes, list(labels.values()))
    style.label(axes, "win rate against SFT", "model")
    return style.legend(figure)


@style.draws("model seed metric mean")
def frontier(frame: pd.DataFrame) -> Figure:
    """Reward and gold of every model against its KL from SFT; one point per seed, and a line for the best of n.

    Models without a KL, the references, are a line across the panel of the gold score.
    """
    wide = frame.pivot_table(index=["model", "seed"], columns="metric", values="mean").reset_index()
    style.check(wide, "kl_from_sft reward")
    panels = {"reward": "reward (standard deviations)", "gold": "gold score (points)"}
    panels = {metric: text for metric, text in panels.items() if metric in wide}
    figure, grid = style.new_panels(
        "Reward and gold score against the distance from SFT (a point per seed)", 4, 1, len(panels)
    )
    best, still = wide.model.str.startswith("best of"), wide.kl_from_sft.isna()
    for axes, (metric, text) in zip(grid, panels.items(), strict=True):
        for rows, look in style.each_series(wide[~best & ~still], "model"):
            axes.plot(rows.kl_from_sft, rows[metric], linestyle="none", clip_on=False, **(look | {"markersize": 7}))
        for _, rows in wide[best].sort_values("kl_from_sft", kind="stable").groupby("seed"):
            axes.plot(rows.kl_from_sft, rows[metric], color=style.GREEN, marker="P", linewidth=1, label="best of n")
        for name, lowest in wide[best].groupby("model")[["kl_from_sft", metric]].min().iterrows():
            at = {"xytext": (0, -8), "textcoords": "offset points", "ha": "center", "va": "top"}
            axes.annotate(name.replace("best of", "n ="), lowest, **at)
        if wide[still][metric].notna().any():
            axes.axhline(wide[still][metric].mean(), color=style.BLACK, linestyle=":", label="references")
        axes.set_xlim(left=0)
        axes.margins(x=0.1, y=0.12)
        style.label(axes, "KL from SFT (nats per answer)", text)
        style.ticks(axes.xaxis, 4)
    return style.legend(figure, columns=3)
