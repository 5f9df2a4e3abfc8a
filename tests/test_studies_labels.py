"""Labels of own answers and of the corpus: the pairs of each arm, what the ensemble asks for, what is measured."""

import dataclasses
import runpy
import shutil
import sys

from rlhf import models, outputs, studies
from rlhf.collect import raters
from rlhf.reward import scoring
from rlhf.studies import common, labels
from rlhf.studies.seeds import folders

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import small_proxy, small_study


@pytest.fixture
def ready(profile_with_sft):
    """A finished run of the smoke profile with few prompts, whose PPO has changed nothing."""
    profile = dataclasses.replace(profile_with_sft, eval_prompts=6)
    small_study(profile)
    sft, ppo = (outputs.checkpoint_path(profile, name) for name in ("sft_full_final", "ppo_scratch_final"))
    shutil.copytree(sft, ppo)
    return profile


@pytest.fixture
def trained(monkeypatch):
    """The reward models that a study asks for, with their pairs; none is trained."""
    found = {}
    monkeypatch.setattr(
        common.Study, "train_reward_model", lambda self, name, pairs, **changes: found.update({name: (pairs, changes)})
    )
    return found


@pytest.fixture
def unchanged(ready, trained, monkeypatch):
    """The run with an untrained reward model for all, and PPO that leaves SFT as it is."""
    small_proxy(small_study(ready), monkeypatch)
    monkeypatch.setattr(common.Study, "train_policy", lambda study, proxy: study.sft)
    return ready


def test_disagreement_is_the_variance_of_the_probabilities_whichever_answer_stands_first():
    margins = np.array([[0.0, 3.0, 50.0, 50.0], [0.0, 3.0, -50.0, 50.0], [0.0, 3.0, -50.0, -50.0]])
    expected = [0, 0, 2 / 9, 2 / 9]  # one of three members is sure of the other answer
    np.testing.assert_allclose(labels.disagreement(margins), expected, atol=1e-12)
    turned = margins * [1, -1, 1, -1]
    np.testing.assert_allclose(labels.disagreement(turned), expected, atol=1e-12)
    assert labels.disagreement(np.log([[3.0], [1.0]]))[0] == pytest.approx(0.125**2)  # probabilities 3/4 and 1/2


def test_arms_are_compared_with_one_of_them_at_as_many_labels_and_on_the_same_prompts():
    rows = [
        (seed, arm, share, 1.0 + gain, 5.0 + gain)
        for seed, shift in ((0, 0.5), (1, -2.0))
        for share, arm, gain in ((1.0, "corpus", 9.0), (0.25, "corpus", 0.0), (0.25, "active", shift))
    ]
    table = labels.against(pd.DataFrame(rows, columns=[*labels.KEY, "0", "1"]), "corpus")
    assert table.difference.tolist() == table.ci_low.tolist() == table.ci_high.tolist() == [0.5, -2.0]
    assert table[["arm", "against", "seed", "share", "n"]].to_numpy().tolist() == [
        ["active", "corpus", 0, 0.25, 2],
        ["active", "corpus", 1, 0.25, 2],
    ]


def asked_items(study, prompts):
    """What the study has rated: SFT's two answers to each prompt."""
    source = labels.revision(outputs.checkpoint_path(study.profile, "sft_full_final"))
    decoding = (study.profile.decoding.temperature,), 2, source
    return labels.sample_items(study.profile, study.sft, study.tokenizer, prompts, *decoding)


@pytest.mark.parametrize("clear", [True, False])
def test_own_pairs_are_two_answers_of_sft_as_the_rater_orders_them(study, monkeypatch, clear):
    """A rater of clear gold scores has no noise; where all are equal, the first answer is named."""
    monkeypatch.setattr(raters, "gold_score", lambda prompt, text: 1000.0 * len(text) if clear else 1.0)
    prompts = list(study.pairs["train"]["prompt"])[:12]
    pairs = labels.own_pairs(study, prompts)
    assert pairs.column_names == study.pairs["train"].column_names and list(pairs["prompt"]) == prompts
    for row, item in zip(pairs, asked_items(study, prompts), strict=True):
        texts, ended = {answer.text: answer.ended for answer in item.answers}, (row["chosen"], row["rejected"])
        assert set(ended) == set(texts)
        if clear:
            assert len(row["chosen"]) >= len(row["rejected"])
        else:
            assert row["chosen"] == item.answers[0].text
        for side in ("chosen", "rejected"):
            marks = [texts[row[side]]]
            assert row[f"{side}_ids"] == scoring.encode(study.tokenizer, [item.prompt], [row[side]], marks)[0]


