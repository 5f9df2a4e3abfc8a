"""Running the studies: what is resumed, what FORCE=1 deletes, how seeds are gathered, and the command line."""

import dataclasses
import runpy
import sys

from rlhf import outputs, studies
from rlhf.studies import common, ensembles, overoptimisation, reward_models
from rlhf.studies.seeds import folders

import pandas as pd
import pytest
from conftest import run_python


def table(seeds, value="value"):
    return pd.DataFrame({"seed": seeds, "value": [f"{value} of {seed}" for seed in seeds]})


def write(folder, profile, seeds, value="value"):
    for name in studies.FILES:
        path = folder / "evaluation" / profile.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table(seeds, value).to_csv(path, index=False)


def read(profile, name=studies.FILES[0]):
    return outputs.read_csv(profile, name)


@pytest.fixture
def parts(monkeypatch):
    """Studies that write at once what the real ones write, in place of those; returns the names of those run."""
    done = []

    def part(name, *files):
        made = {file: pd.DataFrame({"value": [f"new {file}"]}) for file in files}
        return lambda study: done.append(name) or {file: table.copy() for file, table in made.items()}

    for name in ("data_size", "relevance", "judge"):
        monkeypatch.setattr(reward_models, name, part(name, f"{name}.csv"))
    monkeypatch.setattr(overoptimisation, "run", part("overoptimisation", *studies.FILES[3:]))
    monkeypatch.setattr(reward_models, "gains", part("gains", studies.ENSEMBLES[0]))
    monkeypatch.setattr(ensembles, "run", part("ensembles", *studies.ENSEMBLES[1:]))
    monkeypatch.setattr(common, "Study", lambda profile: object())
    return done


def test_every_study_names_its_files_and_no_file_has_two_of_them():
    assert len(set(studies.FILES)) == len(studies.FILES) == 6
    parts = (reward_models.data_size, reward_models.relevance, reward_models.judge, overoptimisation)
    for part, files in zip(parts, [*([name] for name in studies.FILES[:3]), studies.FILES[3:]], strict=True):
        assert all(name in part.__doc__ for name in files) and "Inputs:" in part.__doc__
    assert all((outputs.REFERENCE / "evaluation" / "lab" / name).exists() for name in studies.FILES)
    gains, *of_ensembles = studies.ENSEMBLES
    assert gains in reward_models.gains.__doc__ and all(name in ensembles.run.__doc__ for name in of_ensembles)


def test_names_of_the_files_are_known_without_the_models():
    code = "import sys; from rlhf.studies import FILES; print({'rlhf.models', 'trl', 'peft'} & {*sys.modules})"
    assert run_python(code).strip() == "set()"


def test_study_that_is_done_for_this_seed_is_not_done_again(profile, parts):
    outputs.write_csv(profile, "data_size.csv", table([profile.seed]))
    outputs.write_csv(profile, "judge.csv", table([profile.seed + 1]))  # gathered from another seed
    studies.run(profile)
    assert parts == ["relevance", "judge", "overoptimisation"]
    assert read(profile, "relevance.csv").to_dict("list") == {"seed": [profile.seed], "value": ["new relevance.csv"]}
    studies.run(profile)
    assert len(parts) == 3 and all(profile.seed in read(profile, name).seed.tolist() for name in studies.FILES)


def test_study_that_broke_off_between_its_files_is_done_again_and_leaves_each_row_once(profile, parts):
    outputs.write_csv(profile, "turning_points.csv", table([profile.seed, 7], "old"))
    studies.run(profile)
    assert parts == ["data_size", "relevance", "judge", "overoptimisation"]
    assert read(profile, "turning_points.csv").value.tolist() == ["new turning_points.csv", "old of 7"]


def test_ensembles_are_studies_of_their_own_with_their_own_files_and_reward_models(profile, parts):
    outputs.write_csv(profile, studies.FILES[0], table([profile.seed]))
    for name in common.REWARD_MODELS + common.MEMBERS[1:]:
        outputs.checkpoint_path(profile, f"reward_model_{name}").mkdir(parents=True)
    studies.run(profile, studies.ENSEMBLES)
    assert parts == ["gains", "ensembles"]
    assert all(read(profile, name).seed.tolist() == [profile.seed] for name in studies.ENSEMBLES)
    studies.run(profile, studies.ENSEMBLES)
    assert len(parts) == 2
    studies.forget(profile, studies.ENSEMBLES)
    left = {path.name.removeprefix("reward_model_") for path in outputs.checkpoints_dir(profile).iterdir()}
    assert left == set(common.REWARD_MODELS) and len(read(profile)) == 1
    assert not any((outputs.evaluation_dir(profile) / name).exists() for name in studies.ENSEMBLES)


def test_ensembles_of_real_data_are_refused_before_anything_is_trained(profile, parts):
    real = dataclasses.replace(profile, lab=None, dataset="some/pairs")
    with pytest.raises(ValueError, match=r"dataset 'some/pairs' has no gold score .*; run them on the lab profile\."):
        studies.run(real, studies.ENSEMBLES)
    assert parts == []


def test_run_keeps_the_rows_of_other_seeds(profile, parts):
    outputs.write_csv(profile, "judge.csv", table([1, 2]))
    studies.run(profile)
    assert sorted(read(profile, "judge.csv").seed) == [0, 1, 2]


