"""The study of planted faults: what its tables hold, what it resumes, and when a fault is found."""

from rlhf import outputs
from rlhf.ppo import monitor
from rlhf.studies import TROUBLESHOOTING, faults, troubleshooting

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import small_proxy, small_study

UPDATES = 6


@pytest.fixture
def start(profile_with_sft, monkeypatch):
    study = small_study(profile_with_sft, "validation")
    small_proxy(study, monkeypatch)
    outputs.write_json(study.profile, "reward_unit.json", {"logits": 2.0})
    return faults.Start(study)


def curve(fault="healthy", seed=0, **changed):
    """The curve of a run that stays as it is, but for what is changed."""
    values = dict.fromkeys((*troubleshooting.COMPARED, "kl_k3"), 1.0) | {"repetition": 0.1 + 0.001 * seed}
    values |= {"update": range(1, UPDATES + 1), "reward": 1.0 + 0.1 * seed, "gold": np.nan} | changed
    return pd.DataFrame({"fault": fault, "seed": seed} | values, index=range(UPDATES))


def healthy(count=5):
    return [curve(seed=seed) for seed in range(count)]


def alarm(table, fault, watch, measure, seed=0):
    row = table[(table.fault == fault) & (table.watch == watch) & (table.measure == measure) & (table.seed == seed)]
    return row.iloc[0]


def test_fault_is_found_at_the_update_at_which_a_measure_has_left_its_range():
    rising = [1.2, 1.5, 2.0, 2.0, 2.0, 2.0]  # the band of 0.4 ends at 1.8
    table = troubleshooting.alarms(pd.concat([*healthy(), curve("a", reward=rising, entropy=[1, 1, 1, 0.4, 0.4, 0.4])]))
    found = alarm(table, "a", "band", "reward")
    assert (found.first_update, found.side) == (3 + monitor.PATIENCE - 1, "above")
    assert (alarm(table, "a", "monitor", "entropy").first_update, alarm(table, "a", "monitor", "entropy").side) == (
        6,
        "below",
    )
    assert alarm(table, "a", "band", "entropy").first_update == 6  # all healthy runs are equal: the band has no width
    assert table[table.fault == "a"].first_update.notna().sum() == 3
    assert len(table) == 6 * (len(monitor.LIMITS) + len(troubleshooting.COMPARED))


def test_healthy_run_is_compared_with_the_others_and_its_warnings_are_false_alarms():
    odd = curve(seed=9, kl=5.0)
    table = troubleshooting.alarms(pd.concat([*healthy(4), odd]))
    assert alarm(table, "healthy", "band", "kl", seed=9).first_update == monitor.PATIENCE
    assert pd.isna(alarm(table, "healthy", "band", "kl", seed=0).first_update)  # 1 lies in the band from 1 to 5
    counted = troubleshooting.false_alarms(table).set_index(["watch", "measure"])
    assert counted.warned["band", "kl"] == 1 and (counted.runs == 5).all() and counted.warned["monitor", "entropy"] == 0


def test_curve_that_ended_early_is_compared_as_far_as_it_goes():
    short = curve("a", kl=9.0)[:4]
    table = troubleshooting.alarms(pd.concat([*healthy(), short]))
    assert alarm(table, "a", "band", "kl").first_update == 3
    assert pd.isna(alarm(troubleshooting.alarms(pd.concat([*healthy(), short[:2]])), "a", "band", "kl").first_update)


def end_table(**of_fault):
    rows = [("healthy", seed, "reward", 1.0 + seed / 10) for seed in range(2)]
    rows += [("healthy", seed, "pair_accuracy", 0.9) for seed in range(2)]
    rows += [("reward_at_chance", 0, metric, value) for metric, value in of_fault.items()]
    return pd.DataFrame(rows, columns=["fault", "seed", "metric", "mean"])


def test_reading_says_what_warned_and_what_the_measurement_of_the_fault_is():
    curves = pd.concat([*healthy(), curve("reward_at_chance", reward=9.0, kl=[9, 1, 9, 9, 9, 9])])
    table = troubleshooting.alarms(curves)
    text = troubleshooting.reading(curves, end_table(pair_accuracy=0.5, reward=0.2), table, "reward_at_chance")
    assert text.splitlines() == [
        "monitor: no warning",
        "outside the band: reward above by update 3; kl above by update 5",
        "share of validation pairs that the run's reward function gets right: 0.5; healthy runs 0.9 to 0.9",
        "final policy, reward: 0.2; healthy runs 1 to 1.1",
    ]
    read_back = table.astype({"first_update": float})  # as a CSV with empty fields gives it
    assert troubleshooting.symptoms(read_back, "reward_at_chance", "band")[0] == "reward above by update 3"


def test_table_of_causes_has_a_row_for_each_fault_with_what_was_measured():
    made = [curve(fault, kl_k3=0.0 if fault == "reference_is_policy" else 2.0) for fault in faults.FAULTS]
    curves = pd.concat([*healthy(), *made])
    rows = troubleshooting.causes(curves, end_table(pair_accuracy=0.5), troubleshooting.alarms(curves))
    rows = rows.set_axis(list(faults.FAULTS))
    assert list(rows.columns) == ["symptom", "measurement", "likely cause"] and (rows.map(len) > 0).all(axis=None)
    assert rows.measurement.reference_is_policy.endswith("mean of the updates: 0 (healthy 1 to 1)")
    assert rows.measurement.reward_at_chance.endswith("right: 0.5 (healthy 0.9 to 0.9)")
    assert rows.symptom.reference_is_policy == "no measure leaves the band"
    assert rows["likely cause"].no_kl_penalty.startswith("The KL coefficient is zero")


