"""The comparison of methods: every method runs at the smoke profile, is searched once, resumed, and counted."""

import dataclasses
import runpy
import sys

from rlhf import generation, models, outputs, studies
from rlhf.evaluation.answers import decode, prompt_rows
from rlhf.reward import scoring
from rlhf.studies import beyond, methods
from rlhf.studies.common import Proxy
from rlhf.studies.methods import METHODS, Trial
from rlhf.studies.seeds import folders

import numpy as np
import pandas as pd
import pytest
from small_study import small_proxy, small_study
from test_architectures import save_pairs
from test_dpo import changed_policy

SAMPLING = ["ppo_scratch", "rloo", "grpo", "rejection", "online_dpo"]


@pytest.fixture
def ready(profile_with_sft, monkeypatch):
    """A smoke run: few prompts, an untrained reward model, two values of each dial, one rate for all but GRPO."""
    profile = dataclasses.replace(profile_with_sft, eval_prompts=6)
    small_proxy(small_study(profile), monkeypatch)
    monkeypatch.setattr(beyond, "ASKED", 2)
    monkeypatch.setattr(beyond, "SHOWN", 2)
    for name, method in METHODS.items():
        rates = method.rates[: 1 + (name == "grpo")]
        monkeypatch.setitem(METHODS, name, method._replace(values=(method.values[0], method.start), rates=rates))
    return profile


def read(profile, name):
    return outputs.read_csv(profile, f"beyond_{name}.csv")


def test_every_method_runs_is_judged_and_is_resumed(ready, monkeypatch):
    beyond.run(ready)
    frontier, given, along = read(ready, "frontier"), read(ready, "given").set_index("method"), read(ready, "answers")
    assert list(dict.fromkeys(frontier.method)) == ["best_of_n", *METHODS]
    assert frontier.groupby("method").chosen.sum().to_dict() == dict.fromkeys(METHODS, 1) | {"best_of_n": 0}
    assert frontier.drop(columns=["dial", "method"]).notna().all().all()
    assert (frontier.kl[frontier.chosen] != 0).all()  # each has moved
    search = read(ready, "search")
    assert search.groupby("method").chosen.sum().to_dict() == dict.fromkeys(METHODS, 1)
    assert search.groupby("method").size().to_dict() == dict.fromkeys(METHODS, 1) | {"grpo": 3}
    grpo = search[search.method == "grpo"]
    assert grpo.value.tolist() == [0.1, 0.1, 0.0] and grpo.learning_rate.nunique() == 2
    assert grpo.learning_rate.iloc[2] == beyond.chosen(grpo[:2]).learning_rate
    assert set(read(ready, "metrics").method) == {"sft_full", *METHODS}
    assert {"gold", "reward", "kl", "distinct_2", "object"} <= set(read(ready, "metrics").metric)
    assert set(read(ready, "logprobs").side) == {"chosen", "rejected"}

    assert given.answers[["ppo_scratch", "rloo", "grpo"]].tolist() == [24] * 3
    assert given.answers[["dpo", "ipo"]].tolist() == [0, 0]
    assert given.labels.unique() == [140]
    assert sorted(set(along.method)) == sorted(SAMPLING)
    assert along[along.method == "rloo"].answers.tolist() == [0, 8, 16, 24]
    ends = along.groupby("method").tail(1).set_index("method").gold
    assert ends.to_dict() == frontier[frontier.chosen].set_index("method").gold[SAMPLING].to_dict()
    prompts = read(ready, "prompts")
    means = prompts.groupby("method").gold.mean()[list(METHODS)]
    metric = read(ready, "metrics").query("metric == 'gold'").set_index("method")["mean"][list(METHODS)]
    assert means.tolist() == pytest.approx(metric.tolist()) and prompts.groupby("method").size().unique() == [6]
    samples = read(ready, "samples")
    assert samples.groupby("method").prompt.apply(list).to_dict() == {name: [0, 1] for name in ("sft_full", *METHODS)}
    policy, tokenizer = models.load_policy(ready, "rloo"), models.load_tokenizer(ready)
    answers = decode(ready, policy, tokenizer, list(prompt_rows(ready, tokenizer, "test")["prompt"]), "sample")[:2]
    shown = samples[samples.method == "rloo"].fillna("")
    assert shown[["text", "ended"]].to_numpy().tolist() == [[" ".join(a.text.split()), a.ended] for a in answers]
    costs = outputs.read_json(ready, "run.json")["beyond"]
    assert set(costs) == set(METHODS) and all(cost["seconds"] > 0 for cost in costs.values())
    for name in (*METHODS, "ppo_scratch"):
        assert outputs.checkpoint_path(ready, f"{name}_final").exists() == (name != "ppo_scratch")

    outputs.write_csv(ready, "beyond_frontier.csv", frontier[frontier.method != "grpo"])
    trained = []
    train = METHODS["grpo"].train
    for name, method in METHODS.items():
        recorded = lambda trial, *at, name=name: trained.append((name, *at)) or train(trial, *at)  # noqa: E731
        monkeypatch.setitem(METHODS, name, method._replace(train=recorded))
    beyond.run(ready)
    rate = grpo.learning_rate.iloc[2]
    assert trained == [("grpo", rate, 0.0), ("grpo", rate, 0.1)]  # nothing is searched again
    again = read(ready, "frontier").sort_values(["method", "value"], ignore_index=True)
    pd.testing.assert_frame_equal(again, frontier.sort_values(["method", "value"], ignore_index=True))


