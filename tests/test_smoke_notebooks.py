"""Every notebook runs to its end at the smoke profile and writes what others read."""

from pathlib import Path

from rlhf import outputs, registry, studies
from rlhf.notebooks.execution import find_notebooks
from rlhf.notebooks.staleness import name_of
from rlhf.studies import beyond
from rlhf.studies.faults import FAULTS

import pandas as pd
import pytest
from conftest import run_all_notebooks, told

# What each notebook must leave behind: a kind of output and a name in the profile's folder of it.
WRITES = {
    "01_supervised_finetuning/1_data_prep_and_baseline": [
        "checkpoints/base",
        "evaluation/data_splits.csv",
        "evaluation/token_lengths.csv",
        "plots/token_lengths.png",
    ],
    "01_supervised_finetuning/2_finetune_qlora": [
        "checkpoints/sft_qlora_final",
        "evaluation/finetune_cost.json",
        "plots/lora_block.png",
        "plots/finetune_cost.png",
        "plots/sft_loss_qlora.png",
        "logs/sft_qlora",
    ],
    "01_supervised_finetuning/3_experiment_eos": ["evaluation/eos.csv", "evaluation/eos_lengths.csv", "plots/eos.png"],
    "01_supervised_finetuning/4_finetune_full": [
        "checkpoints/sft_full_final",
        "evaluation/learning_rates.csv",
        "evaluation/sft_loss.csv",
        "evaluation/predictions_base.json",
        "evaluation/predictions_sft_full.json",
        "evaluation/predictions_sft_qlora.json",
        "plots/learning_rates.png",
        "plots/sft_loss.png",
        "plots/sft_rouge.png",
        "plots/sft_stop_rate.png",
        "logs/sft_full",
    ],
    "02_reward_modeling/1_preference_data": [
        "evaluation/error_kinds.csv",
        "evaluation/length_difference.csv",
        "plots/error_kinds.png",
        "plots/length_difference.png",
    ],
    "02_reward_modeling/2_train_reward_model": [
        "checkpoints/reward_model_final",
        "evaluation/reward_model.csv",
        "evaluation/reward_curve.csv",
        "evaluation/reward_slices.csv",
        "evaluation/reward_margins.csv",
        "evaluation/reward_calibration.csv",
        "plots/reward_curve.png",
        "plots/reward_slices.png",
        "plots/reward_margins.png",
        "plots/reward_calibration.png",
        "logs/reward_model",
    ],
    "02_reward_modeling/3_collect_preferences": [
        "collect/notebook/items.jsonl",
        "collect/notebook/pairs.jsonl",
        "collect/notebook/ties.jsonl",
        "evaluation/collect_agreement.csv",
        "evaluation/collect_losses.csv",
    ],
    "03_ppo_alignment/1_ppo_alignment": [
        "checkpoints/ppo_trl_final",
        "evaluation/ppo_curve.csv",
        "evaluation/reward_unit.json",
        "plots/ppo_data_flow.png",
        "plots/ppo_curve.png",
        "logs/ppo_trl",
    ],
    "03_ppo_alignment/2_ppo_from_scratch": [
        "checkpoints/ppo_scratch_final",
        "checkpoints/ppo_aligned_final",
        "evaluation/ppo_curve.csv",
        "evaluation/ppo_answer.csv",
        "evaluation/ppo_choice.csv",
        "plots/ppo_clipped_objective.png",
        "plots/ppo_kl_estimators.png",
        "plots/ppo_answer.png",
        "plots/ppo_curves.png",
        "logs/ppo_scratch",
    ],
    "03_ppo_alignment/3_evaluation": [
        "evaluation/rouge.csv",
        "evaluation/behaviour.csv",
        "evaluation/reward.csv",
        "evaluation/gold.csv",
        "evaluation/gold_gap.csv",
        "evaluation/gold_gain.csv",
        "evaluation/length_vs_sft.csv",
        "evaluation/best_of_four.csv",
        "evaluation/kl.csv",
        "evaluation/paired.csv",
        "evaluation/predictions_ppo.json",
        "evaluation/predictions_ppo_scratch.json",
        "evaluation/run.json",
        "plots/paired.png",
        "plots/gold_parts.png",
        "plots/reward_against_gold.png",
        "evaluation/reward_probes.csv",
        "evaluation/reward_gold_agreement.csv",
        "evaluation/qualitative.json",
        "plots/rouge_published.png",
        "plots/reward_probes.png",
    ],
    "03_ppo_alignment/4_overoptimisation": [
        *(f"evaluation/{name}" for name in studies.FILES),
        "plots/relevance.png",
        "plots/data_size.png",
        "plots/overoptimisation.png",
        "plots/best_of_n.png",
        "plots/judge.png",
        "plots/frontier.png",
    ],
    "03_ppo_alignment/5_troubleshooting": [
        *(f"evaluation/{name}" for name in studies.TROUBLESHOOTING),
        *(f"plots/troubleshooting_{name}.png" for name in FAULTS),
        "plots/troubleshooting_alarms.png",
    ],
    "03_ppo_alignment/6_beyond_ppo": [
        *(f"evaluation/{name}" for name in (beyond.SEARCH, *beyond.FILES, beyond.RANKINGS)),
        *(f"checkpoints/{registry.MODELS[name].checkpoint}" for name in registry.BY_COMMAND),
        *(f"plots/beyond_{name}.png" for name in ("frontier", "answers", "logprobs")),
    ],
}
pytestmark = pytest.mark.slow