def rows_of(pairs):
    return list(zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True))


def test_arms_have_the_same_prompts_and_smaller_sizes_are_in_larger_ones(unchanged):
    budget = labels.Budget(unchanged)
    counts = {size: budget.count(size) for size in labels.SHARE_OF}
    assert counts == {"sixteenth": 9, "eighth": 18, "quarter": 35, "final": 140}
    arms = labels.ARMS[:3]
    corpus, own, both = ({size: rows_of(budget.pairs(arm, size)) for size in labels.SIZES} for arm in arms)
    for size, of in corpus.items():
        assert of == rows_of(budget.study.part_of_pairs(labels.SIZES[size]))  # those of the study of data size
        assert [prompt for prompt, *_ in of] == [prompt for prompt, *_ in own[size]]
        assert both[size] == of[::2] + own[size][1::2]
    assert len(budget.own) == 70 and not set(own["quarter"]) & set(corpus["quarter"])
    assert len(rows_of(budget.pairs("corpus", "final"))) == 140


def test_active_arm_has_the_first_own_pairs_and_then_those_that_the_ensemble_disagrees_on_most(
    unchanged, trained, monkeypatch
):
    budget = labels.Budget(unchanged)
    margins = []

    def known(of):
        margins.append(of)
        return np.arange(of.shape[1]) % 30

    monkeypatch.setattr(labels, "disagreement", known)
    found, own = rows_of(budget.pairs("active", "eighth")), rows_of(budget.own)
    order = [*range(9), 9 + 29, 9 + 59, 9 + 28, 9 + 58, 9 + 27, 9 + 57, 9 + 26, 9 + 56, 9 + 25]  # equal ones in order
    assert found == [own[place] for place in order]
    assert rows_of(budget.pairs("active", "quarter"))[:18] == found and len(margins) == 1
    assert margins[0].shape == (labels.MEMBERS, 61)
    model = models.load_reward_model(unchanged, "active_member_0")
    rows, pad = budget.own[9], budget.study.tokenizer.pad_token_id
    scores = scoring.score_tokens(model, [rows["chosen_ids"], rows["rejected_ids"]], pad)
    assert margins[0][:, 0].tolist() == pytest.approx([scores[0] - scores[1]] * labels.MEMBERS, abs=1e-5)

    assert list(trained) == [f"active_member_{member}" for member in range(labels.MEMBERS)]
    draws = [rows_of(pairs) for pairs, _ in trained.values()]
    assert all(len(draw) == 9 and set(draw) <= set(own[:9]) for draw in draws)
    assert draws[0] != draws[1] != draws[2] != draws[0]
    assert [changes["other_seed"] for _, changes in trained.values()] == [0, 1, 2]


def test_every_part_is_measured_once_and_a_policy_that_did_not_change_gains_nothing(unchanged, trained):
    labels.run(unchanged)
    table, gains = (outputs.read_csv(unchanged, name) for name in labels.FILES[::-1])
    parts = [tuple(part) for part in table[labels.KEY].drop_duplicates().itertuples(index=False)]
    assert parts == [(0, arm, labels.SHARE_OF[size]) for arm, size in labels.PARTS] and len(parts) == 12
    assert [tuple(part) for part in gains[labels.KEY].itertuples(index=False)] == parts
    assert not gains.drop(columns=labels.KEY).to_numpy().any() and len(gains.columns) == 3 + 6
    for metric in ("gold", "reward", "kl"):
        rows = table[table.metric == metric]
        assert rows[["mean", "ci_low", "ci_high"]].to_numpy() == pytest.approx(np.zeros((12, 3)), abs=1e-5)
        assert set(rows.n) == {6}
    counts = table.drop_duplicates(labels.KEY).set_index(["arm", "share"]).labels.to_dict()
    assert counts == {(arm, share): round(share * 140) for _, arm, share in parts}
    right = table[(table.metric == "labels_right") & (table.share == 1)]["mean"].item()
    assert 0.85 < right < 1  # the noise of the corpus
    own_names = {f"{arm}_{size}" for arm in ("on_policy", "both", "active") for size in labels.SIZES}
    members = {f"active_member_{member}" for member in range(labels.MEMBERS)}
    assert set(trained) == {*labels.SIZES, *members, *own_names - {"active_sixteenth"}}

    trained.clear()
    labels.run(unchanged)
    assert not trained
    other = table[table.arm != "both"].assign(seed=7)
    kept = table[(table.arm != "active") | (table.share != 0.125)]
    outputs.write_csv(unchanged, "labels.csv", pd.concat([other, kept]))
    labels.run(unchanged)
    assert set(trained) == {*members, "active_eighth"}
    again = outputs.read_csv(unchanged, "labels.csv")
    order = [*labels.KEY, "metric"]
    expected = pd.concat([other, table]).sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(again.sort_values(order, ignore_index=True), expected)
    pd.testing.assert_frame_equal(outputs.read_csv(unchanged, "labels_gains.csv"), gains)