def test_what_is_forgotten_is_of_this_seed_and_of_the_studies_alone(profile):
    write(outputs.root(), profile, [0, 1])
    outputs.write_csv(profile, "judge.csv", table([0]))
    outputs.write_csv(profile, "reward.csv", table([0]))
    for name in ("reward_model_final", "reward_model_half", "reward_model_blind", "sft_full_final"):
        outputs.checkpoint_path(profile, name).mkdir(parents=True)
    studies.forget(profile)
    assert read(profile).seed.tolist() == [1]
    assert not (outputs.evaluation_dir(profile) / "judge.csv").exists()  # no row is left
    assert len(outputs.read_csv(profile, "reward.csv")) == 1
    left = {path.name for path in outputs.checkpoints_dir(profile).iterdir()}
    assert left == {"reward_model_final", "sft_full_final"}
    studies.forget(profile)  # where nothing is left, too


def test_forgetting_reaches_every_reward_model_that_a_study_trains(profile):
    for name in ("half", "judge", "quarter", "eighth", "blind"):
        outputs.checkpoint_path(profile, f"reward_model_{name}").mkdir(parents=True)
    studies.forget(profile)
    assert not list(outputs.checkpoints_dir(profile).iterdir())


def test_gathered_files_have_the_rows_of_each_seed_once(profile):
    for seed, folder in folders(profile).items():
        write(folder, profile, [99, seed] if seed else [seed])  # 99: what the folder itself once gathered
    studies.gather(profile, list(folders(profile)))
    for name in studies.FILES:
        assert read(profile, name).seed.tolist() == list(folders(profile))


def test_gathering_one_seed_keeps_the_rows_of_the_others_in_order(profile):
    write(outputs.root(), profile, [2, 0, 1], "old")
    write(folders(profile)[1], profile, [1], "new")
    studies.gather(profile, [1])
    assert read(profile).value.tolist() == ["old of 0", "new of 1", "old of 2"]
    studies.gather(profile, [0])
    assert read(profile).value.tolist() == ["old of 0", "new of 1", "old of 2"]


@pytest.mark.parametrize("left", [[], [99]])
def test_seed_whose_study_is_not_done_is_named(profile, left):
    for folder in folders(profile).values():
        write(folder, profile, list(folders(profile)))
    path = folders(profile)[2] / "evaluation" / profile.name / "judge.csv"
    if left:
        table(left).to_csv(path, index=False)
    else:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"judge\.csv (is missing|has no rows of seed 2); run `make study`"):
        studies.gather(profile, list(folders(profile)))


def main(monkeypatch, *arguments, run_script=None, name="smoke"):
    monkeypatch.setattr("rlhf.studies.seeds.run_script", run_script)
    monkeypatch.setenv("RLHF_PROFILE", name)
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    return runpy.run_path(str(outputs.ROOT / "scripts" / "study.py"))["main"]()


def test_each_seed_runs_in_a_process_of_its_own_and_a_failure_ends_it_all(profile, monkeypatch):
    calls = []

    def run_script(profile, seed, *command):
        calls.append((seed, *command))
        return 3 if seed == 1 else 0

    assert main(monkeypatch, run_script=run_script) == 3
    assert calls == [(0, "study.py", "--here"), (1, "study.py", "--here")]


def test_ensembles_are_run_and_gathered_by_the_same_script(profile, monkeypatch):
    calls, gathered = [], []
    monkeypatch.setattr(studies, "gather", lambda *asked: gathered.append(asked[1:]))
    assert main(monkeypatch, "--ensembles", "2", run_script=lambda profile, *call: calls.append(call)) == 0
    assert calls == [(2, "study.py", "--here", "--ensembles")]
    assert gathered == [([2], studies.ENSEMBLES, "make ensembles")]


def test_chosen_seeds_run_and_are_gathered(profile, monkeypatch):
    write(outputs.root(), profile, [0, 2], "old")

    def run_script(profile, seed, *command):
        write(folders(profile)[seed], profile, [seed], "new")
        return 0

    assert main(monkeypatch, "1", run_script=run_script) == 0
    assert read(profile).value.tolist() == ["old of 0", "new of 1", "old of 2"]


def test_seeds_own_process_holds_the_lock_and_forgets_first_with_force(profile, monkeypatch):
    steps = []

    def step(name):
        def done(profile, files):
            assert files is studies.FILES
            with pytest.raises(BlockingIOError), outputs.run_lock():
                pass
            steps.append((name, profile.seed))

        return done

    monkeypatch.setattr(studies, "forget", step("forget"))
    monkeypatch.setattr(studies, "run", step("run"))
    monkeypatch.setenv("RLHF_SEED", "2")
    assert main(monkeypatch, "--here") == 0
    monkeypatch.setenv("FORCE", "1")
    assert main(monkeypatch, "--here") == 0
    assert steps == [("run", 2), ("forget", 2), ("run", 2)]


def test_outputs_that_are_in_use_are_named_and_left_alone(profile, monkeypatch, capsys):
    monkeypatch.setattr(studies, "run", None)
    with outputs.run_lock():
        assert main(monkeypatch, "--here") == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (["7"], "smoke", "error: seed 7 is none of 0, 1, 2."),
        ([], "lap", "error: RLHF_PROFILE='lap' is no profile; choose one of"),
        (["--gather"], "smoke", "data_size.csv is missing; run `make study`, which makes it."),
        (["--here"], "smoke", "run.json is missing"),
    ],
)
def test_what_can_not_start_is_said_in_one_line(profile, monkeypatch, capsys, arguments, name, message):
    assert main(monkeypatch, *arguments, name=name) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
