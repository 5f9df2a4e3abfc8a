"""Figures of stage 3's training: PPO's curves, its objective, the estimates of the KL, and one answer's tokens."""

from rlhf.plots import style
from rlhf.ppo.monitor import LIMITS

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

RUNNING = 5  # updates in the running mean of the curves
UPDATE = {"linewidth": 0.8, "alpha": 0.45, "marker": ".", "markersize": 3}
MEAN = {"linewidth": 2.2}


@style.draws(
    "model episode reward reward_minus_kl kl entropy value_loss clip_fraction response_length stop_rate "
    "explained_variance"
)
def ppo_curves(frame: pd.DataFrame) -> Figure:
    """PPO over its episodes, one row per update of each model; explained_variance may be missing for a model."""
    panels = {
        ("reward", "reward_minus_kl"): ("reward", "deviations of SFT answers"),
        ("kl",): ("KL from the reference policy", "nats per answer"),
        ("entropy",): ("entropy of the policy", "nats per token"),
        ("value_loss",): ("loss of the baseline", "squared reward"),
        ("clip_fraction",): ("clipped by the policy loss", "share of tokens"),
        ("response_length",): ("length of an answer", "tokens"),
        ("stop_rate",): ("stopped by themselves", "share of answers"),
        ("explained_variance",): ("explained by the baseline", "share of variance"),
    }
    series = style.each_series(frame.sort_values("episode", kind="stable"), "model")
    names = " and ".join(look["label"] for _, look in series)
    figure, grid = style.new_panels(f"{names} over the episodes of training", 9.4, 4, 2, sharex=True)
    for rows, look in series:
        means = rows.rolling(RUNNING, center=True, min_periods=1, on="episode").mean(numeric_only=True)
        for axes, columns in zip(grid, panels, strict=False):
            for column, dashes in zip(columns, ("-", ":"), strict=False):
                line = {"color": look["color"], "linestyle": dashes}
                axes.plot(rows.episode, rows[column], **line, **UPDATE)
                axes.plot(rows.episode, means[column], **line, **MEAN)
    for axes, (title, unit) in zip(grid, panels.values(), strict=False):
        style.label(axes, "", unit, title)
        style.ticks(axes.xaxis, 5, integer=True)
        style.ticks(axes.yaxis, 5)
    grid[6].set_ylim(*style.SHARES)
    grid[7].axhline(0, color=style.BLACK, linewidth=1, zorder=1.5)
    grid[7].set_ylim(top=1)
    lowest = [grid[6], grid[7]]
    if frame.explained_variance.isna().all():  # TRL does not log it
        grid[7].remove()
        lowest[1] = grid[5]
    for axes in lowest:
        axes.set_xlabel("episodes")
        axes.tick_params(labelbottom=True)
    return style.legend(figure, _curve_handles([look for _, look in series]), columns=3)


def _curve_handles(styles: list[dict]) -> list[Line2D]:
    """Models have a line of their own only where there are several."""
    models = [Line2D([], [], color=look["color"], label=look["label"], **MEAN) for look in styles]
    colour = style.BLACK if len(models) > 1 else styles[0]["color"]
    return [
        *(models if len(models) > 1 else []),
        Line2D([], [], color=colour, label="one update", **UPDATE),
        Line2D([], [], color=colour, label=f"running mean of {RUNNING}", **MEAN),
        Line2D([], [], color=colour, label="reward minus KL penalty", linestyle=":", **MEAN),
    ]


@style.draws("advantage ratio unclipped clipped")
def clipped_objective(frame: pd.DataFrame, clip: float) -> Figure:
    """What PPO maximises for one token, over the ratio of its probabilities; a panel for each sign of the advantage."""
    signs = sorted(frame.advantage.unique(), reverse=True)
    figure, panels = style.new_panels("The clipped objective of one token", 3.3, 1, len(signs), sharey=True)
    for axes, advantage in zip(panels, signs, strict=True):
        rows = frame[frame.advantage == advantage]
        axes.plot(rows.ratio, rows.unclipped, color=style.GREY, linestyle="--", label="ratio × advantage")
        axes.plot(rows.ratio, rows.clipped, color=style.VERMILION, linewidth=2.4, label="clipped: what is maximised")
        axes.axvspan(1 - clip, 1 + clip, color=style.GREY, alpha=0.15, linewidth=0)
        axes.axvline(1, color=style.BLACK, linewidth=0.8)
        style.label(axes, "ratio: new probability / old", "", f"advantage {advantage:+g}")
    panels[0].set_ylabel("objective")
    return style.legend(figure)


