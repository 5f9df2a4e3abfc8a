"""The figures of the comparison of methods show the numbers of their frames."""

from rlhf.plots import style

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from plot_examples import EXAMPLES, draw, example, lines, panels


def test_frontier_joins_the_means_over_seeds_along_the_dial_and_rings_the_chosen_value():
    (frame,) = EXAMPLES["method_frontier"]
    (axes,) = panels(example("method_frontier"))
    rows = frame[frame.method == "dpo"]
    (line,) = [line for line in axes.lines if line.get_label() == "DPO"]
    means = rows.groupby("value")[["kl", "gold"]].mean()
    np.testing.assert_allclose(line.get_xydata(), means)
    rings = np.array([line.get_xydata()[0] for line in axes.lines if line.get_fillstyle() == "none"])
    chosen = frame[frame.chosen].groupby("method")[["kl", "gold"]].mean().to_numpy()
    assert len(rings) == 7  # best of n has none
    np.testing.assert_allclose(np.sort(rings, axis=0), np.sort(chosen, axis=0))
    bars = [group for group in axes.collections if isinstance(group, LineCollection)]
    points = sum(len(group.get_offsets()) for group in axes.collections if group not in bars)
    assert points == len(frame)
    ends = sorted(tuple(end) for group in bars for bar in group.get_segments() for end in bar)
    expected = [row for end in ("low", "high") for row in frame[frame.chosen][["kl", f"gold_ci_{end}"]].to_numpy()]
    np.testing.assert_allclose(ends, sorted(map(tuple, expected)))
    styles = {line.get_label(): line.get_linestyle() for line in axes.lines}
    assert styles["best of n"] == "--" and styles["PPO (scratch)"] == "-"


def test_answers_show_the_mean_over_seeds_of_each_method():
    (frame,) = EXAMPLES["method_answers"]
    shown = lines(panels(example("method_answers"))[0])
    assert set(shown) == {"PPO (scratch)", "RLOO", "GRPO", "rejection sampling", "online DPO"}
    np.testing.assert_allclose(shown["RLOO"], frame[frame.method == "rloo"].groupby("answers").gold.mean())


@pytest.mark.parametrize("name", ["method_frontier", "method_answers"])
def test_without_a_gold_score_the_reward_is_drawn_and_named(name):
    frame = EXAMPLES[name][0].assign(gold=np.nan)
    figure = draw(name, frame)
    (axes,) = panels(figure)
    assert "reward" in axes.get_ylabel() and "reward" in figure.get_suptitle() and "gold" not in figure.get_suptitle()
    key = "value" if name == "method_frontier" else "answers"
    np.testing.assert_allclose(lines(axes)["RLOO"], frame[frame.method == "rloo"].groupby(key).reward.mean())


def test_logprobs_have_a_point_for_each_seed_method_and_side():
    (frame,) = EXAMPLES["method_logprobs"]
    (axes,) = panels(example("method_logprobs"))
    shown = {line.get_label(): line.get_xdata() for line in axes.lines}
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(shown[f"{side} answers"], frame[frame.side == side].change)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [style.SERIES[key][2] for key in style.SERIES if key in set(frame.method)]
