"""The torture of runs: its kills hit, the run goes on after them, and a table that is not the same is found."""

import random

from rlhf.notebooks import torture

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

STAGES = ["01_one/1_first", "01_one/2_second"]
CODE = """import os
folder = os.environ["RLHF_OUTPUTS"] + "/evaluation/smoke/"
open(folder + "{}.csv", "w").write(str({}))"""


def test_plan_spreads_its_kills_over_the_notebooks_in_their_order_and_within_their_time():
    seconds = {"a": 10.0, "b": 1.0, "c": 3.0}
    kills = torture.plan(seconds, 30, random.Random(0))
    assert [kill.stage for kill in kills] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    assert [kill.seconds is None for kill in kills] == [False, True] * 15  # at a random moment, in a training
    assert all(0 <= kill.seconds < seconds[kill.stage] for kill in kills[::2])
    assert {kill.victim for kill in kills} == set(torture.VICTIMS)
    assert kills == torture.plan(seconds, 30, random.Random(0)) != torture.plan(seconds, 30, random.Random(1))


def test_a_kill_waits_for_a_new_checkpoint_of_a_training(tmp_path, monkeypatch):
    """The stand-in of a run takes up the checkpoint that there is, writes the next one, and waits to be killed."""
    script = tmp_path / "scripts" / "run.py"
    script.parent.mkdir()
    training = tmp_path / "run" / "checkpoints" / "smoke" / "training" / "sft"
    script.write_text(
        "import time\nfrom pathlib import Path\n"
        f"training = Path({str(training)!r})\n"
        "print('[1/1] 01_one/1_first', flush=True)\ntime.sleep(0.3)\n"
        "steps = len(list(training.glob('*'))) + 1\n"
        "(training / f'step_{steps:06}').mkdir(parents=True)\n"
        "time.sleep(60 if steps < 3 else 0)\n"
    )
    monkeypatch.setattr(torture.outputs, "ROOT", tmp_path)
    monkeypatch.setitem(torture.COMMANDS, "run", ["run.py"])
    run = torture.Tortured("run", tmp_path / "run", "0")
    kills = [torture.Kill("01_one/1_first", "runner", None)] * 2
    for expected in ("sft step_000001", "sft step_000002"):
        assert run.run(kills) == (-9, [(torture.Kill("01_one/1_first", "runner", None), expected)])
    assert run.run(kills) == (0, []) and kills == []


def test_a_command_that_outlives_its_kernel_is_watched_further(tmp_path, monkeypatch):
    """The stand-in of a runner starts a kernel, goes on when it dies, and begins the next notebook."""
    script = tmp_path / "scripts" / "run.py"
    script.parent.mkdir()
    script.write_text(
        "import subprocess, sys, time\n"
        "print('[1/2] 01_one/1_first', flush=True)\n"
        "kernel = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', 'ipykernel_launcher'])\n"
        "time.sleep(1)\nkernel.wait()\n"  # meanwhile the killed kernel is a zombie
        "print('[2/2] 01_one/2_second', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(torture.outputs, "ROOT", tmp_path)
    monkeypatch.setitem(torture.COMMANDS, "run", ["run.py"])
    kills = [torture.Kill("01_one/1_first", "kernel", 0.1)] * 2 + [torture.Kill("01_one/2_second", "runner", 0.1)]
    expected = [(kill, torture.NOTHING) for kill in kills[1:]]
    assert torture.Tortured("run", tmp_path / "run", "0").run(kills) == (-9, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("value", "equal"), [("1", True), ("os.getpid()", False)])
def test_killed_runs_go_on_and_a_table_that_is_another_is_found(tmp_path, monkeypatch, value, equal):
    for stage in STAGES:
        path = tmp_path / f"{stage}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[new_code_cell(CODE.format(path.stem, value))]), path)
    kills = [torture.Kill(stage, victim, 0.0) for stage, victim in zip(STAGES, torture.VICTIMS, strict=True)]
    monkeypatch.setattr(torture, "plan", lambda *_: list(kills))
    monkeypatch.setitem(torture.COMMANDS, "run", ["run_notebooks.py", "--root", str(tmp_path)])
    table = torture.torture("run", 2, tmp_path / "tortured", random.Random(0))
    assert list(table.stage) == STAGES and list(table.killed) == list(torture.VICTIMS)
    assert (table.equal == equal).all() and set(table.resumed_from) == {"no checkpoint"}
    log = (tmp_path / "tortured" / "run.log").read_text()
    assert "error: the kernel died in 01_one/2_second.ipynb, starting the kernel" in log and "Traceback" not in log