@style.draws("k1 k3")
def kl_estimators(frame: pd.DataFrame) -> Figure:
    """Distribution over answers of two estimates of the KL in nats per answer, their means marked."""
    figure, (axes,) = style.new_panels("Two estimates of the same KL, one value per answer", 3.3)
    low, high = frame[["k1", "k3"]].min().min(), frame[["k1", "k3"]].max().max()
    step = (high - low) / 40
    edges = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)  # one edge is 0, where k3 begins
    for column, colour, formula in (("k1", style.BLUE, "k1 = d"), ("k3", style.ORANGE, "k3 = exp(−d) − 1 + d")):
        axes.hist(frame[column], edges, color=colour, alpha=0.55, label=formula)
        axes.axvline(frame[column].mean(), color=colour, linewidth=2.2)
    style.label(axes, "nats per answer (line: mean)", "answers")
    return style.legend(figure)


@style.draws("token log_ratio kl_penalty reward advantage")
def answer_tokens(frame: pd.DataFrame) -> Figure:
    """The tokens of one answer from its first to its last, each with its log ratio, its reward and its advantage."""
    title = "One answer: every token has a KL penalty, the last one the score too"
    figure, panels = style.new_panels(title, 1.6 + 0.165 * len(frame), 1, 3, sharey=True)
    places = np.arange(len(frame))
    score = (frame.reward - frame.kl_penalty).iloc[-1]
    panels[0].barh(places, frame.log_ratio, color=style.BLUE)
    panels[1].barh(places[-1], score, left=frame.kl_penalty.iloc[-1], color=style.ORANGE, label="score")
    panels[1].barh(places, frame.kl_penalty, color=style.BLACK, label="KL penalty")
    panels[2].barh(places, frame.advantage, color=style.GREEN)
    style.label(panels[0], "nats", "", "log ratio")
    style.label(panels[1], "deviations of SFT answers", "", "reward")
    style.label(panels[2], "deviations of the batch", "", "advantage")
    for axes in panels:
        style.zero_line(axes)
        style.ticks(axes.xaxis, 3)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.tick_params(left=False)
    tokens = [style.as_label(text) for text in frame.token]
    panels[0].set_yticks(places, tokens, parse_math=False)  # two dollar signs are no formula
    panels[0].set(ylabel="tokens", ylim=(len(frame) - 0.4, -0.6))
    return style.legend(figure, panels[1].get_legend_handles_labels()[0])


@style.draws("model episode reward kl entropy distinct_2 reward_std repetition")
def monitored(frame: pd.DataFrame, title: str) -> Figure:
    """Reward, KL and what the monitor watches over the episodes of some runs; dashed: the limits of each run."""
    panels = {
        "reward": ("reward", "mean of a batch"),
        "kl": ("KL from the reference policy", "nats per answer"),
        "entropy": ("entropy of the policy", "nats per token"),
        "distinct_2": ("distinct pairs of tokens", "share of pairs"),
        "reward_std": ("deviation of the reward", "within a batch"),
        "repetition": ("repeated runs of three tokens", "share of an answer"),
    }
    figure, grid = style.new_panels(title, 7.2, 3, 2, sharex=True)
    for rows, look in style.each_series(frame.sort_values("episode", kind="stable"), "model"):
        means = rows.rolling(RUNNING, center=True, min_periods=1, on="episode").mean(numeric_only=True)
        for axes, name in zip(grid, panels, strict=True):
            axes.plot(rows.episode, rows[name], color=look["color"], **UPDATE)
            axes.plot(rows.episode, means[name], color=look["color"], label=look["label"], **MEAN)
            if name in LIMITS:
                limit, first = LIMITS[name], rows[name].iloc[0]
                at = limit.share * first if limit.share else first + limit.rise
                axes.axhline(at, color=look["color"], linestyle="--", linewidth=1.2)
    for axes, (heading, unit) in zip(grid, panels.values(), strict=True):
        style.label(axes, "", unit, heading)
        style.ticks(axes.xaxis, 5, integer=True)
        style.ticks(axes.yaxis, 5)
    for axes in grid[-2:]:
        axes.set_xlabel("episodes")
    return style.legend(figure)