def test_rankings_are_those_of_the_reward_model_and_of_the_implicit_rewards(ready, monkeypatch):
    comparison = beyond.Comparison(ready)
    other = changed_policy(ready)
    policies = {"dpo": other, "ipo": comparison.study.sft}  # what has not moved prefers nothing
    monkeypatch.setattr(models, "load_policy", lambda profile, name: policies[name])
    table = beyond.rankings(comparison).set_index(["score", "pairs"])
    assert table.n.xs("labelled", level="pairs").tolist() == [len(comparison.study.pairs["test"])] * 3
    assert table["mean"]["reward_model", "labelled"] == comparison.proxy.correct().mean()
    after, before = comparison.logprobs(other), comparison.before
    chosen, rejected = (after[side] - before[side] for side in ("chosen", "rejected"))
    assert table["mean"]["dpo", "labelled"] == pytest.approx((chosen > rejected).mean())
    assert table["mean"]["ipo", "labelled"] == table["mean"]["ipo", "SFT's own"] == 0.5


def test_of_another_seed_than_that_of_the_search_the_chosen_value_alone_is_trained(ready, monkeypatch):
    for name in set(METHODS) - {"rloo"}:
        monkeypatch.delitem(METHODS, name)
    values = METHODS["rloo"].values
    found = pd.DataFrame({"value": values, "reward": [1.0, 2.0]})
    found = found.assign(seed=ready.seed + 1, method="rloo", dial="kl_coef", learning_rate=1e-3, kl=0.5)
    outputs.write_csv(ready, beyond.SEARCH, found)
    beyond.run(ready)
    frontier = read(ready, "frontier").query("method == 'rloo'")
    assert frontier[["value", "chosen"]].to_numpy().tolist() == [[values[1], True]]


def test_real_data_have_no_gold_and_the_comparison_says_so(ready, tmp_path, monkeypatch):
    save_pairs(tmp_path / "pairs.jsonl")
    profile = dataclasses.replace(ready, lab=None, dataset=str(tmp_path / "pairs.jsonl"))
    for name in set(METHODS) - {"rloo"}:
        monkeypatch.delitem(METHODS, name)
    beyond.run(profile)
    frontier = read(profile, "frontier")
    assert set(frontier.method) == {"best_of_n", "rloo"} and frontier.reward.notna().all()
    assert frontier[["gold", "gold_ci_low", "gold_ci_high"]].isna().all().all()
    assert read(profile, "prompts").gold.isna().all() and "gold" not in set(read(profile, "metrics").metric)


