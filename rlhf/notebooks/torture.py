"""Kill runs at random moments and run them again: their tables must be those of a run that nothing killed.

Everything runs at the smoke profile, in outputs folders of its own, and writes a checkpoint as often as it can.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rlhf import outputs, resume

import pandas as pd
import psutil

COMMANDS = {"run": ["run_notebooks.py"], "recipe": ["run_recipe.py", "sentiment"]}
VICTIMS = ("runner", "kernel")
NOTHING = "no checkpoint"
MEASURED = ("costs.csv",)  # seconds and memory, which no two runs share
LABEL = re.compile(r"^\[\d+/\d+\] (\S+)", re.MULTILINE)  # what the runner prints where a notebook begins


class Kill(NamedTuple):
    stage: str  # the notebook
    victim: str
    seconds: float | None  # after the notebook has begun; None: right after a training of it has written a checkpoint


class Tortured:
    """A command with an outputs folder; `log` has all that it printed."""

    def __init__(self, command: str, folder: Path, checkpoint_seconds: str):
        self.arguments = [sys.executable, *COMMANDS[command]]
        self.arguments[1] = str(outputs.ROOT / "scripts" / self.arguments[1])
        self.folder, self.log = folder, folder.with_suffix(".log")
        own = {"RLHF_PROFILE": "smoke", "RLHF_OUTPUTS": str(folder), "RLHF_CHECKPOINT_SECONDS": checkpoint_seconds}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("RLHF_", "FORCE", "FROM"))}
        self.environment = others | own
        folder.mkdir(parents=True)

    def run(self, kills: list[Kill]) -> tuple[int, list[tuple[Kill, str]]]:
        """Run the command until it ends: its exit status, and the kills that hit it with what it goes on from.

        They are taken out of `kills`, and so are those whose notebook has ended before their moment. A command outlives
        the death of a kernel that has done its work already.
        """
        printed, before = self.log.stat().st_size if self.log.exists() else 0, self.checkpoint()
        with self.log.open("ab") as log:
            process = subprocess.Popen(self.arguments, env=self.environment, stdout=log, stderr=log)
        begun: dict[str, float] = {}
        hits = []
        while process.poll() is None:
            time.sleep(0.05)
            stages = LABEL.findall(self.log.read_bytes()[printed:].decode(errors="replace"))
            begun |= {stage: time.monotonic() for stage in stages[len(begun) :]}
            while stages and kills and kills[0].stage < stages[-1]:  # the names are in the order of the run
                kills.pop(0)
            here = [kill for kill in kills if stages and kill.stage == stages[-1]]
            passed = time.monotonic() - begun[stages[-1]] if here else 0.0
            waiting = any(kill.seconds is None for kill in here)
            in_training = waiting and self.checkpoint() not in (before, NOTHING)
            due = [kill for kill in here if (in_training if kill.seconds is None else passed >= kill.seconds)]
            if due and self._kill(process.pid, due[0].victim):
                kills.remove(due[0])
                if due[0].victim == "runner":
                    process.wait()
                before = self.checkpoint()
                hits.append((due[0], before))
        return process.returncode, hits

    def _kill(self, pid: int, victim: str) -> bool:
        """Kill the runner or its kernel, and say whether there was one."""
        found = [pid]
        if victim == "kernel":
            found = [child.pid for child in psutil.Process(pid).children() if _is_kernel(child)]
        for number in found:
            os.kill(number, signal.SIGKILL)
        return bool(found)

    def seconds(self) -> dict[str, float]:
        """How long each notebook of a finished run took."""
        (run,) = sorted(self.folder.glob("evaluation/*/run.json"))
        return json.loads(run.read_text(encoding="utf-8"))["notebooks"]

    def checkpoint(self) -> str:
        """The training that goes on when the command is run again, and from where."""
        found = list(filter(None, map(resume.newest, sorted(self.folder.glob("checkpoints/*/training/*")))))
        last = max(found, key=_changed_at, default=None)
        return f"{last.parent.name} {last.name}" if last else NOTHING

    def tables(self) -> dict[str, bytes]:
        files = sorted(self.folder.glob("evaluation/*/[!.]*.csv"))
        return {file.name: file.read_bytes() for file in files if file.name not in MEASURED}


def _is_kernel(process: psutil.Process) -> bool:
    """Whether a process is a kernel that lives; one that was killed stays a zombie until its runner has noticed."""
    try:
        return "ipykernel_launcher" in process.cmdline()
    except psutil.NoSuchProcess:  # a zombie too
        return False


def _changed_at(path: Path) -> int:
    """When a folder was last changed, in nanoseconds; 0 where a running training has just deleted it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def plan(seconds: dict[str, float], count: int, draws: random.Random) -> list[Kill]:
    """`count` kills, the same number in each notebook where that divides, in the notebooks' order.

    Every other one of a notebook is at a random moment, the others wait for a training: at this profile trainings take
    a small part of a notebook's time, which random moments would mostly miss.
    """
    kills = []
    for place, (stage, whole) in enumerate(seconds.items()):
        for number in range(len(range(place, count, len(seconds)))):
            moment = draws.uniform(0, 0.95 * whole) if number % 2 == 0 else None
            kills.append(Kill(stage, draws.choice(VICTIMS), moment))
    return kills


def torture(command: str, count: int, folder: Path, draws: random.Random) -> pd.DataFrame:
    """Run a command of COMMANDS whole, and once more with `count` kills: one row for each that hit.

    Columns: stage, killed, second (of the stage; empty for a kill that waited for a training), resumed_from, equal
    (whether all tables are those of the whole run).
    Raises RuntimeError where a run stops without having been killed.
    """
    whole, killed = Tortured(command, folder / f"{command}_whole", "1e9"), Tortured(command, folder / command, "0")
    if whole.run([])[0]:
        raise RuntimeError(f"{command}: the run without a kill failed; {outputs.show(whole.log)} says why.")
    kills, rows = plan(whole.seconds(), count, draws), []
    while True:
        status, hits = killed.run(kills)
        for kill, left in hits:
            rows.append((kill.stage, kill.victim, None if kill.seconds is None else round(kill.seconds, 1), left))
            print(*rows[-1], sep="  ", flush=True)
        if not (hits and status):
            break
    if status:
        raise RuntimeError(f"{command}: a run that nothing killed failed; {outputs.show(killed.log)} says why.")
    table = pd.DataFrame(rows, columns=["stage", "killed", "second", "resumed_from"])
    expected, found = whole.tables(), killed.tables()
    others = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    print(f"{command}: {len(rows)} kills, {len(expected)} tables, others than without: {', '.join(others) or 'none'}")
    return table.assign(equal=not others)
