"""The figures that compare models show the numbers of their frames."""

from rlhf.lab.gold import WEIGHTS
from rlhf.registry import MODELS

import numpy as np
import pandas as pd
import pytest
from plot_examples import COMPARED, EXAMPLES, draw, example, intervals, panels


def test_model_metrics_shows_means_and_intervals_of_the_frame():
    frame, metrics, *_ = EXAMPLES["model_metrics"]
    (axes,) = panels(example("model_metrics"))
    shown = intervals(axes)
    for model in COMPARED:
        rows = frame[frame.model == model].set_index("metric").loc[metrics]
        places, means, ends = shown[MODELS[model].label]
        np.testing.assert_array_equal(np.round(places), [0, 1, 2])
        np.testing.assert_allclose(means, rows["mean"])
        np.testing.assert_allclose(ends, rows[["ci_low", "ci_high"]])


def test_metrics_that_the_frame_does_not_have_are_an_error():
    with pytest.raises(ValueError, match=r"figure model_metrics: .*no rows"):
        draw("model_metrics", EXAMPLES["model_metrics"][0], ["reward"], "Reward")


def test_published_values_stand_on_the_same_scale_without_intervals():
    frame, published = EXAMPLES["published_beside"]
    ours, theirs = panels(example("published_beside"))
    assert ours.get_ylim() == theirs.get_ylim()
    means = {label: values[1] for label, values in intervals(theirs).items()}
    np.testing.assert_allclose(means["full SFT"], published[published.model == "sft_full"].value)
    assert len(intervals(theirs)["full SFT"][2]) == 0
    np.testing.assert_allclose(intervals(ours)["PPO (TRL)"][2], frame[frame.model == "ppo"][["ci_low", "ci_high"]])


def test_gold_parts_leaves_the_whole_score_out_and_keeps_the_judges_order():
    (axes,) = panels(example("gold_parts"))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(WEIGHTS)
    frame = EXAMPLES["gold_parts"][0]
    rows = frame[(frame.model == "ppo") & (frame.metric != "gold")].set_index("metric").loc[list(WEIGHTS)]
    np.testing.assert_allclose(intervals(axes)["PPO (TRL)"][0], rows["mean"])


def test_paired_shows_each_metric_in_a_panel_with_the_differences_of_the_frame():
    frame = EXAMPLES["paired"][0]
    shown = panels(example("paired"))
    assert [axes.get_title(loc="left") for axes in shown[:3]] == ["reward", "gold score", "ROUGE-1"]
    rows = frame[(frame.metric == "gold") & (frame.model == "ppo")]
    x, _, ends = intervals(shown[1])["PPO (TRL)"]
    np.testing.assert_allclose(x, rows.difference)
    np.testing.assert_allclose(ends, rows[["ci_low", "ci_high"]])
    assert [text.get_text() for text in shown[1].texts][-1] == f"{rows.difference.item():+.3f}".replace("-", "−")
    names = [text.get_text() for text in shown[0].get_yticklabels()]
    assert names == ["full SFT − base", "full SFT − QLoRA SFT", "PPO (TRL) − full SFT"]


def test_too_many_models_are_refused():
    models = pd.concat(EXAMPLES["reward_against_gold"][0].assign(model=model) for model in COMPARED)
    with pytest.raises(ValueError, match="figure reward_against_gold: 4 models"):
        draw("reward_against_gold", models)


def test_answers_with_a_high_reward_and_a_low_gold_score_are_shown_apart_and_counted():
    frame = EXAMPLES["reward_against_gold"][0]
    sft = frame[frame.model == "sft_full"]
    shown = panels(example("reward_against_gold"))
    for axes, (name, label) in zip(shown, (("sft_full", "full SFT"), ("ppo", "PPO (TRL)")), strict=True):
        rows = frame[frame.model == name]
        misleading = rows[(rows.reward > sft.reward.median()) & (rows.gold < sft.gold.median())]
        apart = next(line for line in axes.lines if line.get_label() == label)
        np.testing.assert_array_equal(apart.get_xdata(), misleading.gold)
        np.testing.assert_array_equal(apart.get_ydata(), misleading.reward)
        assert sum(len(line.get_xdata()) for line in axes.lines) == len(rows) == 300
        assert axes.get_title(loc="left") == f"{label}: {len(misleading) / 300:.0%} of answers shaded"
    assert 0 < len(misleading) < 300


def test_probes_stand_in_the_order_of_their_reward_with_the_share_that_beats_the_chosen_answer():
    frame = EXAMPLES["reward_probes"][0]
    (axes,) = panels(example("reward_probes"))
    probes = frame.iloc[1:].sort_values("reward", ascending=False)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(probes.probe)
    assert [text.get_text() for text in axes.texts] == [f"{share:.1%}" for share in probes.beats_chosen]
    means, _, ends = intervals(axes)["spoiled answers, mean with 95 % interval"]
    np.testing.assert_allclose(means, probes.reward)
    np.testing.assert_allclose(ends, probes[["ci_low", "ci_high"]])
    assert set(axes.lines[0].get_xdata()) == {frame.reward[0]}
