"""Execute the notebooks of the numbered folders in order, for the chosen profile.

Executed copies go to outputs/notebooks/<profile>/; the tracked notebooks are not touched.
"""

import asyncio
import atexit
import contextlib
import dataclasses
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

from rlhf import outputs, registry, runtime
from rlhf.notebooks.staleness import INPUTS, copy_of, is_finished, key_of, name_of, settings_of
from rlhf.profiles import Profile, set_up, variable_of

import nbformat
import pandas as pd
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

PACKAGES = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "numpy"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EVALUATION = "03_ppo_alignment/3_evaluation"
# Notebooks that draw a study, and the command that makes it: no run executes them unless they are named.
STUDIES = {
    "03_ppo_alignment/4_overoptimisation": "make study",
    "03_ppo_alignment/5_troubleshooting": "make troubleshooting",
    "03_ppo_alignment/6_beyond_ppo": "make beyond",
}
PATH_VALUE = re.compile(r"PosixPath\('[^']*'\)")
TIME_LINE = re.compile(r"^\*Time:.*$", re.MULTILINE)


def find_notebooks(root: Path) -> list[Path]:
    """The notebooks of the numbered folders, in the order in which they are read and run."""
    notebooks = sorted(root.glob("0?_*/[0-9]*_*.ipynb"))
    if not notebooks:
        raise ValueError(f"no notebook like 01_.../1_....ipynb in {root}; run this from a complete clone.")
    return notebooks


def check_settings(profile: Profile) -> None:
    """Note the settings of this run; ValueError if the outputs come from a run with other settings.

    A setting that did not exist then, and is not set now, is no other one.
    """
    path = outputs.notebooks_dir(profile) / "settings.json"
    new = settings_of(profile)
    if path.exists():
        before, now = (
            pd.json_normalize(settings).iloc[0].to_dict() for settings in (json.loads(path.read_text("utf-8")), new)
        )
        unset = {key for key in now.keys() - before.keys() if now[key] in ("", None)}
        changed = [key for key in before | now if key not in unset and before.get(key) != now.get(key)]
        if changed:
            lines = [f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed]
            raise ValueError(
                f"the {profile.name} run in {outputs.root()} was started with other settings:\n"
                + "\n".join(lines)
                + "\nSet them back to resume it, or start over with FORCE=1, which deletes its outputs."
            )
    outputs.write_text(path, json.dumps(new, indent=1) + "\n")


def start_over(profile: Profile) -> None:
    """Delete all that a run of the profile wrote, studies of it too, and make it ready anew.

    Several notebooks add rows to one CSV, so old rows would stay. Runs with other seeds have outputs of their own.
    """
    for kind in ("checkpoints", "logs", "notebooks", "evaluation", "plots"):
        folder = outputs.root() / kind / profile.name
        entries = sorted(folder.iterdir()) if folder.is_dir() else []  # not the folder: it may be a link to a disk
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    set_up(profile)


def choose(notebooks: list[Path], profile: Profile, names: list[str]) -> list[Path]:
    """The notebooks to execute: the named ones, or the first unfinished one and all after it but the studies'."""
    if names:
        unknown = [name for name in names if not any(name in name_of(path) for path in notebooks)]
        if unknown:
            raise ValueError(f"no notebook matches {unknown[0]!r}; there are {', '.join(map(name_of, notebooks))}.")
        return [path for path in notebooks if any(name in name_of(path) for name in names)]
    notebooks = [path for path in notebooks if name_of(path) not in STUDIES]
    first = next((i for i, path in enumerate(notebooks) if not is_finished(path, profile)), len(notebooks))
    return notebooks[first:]


def check_checkpoints(notebooks: list[Path], profile: Profile) -> None:
    """Raise ValueError, before anything is executed, where a checkpoint of these notebooks is not as it was saved."""
    made_by = [f"{name_of(path)}.ipynb" for path in notebooks]
    for model in registry.MODELS.values():
        if model.notebook in made_by and outputs.checkpoint_path(profile, model.checkpoint).is_dir():
            outputs.require_checkpoint(profile, model.checkpoint)


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
        "hardware": runtime.hardware(),
        "cpus": runtime.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "git": git_state(root),
        "settings": dataclasses.asdict(profile)
        | {field: outputs.show_name(value) for field in INPUTS if (value := getattr(profile, field))},
    }