def test_active_arm_trains_its_ensemble_its_reward_model_and_its_policy(ready, monkeypatch):
    monkeypatch.setattr(labels, "PARTS", [("active", "eighth")])
    labels.run(ready)
    table = outputs.read_csv(ready, "labels.csv").set_index("metric")
    assert table["mean"].kl != 0 and {"gold", "reward", "accuracy_corpus", "labels_right"} < set(table.index)
    names = ("active_member_0", "active_member_1", "active_eighth")
    first, second, own = (models.load_reward_model(ready, name).state_dict()["score.weight"] for name in names)
    assert not torch.equal(first, second) and not torch.equal(first, own)


def test_corpus_has_the_reward_models_of_the_study_of_data_size(study):
    assert labels.SIZES.items() & common.SHARES.items() == {("eighth", 1 / 8), ("quarter", 1 / 4)}
    pairs = study.part_of_pairs(1 / 8)
    study.train_reward_model("eighth", pairs)
    study.train_reward_model("quarter", pairs, evaluations=0)
    first, second = (models.load_reward_model(study.profile, name).state_dict() for name in ("eighth", "quarter"))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_what_can_not_be_compared_is_refused_before_a_seed_has_taken_its_time(profile, monkeypatch, capsys):
    with pytest.raises(ValueError, match="profile 'smoke' has no gold score to judge by; set RLHF_PROFILE=lab"):
        labels.check(dataclasses.replace(profile, lab=None), [0])
    finish(profile, 0)
    monkeypatch.setattr("rlhf.studies.seeds.run_script", None)
    assert main(monkeypatch) == 2
    error = capsys.readouterr().err
    assert "seeds/1/" in error and "gold.csv is missing; run `make seeds`" in error


def finish(profile, seed):
    outputs.write_csv(profile, "gold.csv", pd.DataFrame({"model": ["ppo"]}), base=folders(profile)[seed])


def main(monkeypatch, *arguments):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    monkeypatch.setattr(sys, "argv", ["labels.py", *arguments])
    return runpy.run_path(str(outputs.ROOT / "scripts" / "labels.py"))["main"]()


def test_each_seed_runs_in_a_process_of_its_own_and_all_are_gathered(profile, monkeypatch):
    calls = []
    for seed in folders(profile):
        finish(profile, seed)

    def run_script(profile, seed, *command):
        calls.append((seed, *command))
        for name in labels.FILES:
            rows = pd.DataFrame({"seed": [seed], "arm": ["corpus"], "share": [1.0]})
            outputs.write_csv(profile, name, rows, base=folders(profile)[seed])
        return 0

    monkeypatch.setattr("rlhf.studies.seeds.run_script", run_script)
    assert main(monkeypatch) == 0
    assert calls == [(seed, "labels.py", "--here") for seed in range(3)]
    assert all(outputs.read_csv(profile, name).seed.tolist() == [0, 1, 2] for name in labels.FILES)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["7"], "seed 7 is none of 0, 1, 2"), (["--here"], "run.json is missing")]
)
def test_what_can_not_start_is_said_in_one_line(profile, monkeypatch, capsys, arguments, message):
    assert main(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_seed_that_is_not_done_is_named_with_the_command_that_does_it(profile):
    with pytest.raises(FileNotFoundError, match=r"labels_gains\.csv is missing; run `make labels`"):
        studies.gather(profile, [0], labels.FILES, "make labels")


def test_docstring_names_the_files_and_arms():
    assert all(name in labels.__doc__ for name in (*labels.FILES, *labels.ARMS))