def test_every_fault_has_its_measurement():
    assert list(troubleshooting.CHECKS) == list(faults.FAULTS)


def test_a_run_leaves_its_curve_with_gold_and_what_its_policy_is_worth(start):
    curve, end = troubleshooting.measured(start, faults.no_kl_penalty(start))
    assert len(curve) == start.settings.updates and curve.gold.notna().all()
    assert set(troubleshooting.COMPARED) <= set(curve.columns)
    rows = end.set_index("metric")
    assert {"reward", "gold", "kl", "stop_rate", "pair_accuracy"} <= set(rows.index)
    assert (rows.ci_low <= rows["mean"]).all() and (rows["mean"] <= rows.ci_high).all()
    assert rows.n.gold == len(start.study.prompts) and rows.n.pair_accuracy == len(start.study.pairs["validation"])
    sft = troubleshooting.sft_rows(start).set_index("metric")["mean"]
    assert sft.kl == pytest.approx(0, abs=1e-5) != rows["mean"].kl
    assert sft.gold == pytest.approx(start.study.gold(start.study.sft_answers).mean())


def test_end_of_an_answer_that_is_not_in_the_loss_is_found_before_training(start, monkeypatch):
    eos = start.tokenizer.eos_token_id
    rollout = start.trainer().generate([0, 1], "a test")
    responses = rollout.responses.clone()
    responses[0, 2] = eos
    mask, ended = (responses != eos).long(), torch.tensor([True, False])
    for trained, of in ((0.0, mask), (1.0, torch.ones_like(mask))):
        trainer = start.trainer()
        monkeypatch.setattr(
            trainer, "generate", lambda *_, of=of, **__: rollout._replace(responses=responses, mask=of, ended=ended)
        )
        assert troubleshooting.checks(start, trainer)["eos_trained"].tolist() == [trained]
    never = rollout._replace(ended=torch.tensor([False, False]))
    monkeypatch.setattr(trainer, "generate", lambda *_, **__: never)
    assert "eos_trained" not in troubleshooting.checks(start, trainer)


def test_run_that_is_not_finite_any_more_ends_there(start, monkeypatch):
    trainer = start.trainer()
    step = trainer.step

    def failing():
        if trainer.update == 1:
            raise FloatingPointError("update 2: kl not finite")
        return step()

    monkeypatch.setattr(trainer, "step", failing)
    curve, end = troubleshooting.measured(start, trainer)
    assert len(curve) == 1 and "reward" in set(end.metric)
    with pytest.raises(FloatingPointError):
        first = start.trainer()
        monkeypatch.setattr(first, "step", failing)
        trainer.update = 1
        troubleshooting.measured(start, first)


@pytest.fixture
def quick(profile, monkeypatch):
    """The study with runs that are made up; returns those that were made."""
    made = []

    def measured(start, trainer):
        made.append(trainer)
        rows = curve().drop(columns=["fault", "seed"])
        return rows, pd.DataFrame([("reward", 1.0, 0.9, 1.1, 8)], columns=["metric", "mean", "ci_low", "ci_high", "n"])

    class Start:
        def __init__(self, study):
            pass

        def trainer(self, seed):
            return f"healthy {seed}"

    monkeypatch.setattr(troubleshooting, "Study", lambda profile, split: split)
    monkeypatch.setattr(troubleshooting, "Start", Start)
    monkeypatch.setattr(troubleshooting, "FAULTS", {"a": lambda start: "a", "b": lambda start: "b"})
    monkeypatch.setattr(troubleshooting, "measured", measured)
    monkeypatch.setattr(troubleshooting, "sft_rows", lambda start: measured(start, "sft")[1])
    return made


def test_study_makes_every_run_once_and_goes_on_where_it_was_stopped(profile, quick):
    troubleshooting.run(profile)
    names = ["sft", *(f"healthy {seed}" for seed in range(1, 6)), "a", "b"]
    assert quick == names
    first = [(outputs.evaluation_dir(profile) / name).read_bytes() for name in TROUBLESHOOTING]
    end = outputs.read_csv(profile, troubleshooting.END)
    outputs.write_csv(profile, troubleshooting.END, end[end.fault != "b"])  # stopped after b's curve was written
    troubleshooting.run(profile)
    assert quick == [*names, "b"]
    assert [(outputs.evaluation_dir(profile) / name).read_bytes() for name in TROUBLESHOOTING] == first
    troubleshooting.run(profile)
    assert len(quick) == len(names) + 1
    troubleshooting.forget(profile)
    assert not any((outputs.evaluation_dir(profile) / name).exists() for name in TROUBLESHOOTING)


def test_study_without_a_finished_run_says_what_is_missing(profile_with_sft):
    outputs.update_run(profile_with_sft, seed=0)
    with pytest.raises(FileNotFoundError, match="2_ppo_from_scratch"):
        troubleshooting.run(profile_with_sft)
