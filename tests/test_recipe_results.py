"""What recipes/sentiment.ipynb and README say of the committed run is what its CSVs say."""

from rlhf import outputs
from rlhf.ppo import monitor
from rlhf.profiles import load_profile

import pytest

SEEDS = [f"ppo_seed_{seed}" for seed in range(3)]


def table(name):
    return outputs.read_csv(load_profile("sentiment"), f"{name}.csv", outputs.REFERENCE)


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_and_judge_rise_and_the_sentences_stay_near_and_varied(seed):
    paired, measures, variety = table("paired").set_index(["model", "metric"]), table("measures"), table("variety")
    means, variety = measures.pivot(index="model", columns="metric", values="mean"), variety.set_index("model")
    assert (measures.n >= 200).all()
    assert paired.ci_low[seed, "reward"] > 0 and paired.ci_low[seed, "judge_positive"] > 0
    assert means.kl[seed] < 8
    assert variety.distinct_2[seed] > variety.distinct_2.sft_full * 2 / 3
    assert variety.perplexity[seed] < 2 * variety.perplexity.sft_full


def test_monitor_fires_on_the_collapsed_run_alone():
    curves = dict(list(table("ppo_curve").groupby("model")))
    assert set(curves) == {*SEEDS, "ppo_collapsed"}
    assert monitor.warnings(curves["ppo_collapsed"].reset_index(drop=True))
    assert [monitor.warnings(curves[seed].reset_index(drop=True)) for seed in SEEDS] == [[], [], []]


def test_the_two_forms_of_the_reward_model_are_within_noise_of_each_other():
    rows = table("reward_model").set_index("model")
    assert rows.ci_low.tutorial < rows["mean"].adapter < rows.ci_high.tutorial
    assert rows["mean"].words < rows["mean"].adapter
