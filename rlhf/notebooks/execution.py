"""Execute the notebooks of the numbered folders in order, for the chosen profile.

Executed copies go to outputs/notebooks/<profile>/; the tracked notebooks are not touched. A run resumes at
the first notebook that has not finished; FORCE=1 starts over. Notebooks can be named by a part of their path:
these are executed, finished or not, and all after them count as unfinished. The last notebook draws what `make study`
measures and is executed only when it is named. FROM=hub:user/name[@revision] takes the checkpoints from there and
executes the evaluation alone. Exit status: 0 done, 1 a notebook failed, 2 the run could not start, 130 interrupted.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from rlhf import hub, outputs
from rlhf.profiles import Profile, load_profile, set_up

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

PACKAGES = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "numpy"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EVALUATION, STUDY = "03_ppo_alignment/3_evaluation", "03_ppo_alignment/4_overoptimisation"
TIME_LINE = re.compile(r"^\*Time:.*$", re.MULTILINE)


def find_notebooks(root: Path) -> list[Path]:
    """The notebooks of the numbered folders, in the order in which they are read and run."""
    notebooks = sorted(root.glob("0?_*/[0-9]*_*.ipynb"))
    if not notebooks:
        raise ValueError(f"no notebook like 01_.../1_....ipynb in {root}; run this from a complete clone.")
    return notebooks


def name_of(notebook: Path) -> str:
    """The name that run.json uses, for example 02_reward_modeling/1_preference_data."""
    return f"{notebook.parent.name}/{notebook.stem}"


def copy_of(notebook: Path, profile: Profile) -> Path:
    return outputs.notebooks_dir(profile) / notebook.parent.name / notebook.name


def code_of(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def settings_of(profile: Profile) -> dict:
    """What makes two runs comparable: every setting but the number of threads, as JSON gives it back."""
    settings = json.loads(json.dumps(dataclasses.asdict(profile)))
    del settings["threads"]
    return settings


def fingerprint(profile: Profile) -> str:
    return hashlib.sha256(json.dumps(settings_of(profile), sort_keys=True).encode()).hexdigest()[:16]


def is_finished(notebook: Path, profile: Profile) -> bool:
    """Whether the executed copy is complete, of these settings and of the code that the notebook has now."""
    copy = copy_of(notebook, profile)
    if not copy.exists():
        return False
    executed = nbformat.read(copy, as_version=4)
    run = executed.metadata.get("rlhf", {})
    same_code = code_of(executed) == code_of(nbformat.read(notebook, as_version=4))
    return bool(run.get("finished")) and run.get("run") == fingerprint(profile) and same_code


def flatten(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check_settings(profile: Profile) -> None:
    """Note the settings of this run; ValueError if the outputs come from a run with other settings."""
    path = outputs.notebooks_dir(profile) / "settings.json"
    new = settings_of(profile)
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        before, now = flatten(old), flatten(new)
        changed = [key for key in before | now if before.get(key) != now.get(key)]
        if changed:
            lines = [f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed]
            raise ValueError(
                f"the {profile.name} run in {outputs.root()} was started with other settings:\n"
                + "\n".join(lines)
                + "\nSet them back to resume it, or start over with FORCE=1, which deletes its outputs."
            )
    outputs.write_text(path, json.dumps(new, indent=1) + "\n")


def start_over(profile: Profile) -> None:
    """Delete all that a run of the profile wrote: several notebooks add rows to one CSV, so old ones would stay."""
    for folder in (
        outputs.checkpoint_path(profile, "any").parent,
        outputs.logs_dir(profile),
        outputs.notebooks_dir(profile),
        outputs.evaluation_dir(profile),
        outputs.plots_dir(profile),
    ):
        shutil.rmtree(folder, ignore_errors=True)


def choose(notebooks: list[Path], profile: Profile, names: list[str]) -> list[Path]:
    """The notebooks to execute: the named ones, or the first unfinished one and all after it but the study's."""
    if names:
        unknown = [name for name in names if not any(name in name_of(path) for path in notebooks)]
        if unknown:
            raise ValueError(f"no notebook matches {unknown[0]!r}; there are {', '.join(map(name_of, notebooks))}.")
        return [path for path in notebooks if any(name in name_of(path) for name in names)]
    notebooks = [path for path in notebooks if name_of(path) != STUDY]
    first = next((i for i, path in enumerate(notebooks) if not is_finished(path, profile)), len(notebooks))
    return notebooks[first:]


def pull(profile: Profile, source: str) -> None:
    """Take the checkpoints from hub:user/name or hub:user/name@revision. Raises ValueError for anything else."""
    kind, _, name = source.partition(":")
    name, _, revision = name.partition("@")
    if kind != "hub" or not name:
        raise ValueError(f"FROM={source!r} is not of the form hub:user/name or hub:user/name@revision.")
    stages = hub.pull(profile, name, revision or None)
    print(f"Pulled from {outputs.show_name(name)}: {', '.join(stages)}.")


