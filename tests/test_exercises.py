"""The exercises of the notebooks have solutions, and the solutions give the answers that are known."""

import json
import re
import runpy
from dataclasses import replace

from rlhf import models, outputs
from rlhf.generation import Answer
from rlhf.outputs import REFERENCE, ROOT
from rlhf.reward import scoring

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import stage_module, with_lab
from safetensors.torch import load_file

STAGES = {number: stage_module(f"exercises/stage_{number}.py") for number in (1, 2, 3)}
NOTEBOOKS = sorted(ROOT.glob("0?_*/*.ipynb"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def solution(monkeypatch):
    """A solution by its name, with other names of its module put in the place of those that it uses."""

    def get(name: str, **others):
        function = next(stage[name] for stage in STAGES.values() if name in stage)
        for other, value in others.items():
            monkeypatch.setitem(function.__globals__, other, value)
        return function

    return get


def exercises_of(path) -> list[tuple[str, str]]:
    """The file and the name of each solution that a notebook links to."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [(file, name) for name, file in re.findall(r"\[`(\w+)`\]\(\.\./exercises/(\w+\.py)\)", text)]


def test_every_solution_is_named_once_by_a_notebook_of_its_stage():
    for number, stage in STAGES.items():
        named = [link for path in NOTEBOOKS if path.parent.name.startswith(f"0{number}") for link in exercises_of(path)]
        solutions = [(f"stage_{number}.py", solution.__name__) for solution in stage["SOLUTIONS"]]
        assert len(set(named)) == len(named)
        assert set(named) == set(solutions)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_a_few_exercises(path):
    assert 2 <= len(exercises_of(path)) <= 4


@pytest.mark.parametrize("number", STAGES)
def test_one_command_runs_all_solutions_of_a_stage(finished, number, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    runpy.run_path(str(ROOT / f"exercises/stage_{number}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    names = [solution.__name__ for solution in STAGES[number]["SOLUTIONS"]]
    assert [line for line in printed.splitlines() if line in names] == names
    assert "left out" not in printed


@pytest.mark.parametrize(
    "name", ["rater_ceiling", "accuracy_without_noise", "raters_agreement", "law_of_over_optimisation"]
)
def test_what_needs_the_gold_score_is_left_out_on_real_data(finished, solution, name, capsys):
    assert solution(name)(replace(finished, lab=None)) is None
    assert "left out" in capsys.readouterr().out


def test_labels_by_hand_are_those_of_the_package(finished, solution):
    mine, theirs = solution("labels_by_hand")(finished)
    assert mine == theirs
    assert len(mine) == 30


def test_a_space_ends_the_prompt_in_a_token_of_its_own(finished, solution):
    changed = solution("space_in_the_template")(finished)
    assert changed[""] == 0
    assert changed[" "] > 0.9


def test_loss_by_hand_is_the_models_own(finished, solution):
    mine, theirs = solution("loss_by_hand")(finished)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert len(mine) == 8


def test_adapter_has_the_predicted_number_of_weights(finished, solution):
    found = solution("adapter_weights")(finished)
    assert all(predicted == counted for predicted, counted in found.values())
    assert found[32][0] == 2 * found[16][0]


def test_small_matrix_has_the_singular_values_of_the_update(finished, run, solution):
    tensors = load_file(run / "checkpoints/smoke/sft_qlora_final/adapter_model.safetensors")
    whole = []
    for name in (name for name in tensors if "lora_A" in name):
        squares = torch.linalg.svdvals(tensors[name.replace("lora_A", "lora_B")] @ tensors[name])[:16] ** 2
        whole.append((squares.cumsum(0) / squares.sum()).numpy())
    assert solution("rank_of_the_update")(finished) == pytest.approx(np.mean(whole, axis=0), abs=1e-5)


def test_collator_keeps_every_eos_or_none(finished, solution):
    assert solution("collator_that_masks_pad")(finished) == [30, 0]


def test_eos_rate_follows_the_probability_at_each_temperature(finished, solution, monkeypatch):
    policy, eos = models.load_base(finished), models.load_tokenizer(finished).eos_token_id
    others = policy.config.vocab_size - 1
    with torch.no_grad():  # EOS has a logit of log(others) at every token, all others 0
        policy.transformer.ln_f.weight.zero_()
        policy.transformer.ln_f.bias.zero_()[0] = 1
        policy.transformer.wte.weight.zero_()[eos, 0] = np.log(others)
    monkeypatch.setattr(models, "load_policy", lambda profile, key: policy.eval())
    rates, length = solution("temperature_and_stopping")(finished), finished.decoding.max_new_tokens
    for temperature, rate in rates.items():
        expected = 1 - (1 - 1 / (1 + others ** (1 - 1 / temperature))) ** length
        assert rate == pytest.approx(expected, abs=0.25)
    assert rates[0.5] == 1


def test_stemming_only_raises_rouge(finished, solution):
    mine, stemmed = solution("rouge_by_hand")(finished)
    assert (mine <= stemmed + 1e-12).all()
    assert (mine > 0).all()


def test_bootstrap_by_hand_agrees_with_the_package_and_the_normal_law(finished, solution):
    found = solution("bootstrap_by_hand")(finished)
    for name in ("rlhf.metrics", "normal law"):
        assert found["by hand"] == pytest.approx(found[name], abs=2e-3)


def test_rater_agrees_with_gold_as_often_as_predicted(finished, solution):
    predicted, error, measured, twice = solution("rater_ceiling")(with_lab(finished, pairs=(140, 30, 600)))
    assert abs(predicted - measured) < 3 * error < 0.03
    assert 0.5 < twice < predicted


def test_direction_for_each_type_wins_every_pair_whose_type_is_the_direction(finished, solution):
    def longer_side(profile, rows):
        return [
            "1st" if len(c.split()) >= len(r.split()) else "2nd"
            for c, r in zip(rows["chosen"], rows["rejected"], strict=True)
        ]

    sides = {"chosen": ["a b", "c", "d e", "f"], "rejected": ["a", "b c", "d", "f g"]}
    rows = {split: pd.DataFrame(sides) for split in ("train", "test")}
    by_length, by_type = solution("length_by_error_type", error_kinds=longer_side, preferences=lambda profile: rows)(
        finished
    )
    assert (by_length, by_type) == (0.5, 1)


def test_judge_of_words_wins_where_one_word_decides(finished, solution):
    rows = {"chosen": [f"good answer {i}" for i in range(9)], "rejected": [f"bad answer {i}" for i in range(9)]}
    judge = solution("words_alone", preferences=lambda profile: {"train": rows, "test": rows})
    assert judge(finished) == 1


def overconfident(profile, split):
    """Scores of pairs whose margins are three times what the labels say."""
    draw = np.random.default_rng(len(split))
    margins = 6 * draw.standard_normal(4000)
    flipped = np.where(draw.random(4000) < 1 / (1 + np.exp(-margins / 3)), margins, -margins)
    return flipped, np.zeros(4000)


def test_temperature_of_overconfident_margins_is_found(finished, solution):
    assert STAGES[2]["fitted_temperature"](np.subtract(*overconfident(finished, "validation"))) == pytest.approx(
        3, abs=0.2
    )
    before, after = solution("calibrate", scored=overconfident)(finished)
    assert before[0] == after[0]
    assert before[1] > 0.1 > 0.03 > after[1]


def test_independent_mistakes_give_the_agreement_with_gold(finished, solution, rng):
    gold_right, rater_right = rng.random((2, 100_000)) < [[0.9], [0.85]]
    computed, measured = solution(
        "accuracy_without_noise",
        scored=lambda profile, split: ((gold_right == rater_right).astype(float), np.full(100_000, 0.5)),
        gold_agreement=lambda profile, rows: rater_right.astype(float),
    )(finished)
    assert computed == pytest.approx(0.9, abs=0.01)
    assert measured == pytest.approx(gold_right.mean())


def test_noisy_raters_agree_as_often_as_predicted(finished, solution):
    predicted, measured, low, high = solution("raters_agreement")(finished)
    assert low < predicted < high < 1 and low < measured < high


def test_place_does_not_count_for_a_rater_who_scores_each_answer_alone(finished, solution):
    for means in solution("rank_by_place")(finished).values():
        assert means.sum() == pytest.approx(3) and means == pytest.approx([1.5, 1.5], abs=0.12)


@pytest.mark.parametrize("kl_coef", [1.0, 2.0])
def test_normal_rewards_have_the_known_optimum(kl_coef, rng):
    reward, kl = STAGES[3]["reweighted"](rng.standard_normal((1, 400_000)), kl_coef)
    assert reward == pytest.approx(1 / kl_coef, abs=0.02)
    assert kl == pytest.approx(1 / (2 * kl_coef**2), abs=0.02)


def test_lower_coefficient_has_more_reward_and_more_kl(finished, solution):
    found = [*solution("other_coefficient")(finished).values()]
    assert found == sorted(found)
    assert found[-1][1] < np.log(32)


def test_twice_the_unit_needs_twice_the_coefficient(finished, solution):
    first, twice, half_penalty = solution("unit_of_the_reward")(finished)
    assert torch.allclose(first, twice, atol=1e-6)
    assert not torch.allclose(first, half_penalty, atol=0.1)


def test_gae_is_its_definition(finished, solution):
    mine, theirs = solution("gae_by_definition")(finished)
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_exact_means_of_the_estimates_of_the_kl(finished, solution):
    found = solution("estimates_of_the_kl")(finished)
    for estimates in found.values():
        assert estimates["k1"][0] == pytest.approx(estimates["KL"], abs=1e-5)
        assert estimates["k3"][0] == pytest.approx(estimates["KL"], abs=1e-5)
    assert found["near"]["k3"][1] < found["near"]["k1"][1] < found["far"]["k1"][1] < found["far"]["k3"][1]
    assert found["far"]["k2"][0] < 0.7 * found["far"]["KL"]


def test_expected_gradient_with_each_baseline(finished, solution):
    true, found = solution("baselines_by_enumeration")(finished)
    for name, share in {"none": 1, "the other": 1, "mean of both": 0.5}.items():
        assert torch.allclose(found[name][0], share * true, atol=1e-6)
    assert found["the other"][1] < found["none"][1]


def test_length_explains_a_gain_that_is_all_length(finished, solution, rng):
    words = {"sft_full": rng.integers(20, 60, (16, 32)), "ppo": rng.integers(40, 80, (16, 32))}
    level = rng.standard_normal((16, 1))
    rewards = {name: 0.1 * number + level for name, number in words.items()}
    slope, by_length, gain = solution("length_alone", answered=lambda _, name: (rewards[name], words[name]))(finished)
    assert slope == pytest.approx(0.1)
    assert by_length == pytest.approx(gain)


def test_reward_for_length_always_likes_a_borrowed_ending(finished, solution, monkeypatch):
    monkeypatch.setattr(scoring, "score", lambda model, tokenizer, prompts, texts, ended: [len(text) for text in texts])
    assert solution("borrowed_ending")(finished) == 1


def test_formula_of_best_of_n_is_the_kl_and_a_bound(finished, solution):
    for simulated, formula, of_eight in solution("kl_of_best_of_n")(finished).values():
        assert simulated == pytest.approx(formula, abs=0.02)
        assert of_eight < formula
        assert of_eight < np.log(8)


def test_peak_of_noise_is_too_high_by_the_expected_maximum(finished, solution):
    same, others = solution("peak_of_noise")(finished)
    assert same == pytest.approx(-0.1267, abs=2e-3)  # the expected maximum of six standard normal numbers is 1.2672
    assert others == pytest.approx(0, abs=3e-3)


def test_peak_of_the_fitted_law_lies_before_the_first_point_of_every_committed_curve(finished, solution):
    curves = pd.read_csv(REFERENCE / "evaluation/lab/overoptimisation.csv").query("method == 'ppo' and x > 0")
    first = curves.groupby(["setting", "seed"], sort=False).kl.min()
    peaks = [peak for peak, *_ in solution("law_of_over_optimisation")(finished)]
    assert all(peak < kl for peak, kl in zip(peaks, first, strict=True))


def test_law_is_found_again_and_its_peak_with_it(finished, solution, monkeypatch):
    curves = pd.read_csv(REFERENCE / "evaluation/lab/overoptimisation.csv").query("method == 'ppo'")
    distance = np.sqrt(curves.kl.where(curves.x > 0, 1))
    curves["gold"] = 5 + np.where(curves.x > 0, distance * (1.5 - 0.5 * np.log(distance)), 0)
    monkeypatch.setattr(outputs, "read_csv", lambda profile, name: curves)
    found = solution("law_of_over_optimisation")(finished)
    assert len(found) == curves.groupby(["setting", "seed"]).ngroups
    for peak, _, error in found:
        assert peak == pytest.approx(np.exp(4))
        assert error == pytest.approx(0, abs=1e-9)


def test_mask_by_pad_loses_the_end_of_every_answer_that_ended(finished, solution):
    eos = models.load_tokenizer(finished).eos_token_id
    answers = [Answer("", (7, eos), True), Answer("", (7, 8, 9, 7), False), Answer("", (7, 8, eos), True)]
    assert solution("mask_by_pad", decode=lambda *_: answers)(finished) == (2, 2)


def test_score_in_a_batch_is_the_score_alone_at_the_last_real_token_only(finished, solution):
    found = solution("score_in_a_batch")(finished)
    assert abs(found["last real token"]) < 1e-5 < 1e-3 < abs(found["last column"])


def test_two_answers_have_the_advantages_of_the_closed_form(solution):
    for difference, found in solution("two_answers")(None).items():
        assert found["rloo"] == pytest.approx([difference, -difference])
        assert found["dr_grpo"] == pytest.approx([difference / 2, -difference / 2])
        assert found["grpo"] == pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-3)


def test_implicit_reward_of_the_policy_that_ppo_starts_from_is_a_tie_everywhere(finished, solution, monkeypatch):
    start = models.load_policy(finished, models.start_key(finished))
    monkeypatch.setattr(models, "load_policy", lambda *_: start)
    implicit, explicit = solution("implicit_reward")(finished)
    assert implicit == 0.5 and 0 <= explicit <= 1


def test_dpo_finds_the_best_policy_where_all_answers_are_in_pairs_and_does_not_move_others(solution):
    found = solution("optimum_of_dpo")(None)
    assert found[8][0].max() < 1e-6
    assert found[6][0].max() > 0.1 and found[6][1][6:].max() < 1e-12