def place(folder: Path, name: str) -> Path:
    kind, *rest = name.split("/", 1)
    return folder.joinpath(kind, "smoke", *rest)


def test_every_notebook_says_here_what_it_writes():
    assert list(WRITES) == [name_of(path) for path in find_notebooks(outputs.ROOT)]


@pytest.mark.parametrize("notebook", WRITES)
def test_notebook_finishes_and_writes_its_files(smoke, notebook):
    copy = place(smoke, f"notebooks/{notebook}.ipynb")
    assert copy.exists(), f"no executed copy of {notebook}"
    assert [name for name in WRITES[notebook] if not place(smoke, name).exists()] == []


@pytest.mark.parametrize("name", ["rouge.csv", "reward.csv", "gold.csv"])
def test_tables_of_the_evaluation_have_the_promised_columns(smoke, name):
    table = pd.read_csv(place(smoke, f"evaluation/{name}"))
    assert list(table.columns) == ["model", "metric", "mean", "ci_low", "ci_high", "n"]
    others = {"reference"} if name == "gold.csv" else set()  # what the models are compared with
    assert set(table["model"]) == set(registry.POLICIES) | others
    assert table["mean"].between(table["ci_low"], table["ci_high"]).all()


def test_rewards_of_one_answer_are_its_kl_penalties_and_on_the_last_token_the_score_too(smoke):
    answer = pd.read_csv(place(smoke, "evaluation/ppo_answer.csv"))
    assert (answer.log_ratio * answer.kl_penalty <= 0).all() and answer.log_ratio.any()
    score = answer.reward - answer.kl_penalty
    assert not score[:-1].any() and score.iloc[-1]
    assert answer.baseline.nunique() == 1  # the mean of the other answers


def test_run_tells_no_token_no_person_and_no_place(smoke):
    assert len(list(smoke.rglob("*.ipynb"))) == len(WRITES)
    assert told(smoke, smoke, outputs.ROOT) == []


def test_a_second_run_with_the_same_seed_gives_the_same_tables_whatever_the_order_of_sets(smoke, tmp_path):
    again = run_all_notebooks(tmp_path / "outputs", hash_seed=2)
    of_studies = {*studies.FILES, *studies.TROUBLESHOOTING, beyond.SEARCH, *beyond.FILES, beyond.RANKINGS}
    # These are not made a second time.
    tables = sorted(path.name for path in place(smoke, "evaluation").glob("*.csv") if path.name not in of_studies)
    assert len(tables) > 15
    first, second = (
        {name: place(folder, f"evaluation/{name}").read_bytes() for name in tables} for folder in (smoke, again)
    )
    assert [name for name in tables if first[name] != second[name]] == []