def test_rule_takes_the_highest_reward_within_the_budget_or_the_nearest_policy():
    most = beyond.KL_BUDGET
    table = pd.DataFrame({"reward": [0.5, 0.7, 0.9], "kl": [most / 2, most, most + 0.1]}, index=[4, 5, 6])
    assert beyond.chosen(table).name == 5
    assert beyond.chosen(table.assign(kl=[9.0, 7.0, 8.0])).name == 5


def test_every_dial_has_four_values_and_the_search_is_of_the_same_size():
    for name, method in METHODS.items():
        assert len(set(method.values)) == 4 and method.start in method.values, name
        assert len(set(method.rates)) == (1 if name == "ppo_scratch" else 2), name


@pytest.fixture
def trial(ready):
    study = small_study(ready, "validation")
    return Trial(study, Proxy(study, "final"))


def test_a_round_asks_new_prompts_and_takes_the_penalty_off_answers_that_do_not_end(trial, monkeypatch):
    seen = []
    for number in range(2):
        prompts, groups, rewards = methods.sampled_round(trial, number, 3)
        assert rewards.shape == (2, 3) and [len(group) for group in groups] == [3, 3]
        for prompt, group, row in zip(prompts, groups, rewards, strict=True):
            ended = [answer.ended for answer in group]
            plain = trial.proxy.reward([prompt] * 3, [answer.text for answer in group], ended)
            assert row == pytest.approx(plain - ~np.array(ended) * trial.study.settings.missing_eos_penalty, abs=1e-5)
        seen += prompts
    assert len(set(seen)) == 4 and trial.answers == 12


def test_rejection_learns_the_best_and_online_dpo_the_best_over_the_worst(trial, monkeypatch):
    """What the trainers are given, read off them: the tokens that were sampled, ranked by the reward."""
    monkeypatch.setattr(methods, "ROUNDS", 1)
    prompts, groups, rewards = methods.sampled_round(trial, 0, 4)
    rewards[-1] = 1.0  # nothing tells these apart
    monkeypatch.setattr(methods, "sampled_round", lambda *_: (prompts, groups, rewards))
    given = []
    monkeypatch.setattr(Trial, "fit", lambda self, trainer, tokens: given.append((trainer.train_dataset, tokens)))
    methods.by_rejection(trial, 1e-3, 4)
    methods.by_own_pairs(trial, 1e-3, 0.1)
    (best, tokens), (pairs, pair_tokens) = given
    starts = generation.encode_prompts(trial.study.tokenizer, prompts)
    for i, (start, group, row) in enumerate(zip(starts, groups, rewards, strict=True)):
        chosen, rejected = (list(group[at].token_ids) for at in (row.argmax(), row.argmin()))
        assert best[i]["input_ids"] == start + chosen
        assert best[i]["labels"] == [-100] * len(start) + chosen
        if i < len(prompts) - 1:
            assert pairs[i]["prompt_ids"] == start
            assert (pairs[i]["chosen_ids"], pairs[i]["rejected_ids"]) == (chosen, rejected)
    assert len(pairs) == len(prompts) - 1
    assert tokens == methods.PASSES * sum(map(len, best["input_ids"]))
    assert pair_tokens == methods.PASSES * methods.tokens_of(pairs)


def test_labelled_pairs_are_what_the_reward_model_read(trial):
    study = trial.study
    rows, pairs = methods.labelled_rows(study), study.pairs["train"]
    wholes = {tuple(r["prompt_ids"] + r[f"{side}_ids"]) for r in rows for side in ("chosen", "rejected")}
    ended = [True] * len(pairs)
    read = [
        tuple(ids)
        for side in ("chosen", "rejected")
        for ids in scoring.encode(study.tokenizer, list(pairs["prompt"]), list(pairs[side]), ended)
    ]
    assert len(rows) == 140 and wholes == set(read)
    assert all(whole[-1] == study.tokenizer.eos_token_id for whole in wholes)
    assert methods.tokens_of(rows) == sum(map(len, read))