def kernel_environment(profile: Profile) -> dict[str, str]:
    """The environment of the kernels: the profile that was chosen here, whatever folder they run in."""
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # a kernel has its own
    environment = inherited | {
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
    # What may be replaced: a path relative to the caller's folder is absolute in the profile.
    variables = {variable_of(profile, field): getattr(profile, field) or "" for field in INPUTS}
    own = (profile.recipe, "RLHF_ENCODER")
    return environment | {name: value for name, value in variables.items() if not profile.lab or name in own}


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

    Raises CellExecutionError, RuntimeError where the kernel died, or KeyboardInterrupt once the kernel is gone.
    """
    peak = None

    def end_cell(**_) -> None:
        nonlocal peak
        peak = runtime.peak_memory_mb(client.km.provisioner.pid)
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
    # This interpreter's own kernel, whatever kernel is called python3 in the folders that Jupyter searches.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
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
        try:
            execution.result()
        except RuntimeError:
            atexit.unregister(client._cleanup_kernel)  # nbclient would look for a kernel that died while it started
            raise
    return peak


def kill_kernel(client: NotebookClient) -> None:
    """Kill the kernel, if it has started, and the processes that it started itself."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def drop_paths(notebook: NotebookNode) -> None:
    """Remove what a cell shows whose last line writes a file: its path, nothing to a reader, but this machine's."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            cell.outputs = [it for it, text in zip(cell.outputs, texts, strict=True) if not PATH_VALUE.fullmatch(text)]


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
    progress, key = Progress(position, path, notebook.cells), key_of(path, profile)  # as things are when it starts
    error = peak = None
    try:
        peak = execute(notebook, path.parent, kernel_environment(profile), progress)
    except (CellExecutionError, RuntimeError, KeyboardInterrupt) as raised:  # a RuntimeError where the kernel died
        error = raised
    outcome = "finished" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    seconds = progress.end(outcome, peak)

    drop_paths(notebook)
    notebook.metadata["rlhf"] = {
        "finished": error is None,
        "seconds": seconds,
        "key": key,
        "hardware": runtime.hardware(),
        "commit": git_state(root)["commit"],
    }
    if error is None:
        set_time(notebook, seconds, profile.name, runtime.hardware())
    try:
        outputs.write_text(copy, nbformat.writes(notebook) + "\n")
    except OSError as full:  # a disk that is full is often why the cell failed, which must be said all the same
        if error is None:
            raise
        copy = f"not written ({full})"
    if error is None:
        memory = {} if peak is None else {"peak_memory_mb": {name_of(path): peak}}
        outputs.update_run(profile, notebooks={name_of(path): seconds}, **memory)
        outputs.forget_training(profile)
        return 0
    report(error, path, progress.cell, copy)
    return 130 if outcome == "interrupted" else 1


def report(error: BaseException, path: Path, cell: str, copy: Path | str) -> None:
    """Say on stderr what stopped the run, where, and how to go on."""
    where = f"{name_of(path)}.ipynb, {cell}"
    if isinstance(error, CellExecutionError):
        traceback = error.traceback if sys.stderr.isatty() else ANSI.sub("", error.traceback)
        message = f"\n{traceback}\n\nerror: {error.ename} in {where}"
    elif isinstance(error, RuntimeError):
        message = f"\nerror: the kernel died in {where} (killed, or out of memory)"
    else:
        message = f"\nInterrupted in {where}"
    print(f"{message}\nThe notebook as far as it came: {copy}", file=sys.stderr)
    print("The same command, without FORCE, goes on with this notebook.", file=sys.stderr, flush=True)


def run(chosen: list[Path], notebooks: list[Path], profile: Profile, root: Path) -> int:
    """Execute the chosen notebooks; returns the exit status of the first that does not finish, or 0."""
    steps, prompts = profile.max_steps, profile.eval_prompts
    limit = f", at most {steps} steps per training and {prompts} test prompts" if steps else ""
    print(
        f"Profile {profile.name} on {runtime.hardware()}: model {profile.model}, data {profile.dataset}, "
        f"seed {profile.seed}{limit}."
    )
    if not chosen:
        print("All notebooks have finished, for the code, settings and data of now. FORCE=1 starts over.")
        return 0
    first = notebooks.index(chosen[0])
    check_checkpoints(notebooks[:first], profile)
    if first:
        print(f"Starting with notebook {first + 1} of {len(notebooks)}.")
    alone = all(name_of(path) in STUDIES for path in chosen)
    for stale in chosen if alone else notebooks[first:]:  # what follows was made from what is made anew
        copy_of(stale, profile).unlink(missing_ok=True)
    if not first:
        (outputs.evaluation_dir(profile) / "run.json").unlink(missing_ok=True)
    outputs.update_run(profile, **describe_run(profile, root))
    started = time.perf_counter()
    for path in chosen:
        position = f"[{notebooks.index(path) + 1}/{len(notebooks)}]"
        if status := run_notebook(path, position, profile, root):
            return status
    seconds = time.perf_counter() - started
    count = f"{len(chosen)} notebook{'s' * (len(chosen) > 1)}"
    print(f"Done: {count} in {seconds:.0f} s ({seconds / 60:.1f} min). Results: {outputs.root()}")
    return 0
