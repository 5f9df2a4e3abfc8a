"""The figures of PPO's training show the numbers of their frames."""

from rlhf import plots
from rlhf.registry import MODELS

import numpy as np
import pytest
from plot_examples import EXAMPLES, example, panels


def test_ppo_curves_show_each_update_and_the_running_mean_of_five():
    frame = EXAMPLES["ppo_curves"][0]
    lines = panels(example("ppo_curves"))[1].lines
    for (thin, thick), (model, rows) in zip((lines[:2], lines[2:]), frame.groupby("model"), strict=True):
        np.testing.assert_allclose(thin.get_ydata(), rows.kl)
        np.testing.assert_allclose(thick.get_ydata()[10], rows.kl[8:13].mean())
        assert thick.get_color() == MODELS[model].colour
    assert len(panels(example("ppo_curves"))[0].lines) == 8


def test_explained_variance_has_a_panel_where_it_is_known():
    frame = EXAMPLES["ppo_curves"][0]
    shown = panels(example("ppo_curves"))[7]
    np.testing.assert_allclose(shown.lines[0].get_ydata(), frame[frame.model == "ppo"].explained_variance)
    unknown = plots.ppo_curves(frame.assign(explained_variance=np.nan))
    assert len(panels(unknown)) == len(panels(example("ppo_curves"))) - 1


def test_clipped_objective_has_a_panel_for_each_sign_and_marks_the_range_that_still_earns():
    first, second = panels(example("clipped_objective"))
    for axes, sign in ((first, 1), (second, -1)):
        assert axes.get_title(loc="left") == f"advantage {sign:+d}"
        line = next(line for line in axes.lines if line.get_label().startswith("clipped"))
        np.testing.assert_allclose(line.get_ydata()[-1], min(1.5 * sign, 1.2 * sign))
        (span,) = axes.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((0.8, 1.2))


def test_kl_estimators_mark_the_means_and_count_every_answer():
    frame = EXAMPLES["kl_estimators"][0]
    (axes,) = panels(example("kl_estimators"))
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([frame.k1.mean(), frame.k3.mean()])
    assert sum(patch.get_height() for patch in axes.patches) == 2 * len(frame)


def test_answer_tokens_show_each_token_with_its_numbers_and_the_score_on_the_last():
    frame = EXAMPLES["answer_tokens"][0]
    ratio, reward, advantage = panels(example("answer_tokens"))
    assert [label.get_text() for label in ratio.get_yticklabels()] == list(frame.token)
    assert ratio.yaxis_inverted()
    np.testing.assert_allclose([bar.get_width() for bar in ratio.patches], frame.log_ratio)
    np.testing.assert_allclose([bar.get_width() for bar in advantage.patches], frame.advantage)
    score, *penalties = reward.patches
    np.testing.assert_allclose([bar.get_width() for bar in penalties], frame.kl_penalty)
    assert score.get_width() == pytest.approx(1) and score.get_y() == penalties[-1].get_y()
    assert score.get_x() + score.get_width() == pytest.approx(frame.reward.iloc[-1])