def device() -> str:
    """Where the run computes, in a reader's words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()} GPU" if torch.cuda.device_count() == 1 else "several GPUs"
    cores = cpu_count()
    return f"{cores} CPU core{'s' * (cores > 1)}"


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def git_state(root: Path) -> dict:
    """The commit, and whether anything but outputs/ differed from it; None for both outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--", ".", ":(exclude)outputs")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def describe_run(profile: Profile, root: Path) -> dict:
    """What run.json says about a run, apart from the seconds of each notebook."""
    return {
        "seed": profile.seed,
        "device": device(),
        "cpus": cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "git": git_state(root),
        "settings": dataclasses.asdict(profile)
        | {field: value and outputs.show_name(value) for field, value in local_paths(profile).items()},
    }


def local_paths(profile: Profile) -> dict[str, str | None]:
    """The settings that may be a path on this machine."""
    return {field: getattr(profile, field) for field in ("model", "dataset", "published")}


def kernel_environment(profile: Profile) -> dict[str, str]:
    """The environment of the kernels: the profile that was chosen here, whatever folder they run in."""
    environment = os.environ | {
        "RLHF_PROFILE": profile.name,
        "RLHF_OUTPUTS": str(outputs.root().resolve()),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if profile.lab:
        environment |= {
            "HF_HUB_OFFLINE": "1",
            # glibc gives each large tensor back to the system when it is freed; getting it again, page by page, took a
            # sixth of a training step on a CPU. Other allocators ignore these. Not for GPT-2's size, where what is kept
            # no longer fits what is asked for: PPO then took more than 21 GB.
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        }
    else:  # a path relative to the caller's folder is absolute in the profile
        environment |= {f"RLHF_{field.upper()}": value or "" for field, value in local_paths(profile).items()}
    return environment


class Progress:
    """Says which cell runs and for how long: in place on a terminal, elsewhere a line per slow cell."""

    def __init__(self, position: str, notebook: Path, cells: list[NotebookNode]):
        self.label = f"{position} {name_of(notebook)}"
        self.cells = cells
        self.count = sum(cell.cell_type == "code" for cell in cells)
        self.cell = "starting the kernel"
        self.number = 0
        self.started = self.cell_started = time.perf_counter()
        self.live = sys.stdout.isatty()
        if not self.live:
            print(self.label, flush=True)

    def start_cell(self, cell: NotebookNode, cell_index: int) -> None:
        self.number += 1
        self.cell = f"cell {self.number} of {self.count}: {title(self.cells, cell_index)}"
        self.cell_started = time.perf_counter()

    def end_cell(self, **_) -> None:
        seconds = time.perf_counter() - self.cell_started
        if seconds > 1 and not self.live:
            print(f"  {seconds:5.0f} s  {self.cell}", flush=True)

    def draw(self) -> None:
        if self.live:
            line = f"{self.label}  {time.perf_counter() - self.cell_started:.0f} s in {self.cell}"
            print(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def end(self, outcome: str, peak: int | None) -> float:
        """Say how the notebook ended and return its seconds."""
        seconds = round(time.perf_counter() - self.started, 1)
        prefix = f"\r\x1b[2K{self.label}  " if self.live else "  "
        memory = "" if peak is None else f", peak memory {peak} MB"
        print(f"{prefix}{outcome} after {seconds:.0f} s{memory}", flush=True)
        return seconds


def title(cells: list[NotebookNode], index: int) -> str:
    """What a reader calls the cell: the heading right above it, or else its first line of code."""
    above = cells[index - 1] if index else None
    if above is not None and above.cell_type == "markdown":
        headings = re.findall(r"^#+ +(.+)$", above.source, re.MULTILINE)
        if headings:
            return headings[-1].strip()[:80]
    return next((line.strip()[:80] for line in cells[index].source.splitlines() if line.strip()), "")


def execute(notebook: NotebookNode, folder: Path, environment: dict, progress: Progress) -> int | None:
    """Execute `notebook` in its folder; returns the peak memory of the kernel in MB, if it is known.

    Raises CellExecutionError, DeadKernelError, or KeyboardInterrupt once the kernel is gone.
    """
    peak = None

    def end_cell(**_) -> None:
        nonlocal peak
        peak = peak_memory(client.km.provisioner.pid)
        progress.end_cell()

    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=300,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else each kernel warns that it talks over local TCP
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=progress.start_cell,
        on_cell_executed=end_cell,
    )
    # In a thread of its own nbclient leaves the signals alone, and Ctrl-C arrives here.
    with ThreadPoolExecutor(max_workers=1) as pool:
        execution = pool.submit(lambda: asyncio.run(client.async_execute(env=environment)))
        try:
            while not wait([execution], timeout=0.5).done:
                progress.draw()
        except KeyboardInterrupt:
            while not execution.done():
                kill_kernel(client)
                wait([execution], timeout=0.5)
            raise
        execution.result()
    return peak


def kill_kernel(client: NotebookClient) -> None:
    """Kill the kernel, if it has started, and the processes that it started itself."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def peak_memory(pid: int) -> int | None:
    """The peak resident memory of a process so far, in MB; None where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else None


def set_time(notebook: NotebookNode, seconds: float, profile_name: str, where: str) -> None:
    """Let every line `*Time: ...*` of the prose say how long the notebook took."""
    line = f"*Time: {seconds:.0f} s at the `{profile_name}` profile on {where}.*"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TIME_LINE.sub(lambda _: line, cell.source)


def run_notebook(path: Path, position: str, profile: Profile, root: Path) -> int:
    """Execute one notebook, write its copy and its seconds; returns the exit status."""
    notebook = nbformat.read(path, as_version=4)
    copy = copy_of(path, profile)
    progress = Progress(position, path, notebook.cells)
    error = peak = None
    try:
        peak = execute(notebook, path.parent, kernel_environment(profile), progress)
    except (CellExecutionError, DeadKernelError, KeyboardInterrupt) as raised:
        error = raised
    outcome = "finished" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    seconds = progress.end(outcome, peak)

    notebook.metadata["rlhf"] = {
        "finished": error is None,
        "seconds": seconds,
        "run": fingerprint(profile),
        "device": device(),
        "commit": git_state(root)["commit"],
    }
    if error is None:
        set_time(notebook, seconds, profile.name, device())
    outputs.write_text(copy, nbformat.writes(notebook) + "\n")
    if error is None:
        memory = {} if peak is None else {"peak_memory_mb": {name_of(path): peak}}
        outputs.update_run(profile, notebooks={name_of(path): seconds}, **memory)
        return 0
    report(error, path, progress.cell, copy)
    return 130 if outcome == "interrupted" else 1


def report(error: BaseException, path: Path, cell: str, copy: Path) -> None:
    """Say on stderr what stopped the run, where, and how to go on."""
    where = f"{name_of(path)}.ipynb, {cell}"
    if isinstance(error, CellExecutionError):
        traceback = error.traceback if sys.stderr.isatty() else ANSI.sub("", error.traceback)
        message = f"\n{traceback}\n\nerror: {error.ename} in {where}"
    elif isinstance(error, DeadKernelError):
        message = f"\nerror: the kernel died in {where} (killed, or out of memory)"
    else:
        message = f"\nInterrupted in {where}"
    print(f"{message}\nThe notebook as far as it came: {copy}", file=sys.stderr)
    print("`make run` resumes with this notebook.", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="part of the path of a notebook to execute (default: resume the run)")
    parser.add_argument("--root", type=Path, default=outputs.ROOT, help="the folder that holds 01_..., 02_..., 03_...")
    options = parser.parse_args(arguments)
    force = os.environ.get("FORCE", "").strip().lower() not in ("", "0", "false", "no")
    root = options.root.resolve()
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the python3 kernel of this environment, no other
    try:
        profile = load_profile()
        set_up(profile)
        notebooks = find_notebooks(root)
        pulled = os.environ.get("FROM", "").strip()
        if pulled and (force or options.names):
            raise ValueError(
                "FROM pulls checkpoints and executes the evaluation alone: name no notebook with it and leave FORCE "
                "out; RLHF_OUTPUTS=<folder> keeps what is pulled apart from a run of your own."
            )
        if force and options.names:
            raise ValueError("FORCE=1 deletes every output, so it starts at the first notebook; name none with it.")
        if force:
            start_over(profile)
            set_up(profile)
        check_settings(profile)
        if pulled:
            options.names = [EVALUATION]
            pull(profile, pulled)
        chosen = choose(notebooks, profile, options.names)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(chosen, notebooks, profile, root)


def run(chosen: list[Path], notebooks: list[Path], profile: Profile, root: Path) -> int:
    """Execute the chosen notebooks; returns the exit status of the first that does not finish, or 0."""
    limit = f", at most {profile.max_steps} steps per training" if profile.max_steps else ""
    print(
        f"Profile {profile.name} on {device()}: model {profile.model}, data {profile.dataset}, "
        f"seed {profile.seed}{limit}."
    )
    if not chosen:
        print(f"All {len(notebooks)} notebooks have finished. `make run FORCE=1` starts over.")
        return 0
    first = notebooks.index(chosen[0])
    if first:
        print(f"Starting with notebook {first + 1} of {len(notebooks)}.")
    for stale in notebooks[first:]:  # what follows was made from what is made anew
        copy_of(stale, profile).unlink(missing_ok=True)
    if not first:
        (outputs.evaluation_dir(profile) / "run.json").unlink(missing_ok=True)
    outputs.update_run(profile, **describe_run(profile, root))
    started = time.perf_counter()
    for path in chosen:
        position = f"[{notebooks.index(path) + 1}/{len(notebooks)}]"
        try:
            status = run_notebook(path, position, profile, root)
        except KeyboardInterrupt:  # between two notebooks
            print("\nInterrupted. `make run` resumes.", file=sys.stderr)
            return 130
        if status:
            return status
    seconds = time.perf_counter() - started
    count = f"{len(chosen)} notebook{'s' * (len(chosen) > 1)}"
    print(f"Done: {count} in {seconds:.0f} s ({seconds / 60:.1f} min). Results: {outputs.root()}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop in order, as after Ctrl-C
    sys.exit(main())
