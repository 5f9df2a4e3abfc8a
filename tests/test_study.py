"""The study: which pairs each reward model sees, in what unit scores are, what each part promises, what is resumed."""

import subprocess

from rlhf import models, outputs
from rlhf.metrics import best_of_n_kl
from rlhf.rewards import score

import numpy as np
import pandas as pd
import pytest
import study
import torch
from seeds import folders


@pytest.fixture
def small_study(profile_with_sft):
    return study.Study(profile_with_sft)


@pytest.fixture
def proxy(small_study, monkeypatch):
    """A proxy whose reward model is the SFT policy with an untrained head."""
    model = models.new_reward_model(small_study.profile, seed=3)
    with torch.no_grad():
        model.score.weight.normal_(std=1.0)
    monkeypatch.setattr(study.models, "load_reward_model", lambda profile, which: model.eval())
    return study.Proxy(small_study, "final")


def test_parts_of_the_pairs_are_nested_and_the_judges_half_is_disjoint(small_study):
    def rows(part):
        return set(zip(part["prompt"], part["chosen"], strict=True))

    eighth, quarter, half = (rows(small_study.part_of_pairs(share)) for share in study.SHARES.values())
    assert eighth < quarter < half
    other = rows(small_study.part_of_pairs(1 / 2, skip=1 / 2))
    everything = rows(small_study.pairs["train"])
    assert not half & other and half | other == everything
    assert [len(part) for part in (eighth, quarter, half)] == [round(s * 140) for s in study.SHARES.values()]


def test_proxy_is_in_deviations_of_sft_answers_above_their_mean(small_study, proxy):
    answers = small_study.sft_answers
    texts, ended = [a.text for a in answers], [a.ended for a in answers]
    logits = score(proxy.model, small_study.tokenizer, small_study.prompts, texts, ended=ended)
    np.testing.assert_allclose(proxy(answers), (logits - logits.mean()) / logits.std(), atol=1e-5)
    rewards = proxy.reward(small_study.prompts, ["It is hot."] * len(answers))
    plain = score(proxy.model, small_study.tokenizer, small_study.prompts, ["It is hot."] * len(answers))
    np.testing.assert_allclose(rewards, plain / logits.std(), rtol=1e-4)


def test_curve_of_a_policy_starts_at_sft_without_any_distance(small_study, proxy):
    curve = study.policy_curve(small_study, proxy, proxy, price=1.0, setting="a setting")
    rows = pd.DataFrame(curve.rows, columns=study.CURVE_COLUMNS)
    assert rows.x.tolist() == list(range(small_study.settings.updates + 1))
    start = rows.iloc[0]
    assert start.kl == pytest.approx(0, abs=1e-5) and start.proxy == pytest.approx(0, abs=1e-5)
    assert start.gold == pytest.approx(small_study.gold(small_study.sft_answers).mean())
    np.testing.assert_allclose(rows.proxy, rows.judge)  # the same model twice
    assert rows.kl.iloc[-1] != 0


def test_curve_finds_the_turn_of_gold_and_of_the_judge():
    curve = study.Curve("ppo", "kl_coef 0, all pairs", gold_unit=1.0)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 4, 40))
    for i, (up, turns) in enumerate(((0, 0), (1, 1), (2, 0.5), (3, -1))):
        curve.add(10 * i, float(i), proxy=up + noise[0, i], judge=up + noise[1, i], gold=turns + noise[2, i])
    found = pd.DataFrame(curve.turns(), columns=study.TURN_COLUMNS).set_index("by")
    assert (found.peak_x["gold"], found.end_x["gold"], found.found["gold"]) == (10, 30, True)
    assert not found.found["judge"]  # it rises with the proxy to the end
    assert (found.n == 20).all()


def test_without_gold_the_turn_is_looked_for_by_the_judge_alone():
    curve = study.Curve("ppo", "a setting", gold_unit=1.0)
    for x in (0, 1):
        curve.add(x, 0.0, proxy=np.arange(8.0), judge=np.arange(8.0), gold=np.full(8, np.nan))
    assert [row[2] for row in curve.turns()] == ["judge"]


def test_best_of_n_in_the_frontier_takes_the_first_n_and_the_formulas_kl(small_study, proxy, monkeypatch):
    monkeypatch.setattr(study.outputs, "read_csv", lambda *_: pd.DataFrame(columns=study.metrics.SUMMARY_COLUMNS))
    asked = len(small_study.prompts[: study.ASKED])
    candidates = small_study.sft_answers * study.CANDIDATES
    scores = np.tile(np.arange(study.CANDIDATES, dtype=float), (asked, 1))
    table = study.frontier(small_study, proxy, candidates[: scores.size], scores)
    means = table.pivot(index="model", columns="metric", values="mean")
    assert means.reward.to_dict() == {"best of 4": 3, "best of 16": 15, "best of 64": 63}
    assert means.kl_from_sft["best of 16"] == pytest.approx(best_of_n_kl(16))


def test_part_that_is_done_is_not_done_again(profile, monkeypatch, capsys):
    done = []
    table = pd.DataFrame({"x": [1]})
    parts = {f"{name}.csv": lambda _, name=name: done.append(name) or {f"{name}.csv": table.copy()} for name in "ab"}
    monkeypatch.setattr(study, "PARTS", parts)
    monkeypatch.setattr(study, "Study", lambda profile: None)
    outputs.write_csv(profile, "a.csv", table.assign(seed=profile.seed))
    outputs.write_csv(profile, "b.csv", table.assign(seed=profile.seed + 1))  # gathered from another seed
    study.run_seed(profile)
    assert done == ["b"]
    assert pd.read_csv(outputs.evaluation_dir(profile) / "b.csv").seed.tolist() == [profile.seed]


def test_gathered_files_have_the_rows_of_each_seed_once(profile):
    for seed, folder in folders(profile).items():
        for name in study.FILES:
            path = folder / "evaluation" / profile.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"seed": [seed, 99], "value": [seed, 0]}).to_csv(path, index=False)
    study.gather(profile, list(folders(profile)))
    for name in study.FILES:
        assert outputs.read_csv(profile, name).seed.tolist() == list(folders(profile))
    (folders(profile)[2] / "evaluation" / profile.name / "judge.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"judge\.csv is missing; run `make study`"):
        study.gather(profile, list(folders(profile)))


def test_each_seed_runs_in_its_folder_and_a_failure_ends_it_all(profile, monkeypatch):
    calls = []

    def run(command, env):
        calls.append((command[-1], env["RLHF_SEED"], env["RLHF_OUTPUTS"]))
        return subprocess.CompletedProcess(command, returncode=3 if len(calls) == 2 else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(study, "load_profile", lambda: profile)
    monkeypatch.setattr("sys.argv", ["study.py"])
    assert study.main() == 3
    assert calls == [("--here", str(seed), str(folder)) for seed, folder in list(folders(profile).items())[:2]]


def test_seed_that_was_never_run_is_refused(profile, monkeypatch, capsys):
    monkeypatch.setattr(study, "load_profile", lambda: profile)
    monkeypatch.setattr("sys.argv", ["study.py", "7"])
    assert study.main() == 2
    assert "seed 7 is none of 0, 1, 2" in capsys.readouterr().err