def test_snapshots_bring_back_the_weights_that_they_kept(trial):
    first = trial.weights()
    trial.answers = 8
    trial.keep()
    trial.keep()  # of the same share
    assert list(trial.snapshots) == [8]
    trial.put({name: weight + 1 for name, weight in first.items()})
    trial.answers = 24
    trial.keep()  # the end is no snapshot
    assert list(trial.snapshots) == [8]
    trial.put(trial.snapshots[8])
    assert all((weight == first[name]).all() for name, weight in trial.weights().items())


def write(folder, profile, seed, **columns):
    rows = pd.DataFrame({"seed": seed, "method": list(METHODS)} | columns)
    for file in (beyond.SEARCH, *beyond.FILES):
        outputs.write_csv(profile, file, rows, base=folder)


def test_search_is_handed_on_and_the_seeds_are_gathered_in_their_order(profile):
    for seed in (2, 0, 1):
        write(folders(profile)[seed], profile, seed, value=seed)
    beyond.share_search(profile, 2)
    handed = pd.read_csv(outputs.evaluation_dir(profile, folders(profile)[2]) / beyond.SEARCH)
    assert set(handed.seed) == {0}
    studies.gather(profile, [2, 0, 1], beyond.FILES, "make beyond")
    table = outputs.read_csv(profile, beyond.FILES[-1])
    assert table.seed.tolist() == [seed for seed in range(3) for _ in METHODS] == table.value.tolist()
    assert set(outputs.read_csv(profile, beyond.SEARCH).seed) == {0}


def main(monkeypatch, *arguments):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    monkeypatch.setattr(sys, "argv", ["beyond.py", *arguments])
    return runpy.run_path(str(outputs.ROOT / "scripts" / "beyond.py"))["main"]()


def test_each_seed_runs_in_a_process_of_its_own_with_the_search_of_the_first(profile, monkeypatch):
    calls = []

    def run_script(profile, seed, *command):
        there = (outputs.evaluation_dir(profile, folders(profile)[seed]) / beyond.SEARCH).exists()
        calls.append((seed, there, *command))
        write(folders(profile)[seed], profile, seed)
        return 0

    monkeypatch.setattr("rlhf.studies.seeds.run_script", run_script)
    assert main(monkeypatch) == 0
    assert calls == [(seed, seed > 0, "beyond.py", "--here") for seed in range(3)]
    assert len(outputs.read_csv(profile, beyond.FILES[0])) == 3 * len(METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["7"], "seed 7 is none of 0, 1, 2"), (["--here"], "run.json is missing")]
)
def test_what_can_not_start_is_said_in_one_line(profile, monkeypatch, capsys, arguments, message):
    assert main(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_methods_are_compared_with_ppo_prompt_by_prompt_and_seed_by_seed(known):
    rows = [
        (seed, method, prompt, score, score if known else np.nan)
        for seed, shift in ((0, 1.0), (1, -2.0))
        for method, of in (("rloo", shift), ("ppo_scratch", 0.0))
        for prompt, score in ((1, 5.0 + of), (0, 1.0 + of))
    ]
    table = beyond.against_ppo(pd.DataFrame(rows, columns=["seed", "method", "prompt", "reward", "gold"]))
    assert table.difference.tolist() == table.ci_low.tolist() == table.ci_high.tolist() == [1.0, -2.0]
    assert table.method.tolist() == ["rloo", "rloo"] and table.seed.tolist() == [0, 1] and set(table.n) == {2}
    assert set(table.metric) == {"gold" if known else "reward"}
