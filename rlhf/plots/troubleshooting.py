"""Figures of planted faults: what each leaves behind beside healthy runs, and which measure warned when."""

from rlhf.plots import style
from rlhf.ppo import monitor

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

HEALTHY = "healthy"
LABELS = {
    "pad_is_eos": "pad = EOS",
    "template_mismatch": "another template",
    "wrong_token": "wrong token",
    "no_kl_penalty": "no KL penalty",
    "reference_is_policy": "reference = policy",
    "rate_times_ten": "learning rate × 10",
    "reward_at_chance": "reward at chance",
    "no_whitening": "no whitening",
    HEALTHY: "healthy runs",
}
WATCHES = {"monitor": "monitor", "band": "band of the healthy runs"}


@style.draws("fault seed update reward gold kl entropy response_length stop_rate reward_std")
def beside_healthy(frame: pd.DataFrame, fault: str) -> Figure:
    """A run with a fault over its updates, and the range of the healthy runs; where no gold is known, reward_std."""
    panels = {
        "reward": ("reward as it is read", "deviations"),
        "gold": ("gold score", "points"),
        "kl": ("KL from reference", "nats per answer"),
        "entropy": ("entropy of the policy", "nats per token"),
        "response_length": ("length of an answer", "tokens"),
        "stop_rate": ("ended by EOS", "share of answers"),
    }
    if frame.gold.isna().all():
        panels = {"reward": panels.pop("reward"), "reward_std": ("deviation of the reward", "in a batch")} | panels
        del panels["gold"]
    healthy, run = frame[frame.fault == HEALTHY], frame[frame.fault == fault].sort_values("update", kind="stable")
    title = f"{LABELS.get(fault, style.words(fault))}: the run with the fault beside healthy ones"
    figure, grid = style.new_panels(title[0].upper() + title[1:], 5.2, 2, 3, sharex=True)
    for axes, (name, (heading, unit)) in zip(grid, panels.items(), strict=True):
        by_update = healthy.groupby("update")[name]
        low, high = by_update.min(), by_update.max()
        axes.fill_between(low.index, low, high, color=style.GREY, alpha=0.5, linewidth=0, label="range of healthy runs")
        for end in monitor.band(healthy, name):
            axes.plot(end.index, end, color=style.GREY, linestyle="--", linewidth=1.2, label="limits of the band")
        axes.plot(run["update"], run[name], color=style.VERMILION, marker="o", markersize=3.5, label="with the fault")
        style.label(axes, "", unit, heading)
        style.ticks(axes.xaxis, 5, integer=True)
        style.ticks(axes.yaxis, 4)
        axes.set_xlim(0.5, frame["update"].max() + 0.5)
        if name == "stop_rate":
            axes.set_ylim(*style.SHARES)
    for axes in grid[-3:]:
        axes.set_xlabel("update")
    return style.legend(figure)


@style.draws("fault seed watch measure first_update")
def alarms(frame: pd.DataFrame) -> Figure:
    """The update at which each measure warned of each fault, by the monitor and by the band; false alarms last."""
    watches = [watch for watch in WATCHES if watch in set(frame.watch)]
    faults = [*(fault for fault in dict.fromkeys(frame.fault) if fault != HEALTHY), HEALTHY]
    measures = {watch: list(dict.fromkeys(frame[frame.watch == watch].measure)) for watch in watches}
    ratios = [max(3, len(measures[watch])) for watch in watches]
    title = "The update by which a measure warned of a fault; last row: false alarms"
    figure, grid = style.new_panels(title, 3.2 + 0.3 * len(faults), 1, len(watches), sharey=True, width_ratios=ratios)
    latest = frame.first_update.astype(float).max()
    latest = 1.0 if np.isnan(latest) else latest
    for axes, watch in zip(grid, watches, strict=True):
        rows = frame[frame.watch == watch]
        first = rows[rows.fault != HEALTHY].pivot_table(
            index="fault", columns="measure", values="first_update", aggfunc="min", dropna=False
        )
        first = first.reindex(index=faults, columns=measures[watch]).astype(float).to_numpy()
        shade = np.where(np.isnan(first), 1.6 * latest, first)  # never: the lightest
        axes.imshow(shade, cmap="Blues_r", vmin=0, vmax=1.6 * latest, aspect="auto")
        for (y, x), update in np.ndenumerate(first):
            if not np.isnan(update):
                colour = "white" if update < 0.7 * latest else style.BLACK
                axes.text(x, y, f"{update:.0f}", ha="center", va="center", color=colour)
        healthy = rows[rows.fault == HEALTHY].groupby("measure").first_update
        for measure, warned, runs in zip(healthy.count().index, healthy.count(), healthy.size(), strict=True):
            place = measures[watch].index(measure), len(faults) - 1
            axes.text(*place, f"{warned}/{runs}", ha="center", va="center", color=style.BLACK)
        axes.axhline(len(faults) - 1.5, color=style.BLACK, linewidth=1)
        names = ["KL" if name == "kl" else style.words(name) for name in measures[watch]]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.grid(False)
        style.label(axes, "measure", "", WATCHES[watch])
    grid[0].set_yticks(range(len(faults)), [LABELS.get(fault, style.words(fault)) for fault in faults])
    grid[0].set_ylabel("fault")
    return figure
