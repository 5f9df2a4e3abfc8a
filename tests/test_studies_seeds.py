"""Runs with other seeds: each in its own folder, gathered into one table that leaves no run out."""

import signal
import subprocess
import sys
import time

from rlhf import outputs, runtime
from rlhf.studies import seeds

import pandas as pd
import pytest
from conftest import stage_module

SUMMARY = ["model", "metric", "mean", "ci_low", "ci_high", "n"]


def write_run(profile, folder, shift: float, seed: int) -> None:
    """The CSVs of a finished run whose numbers are those of seed 0 plus `shift`."""
    results = folder / "evaluation" / profile.name
    results.mkdir(parents=True, exist_ok=True)
    for name in {name for name, *_ in seeds.SOURCES}:
        rows = [
            (model, of, value + shift, value + shift - 0.1, value + shift + 0.1, 300)
            for model, value in (("sft_full", 1.0), ("ppo", 2.0))
            for of in (*(metric for file, metric, _ in seeds.SOURCES if file == name), "another_metric")
        ]
        pd.DataFrame(rows, columns=SUMMARY).to_csv(results / name, index=False)
    gap = pd.DataFrame([("ppo", 0.4 + shift, 0.3, 0.5, 300)], columns=["model", "share", "ci_low", "ci_high", "n"])
    gap.to_csv(results / "gold_gap.csv", index=False)
    values = {"accuracy": 0.8 + shift, "accuracy_ci_low": 0.75, "accuracy_ci_high": 0.85, "test_pairs": 600}
    pd.DataFrame(values.items(), columns=["metric", "value"]).to_csv(results / "reward_model.csv", index=False)
    # A gathered table holds other seeds too; here what is left of an earlier one.
    rows = [("ppo", "sft_full", s, "gold", 0.3 + shift, 0.1 + shift, 0.5 + shift, 300) for s in (seed, seed + 100)]
    columns = ["model", "against", "seed", "metric", "difference", "ci_low", "ci_high", "n"]
    pd.DataFrame(rows, columns=columns).to_csv(results / "paired.csv", index=False)


def test_every_seed_has_its_own_folder_and_the_profiles_own_is_the_run_itself(profile):
    assert seeds.folders(profile) == {
        profile.seed: outputs.root(),
        profile.seed + 1: outputs.root() / "seeds" / str(profile.seed + 1),
        profile.seed + 2: outputs.root() / "seeds" / str(profile.seed + 2),
    }


def test_gathered_tables_have_the_rows_of_every_seed_under_the_common_names(profile):
    for i, (seed, folder) in enumerate(seeds.folders(profile).items()):
        write_run(profile, folder, 0.01 * i, seed)
    seeds.gather(profile)
    means, paired = (outputs.read_csv(profile, name) for name in ("seeds.csv", "paired.csv"))
    assert list(means.columns) == ["model", "seed", "metric", "mean", "ci_low", "ci_high", "n"]
    of_lab = {"gold", "gold_win_rate", "gap_closed"}
    assert set(means.metric) == {"reward", "rouge1", "kl", "stop_rate", "accuracy"} | of_lab
    assert means.groupby("seed").size().tolist() == [2 * len(seeds.SOURCES) + 2] * 3
    assert means[means.metric == "gap_closed"]["mean"].tolist() == pytest.approx([0.4, 0.41, 0.42])
    gold = means[(means.model == "ppo") & (means.metric == "gold")]
    assert gold["mean"].tolist() == pytest.approx([2.0, 2.01, 2.02])
    accuracy = means[means.model == "reward_model"]
    assert accuracy["mean"].tolist() == pytest.approx([0.8, 0.81, 0.82]) and accuracy.n.tolist() == [600] * 3
    assert paired[["seed", "difference"]].to_numpy().tolist() == [[0, 0.3], [1, 0.31], [2, 0.32]]


def test_missing_run_is_named(profile):
    for seed, folder in list(seeds.folders(profile).items())[:2]:
        write_run(profile, folder, 0.0, seed)
    with pytest.raises(FileNotFoundError, match=r"seeds/2/.*reward\.csv is missing; run `make seeds`"):
        seeds.gather(profile)


def test_each_run_gets_its_seed_and_folder_and_a_failure_ends_it_all(profile, monkeypatch):
    calls = []

    def run_child(command, environment):
        calls.append(tuple(environment[f"RLHF_{name}"] for name in ("PROFILE", "SEED", "OUTPUTS")))
        return 3 if len(calls) == 2 else 0

    monkeypatch.setattr(runtime, "run_child", run_child)
    monkeypatch.setenv("RLHF_PROFILE", profile.name)
    monkeypatch.setattr("sys.argv", ["seeds.py"])
    assert stage_module("scripts/seeds.py")["main"]() == 3
    assert calls == [
        (profile.name, str(seed), str(folder)) for seed, folder in list(seeds.folders(profile).items())[:2]
    ]


@pytest.mark.parametrize("script", ["seeds", "study", "results_table", "run_notebooks"])
def test_unknown_profile_is_one_line_and_no_traceback(monkeypatch, capsys, script):
    monkeypatch.setenv("RLHF_PROFILE", "nonsense")
    monkeypatch.setattr("sys.argv", [script])
    assert stage_module(f"scripts/{script}.py")["main"]() == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: RLHF_PROFILE='nonsense' is no profile") and "\n" not in error


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_parent_ends_its_child_too(tmp_path, sent):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = (
        "import os, sys\nfrom rlhf import runtime\n"
        f"child = [sys.executable, '-c', {child!r}]\n"
        "sys.exit(runtime.command_line(lambda: runtime.run_child(child, dict(os.environ))))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True, cwd=outputs.ROOT)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "Interrupted. The same command, without FORCE, goes on" in error
    with pytest.raises(ProcessLookupError):
        runtime.os.kill(int((tmp_path / "pid").read_text()), 0)
