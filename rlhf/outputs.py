"""Where a run writes: the paths of a profile's outputs, and atomic writes of CSV, JSON, figures and checkpoints.

Every function takes a `Profile`; its `name` is the folder below checkpoints/, evaluation/, plots/, logs/, notebooks/.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf import finite, registry

import numpy as np
import pandas as pd
import psutil
import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = "rlhf_manifest.json"  # of a checkpoint
REFERENCE = ROOT / "results"  # the committed results, which README and notebooks show; no run writes there


def from_checkout(path: str) -> Path:
    """What a path in a setting means, wherever the process runs: ~ is the home, a relative one is of the checkout."""
    return ROOT / os.path.expanduser(path)


def root() -> Path:
    """The outputs folder: RLHF_OUTPUTS, or outputs/ at the root of the repository."""
    return from_checkout(os.environ.get("RLHF_OUTPUTS", "").strip() or "outputs")


def evaluation_dir(profile, base: Path | None = None) -> Path:
    """The folder of CSVs below `base`, this run's outputs without it."""
    return (base or root()) / "evaluation" / profile.name


def plots_dir(profile, base: Path | None = None) -> Path:
    return (base or root()) / "plots" / profile.name


def collect_dir(profile) -> Path:
    """What people rank and have ranked: no run deletes it. Notebook 2.3 has a folder of its own in it."""
    return root() / "collect" / profile.name


def logs_dir(profile) -> Path:
    return root() / "logs" / profile.name


def notebooks_dir(profile) -> Path:
    return root() / "notebooks" / profile.name


def checkpoints_dir(profile) -> Path:
    return root() / "checkpoints" / profile.name


def training_dir(profile) -> Path:
    """What trainings go on from after an interruption (rlhf.resume), a folder for each."""
    return checkpoints_dir(profile) / "training"


def forget_training(profile) -> None:
    """Delete what trainings would go on from: what they were for is saved."""
    shutil.rmtree(training_dir(profile), ignore_errors=True)


def checkpoint_path(profile, name: str) -> Path:
    return _inside(checkpoints_dir(profile), name)


def _inside(folder: Path, name: str) -> Path:
    """folder / name. Raises ValueError where that is not a file or folder right in `folder`."""
    if not isinstance(name, str) or not name or Path(name).name != name or name in (".", ".."):
        raise ValueError(f"{name!r} is no name of a file in {show(folder)}; give a name without a folder in it.")
    return folder / name


def show(path) -> str:
    """`path` relative to the repository, for printing: a rendered notebook must not hold a machine's path."""
    path = Path(path).resolve()
    for base in (ROOT, root().resolve().parent):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def show_name(name: str) -> str:
    """A Hub name as it is; a local path as `show` gives it."""
    return show(name) if Path(name).exists() else name


def check_writable(profile) -> None:
    """Raise PermissionError, naming the folder, unless every output folder of the profile can be written."""
    for folder in (evaluation_dir(profile), plots_dir(profile), logs_dir(profile), checkpoints_dir(profile)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise PermissionError(
                f"can't write to {folder} ({error.strerror}); make it writable or set RLHF_OUTPUTS to another folder."
            ) from error


@contextmanager
def run_lock() -> Iterator[None]:
    """Hold the outputs folder for one run; a second one stops at once with BlockingIOError, which names the first.

    The system frees the lock of a process that is gone, however it ended.
    """
    folder = root()
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".owner"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        by = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
        raise BlockingIOError(
            f"{folder} is in use by {by}; wait for it, stop it, or set RLHF_OUTPUTS to another folder."
        ) from error
    try:
        _sweep()
        write_text(owner, f"process {os.getpid()} ({' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])})\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _sweep() -> None:
    """Delete what processes that were killed while they wrote had not put in place: `replace` and `new_folder`."""
    for kind in ("checkpoints", "logs", "notebooks", "evaluation", "plots"):
        for path in sorted((root() / kind).rglob(".[0-9]*.*")):
            if (found := re.match(r"\.(\d+)\.", path.name)) and not psutil.pid_exists(int(found[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """For reading, changing and writing a file: others who do so with it wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path, text: str) -> Path:
    return replace(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(profile, name: str, frame: pd.DataFrame, base: Path | None = None) -> Path:
    """Write evaluation/<profile>/<name>; numbers keep six significant digits, so that equal runs give equal files."""
    return _write_table(_inside(evaluation_dir(profile, base), name), frame)


def read_csv(profile, name: str, base: Path | None = None) -> pd.DataFrame:
    """Read evaluation/<profile>/<name> below `base`, this run's outputs without it."""
    return pd.read_csv(_existing(profile, name, base))


def merge_csv(profile, name: str, frame: pd.DataFrame, key: str | list[str]) -> Path:
    """`merge_table` of evaluation/<profile>/<name>."""
    return merge_table(_inside(evaluation_dir(profile), name), frame, key)


def merge_table(path: Path, frame: pd.DataFrame, key: str | list[str]) -> Path:
    """Replace the rows of a CSV whose `key`, one or more columns, is in `frame`; keep the others.

    The new rows stand where the first old one of their key stood, else at the end, so that to repeat a part of a run
    does not change the order.
    """
    with _one_writer(path):
        if path.exists():
            old = pd.read_csv(path)
            keys = [table.set_index(key).index for table in (old, frame)]
            first = {key: place for place, key in reversed([*enumerate(keys[0])])}
            kept = old[~keys[0].isin(keys[1])]
            places = [*kept.index, *(first.get(key, len(old)) for key in keys[1])]
            frame = pd.concat([kept, frame], ignore_index=True).iloc[np.argsort(places, kind="stable")]
        return _write_table(path, frame)


def _write_table(path: Path, frame: pd.DataFrame) -> Path:
    return replace(path, lambda temporary: frame.to_csv(temporary, index=False, float_format="%.6g"))


def write_json(profile, name: str, content) -> Path:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return write_text(_inside(evaluation_dir(profile), name), text)


def read_json(profile, name: str, base: Path | None = None):
    """Read evaluation/<profile>/<name> below `base`, this run's outputs without it."""
    return json.loads(_existing(profile, name, base).read_text(encoding="utf-8"))


def _existing(profile, name: str, base: Path | None) -> Path:
    path = _inside(evaluation_dir(profile, base), name)
    if not path.exists():
        raise FileNotFoundError(f"{show(path)} is missing; run the notebook that writes it first (make run).")
    return path


def update_run(profile, **entries) -> Path:
    """Merge `entries` into evaluation/<profile>/run.json; an entry that is a dict is merged key by key."""
    path = evaluation_dir(profile) / "run.json"
    with _one_writer(path):
        run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for key, value in entries.items():
            run[key] = {**run.get(key, {}), **value} if isinstance(value, dict) else value
        return write_json(profile, "run.json", run)


def write_figure(profile, name: str, figure) -> Path:
    """Write a figure to plots/<profile>/<name>: a PNG without a date, so that equal figures are equal files."""
    path = _inside(plots_dir(profile), name)
    return replace(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which is put in place of `path` at the end: a killed run leaves no half folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}.{path.name}.", dir=path.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_checkpoint(profile, name: str, *parts) -> Path:
    """Save each part (model, adapter, tokenizer: anything with save_pretrained) into checkpoints/<profile>/<name>.

    A manifest is added, by which require_checkpoint finds what is missing, cut off or changed.
    Raises NotFiniteError, and leaves what was there, for a model with a weight that is not finite.
    """
    path = checkpoint_path(profile, name)
    for part in parts:
        if isinstance(part, torch.nn.Module):
            finite.require(f"checkpoint {name}", dict(part.named_parameters()), advice="Nothing is saved.")
    with new_folder(path) as folder:
        for part in parts:
            part.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card, which names a path of this machine
        write_manifest(folder)
    return path


@functools.cache
def _sha256(file: Path, _changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content; a file that has not changed is read once in a process."""
    return _sha256(file, file.stat().st_mtime_ns)


def write_manifest(folder: Path) -> None:
    """Write MANIFEST: bytes and SHA-256 of each file in a folder but for model cards, which people edit."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".md")
    content = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
    content.pop(MANIFEST, None)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def fault_of(folder: Path) -> str:
    """What differs in a folder from its manifest; "" where nothing does, and for a folder that has none.

    Sizes are compared first: what is cut off is found without reading it.
    """
    if not (folder / MANIFEST).exists():
        return ""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {_inside(folder, name): (entry["bytes"], entry["sha256"]) for name, entry in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} can't be read ({type(error).__name__})"
    for file, (size, _) in entries.items():
        if not file.is_file():
            return f"{file.name} is missing"
        if (found := file.stat().st_size) != size:
            return f"{file.name} has {found:,} bytes, and {size:,} were saved"
    changed = (file.name for file, (_, saved) in entries.items() if sha256(file) != saved)
    return next((f"{name} is not what was saved (by its SHA-256)" for name in changed), "")


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter, which is no model without its base."""
    return (path / "adapter_config.json").exists()


def by_adapters(profile) -> bool:
    """Whether the run trains nothing but adapters on one frozen 4-bit base, as rlhf.models.prepare_base noted."""
    run = evaluation_dir(profile) / "run.json"
    return run.exists() and read_json(profile, run.name).get("by_adapters", False)


def made_by_command(profile) -> tuple[str, ...]:
    """The keys of registry.BY_COMMAND whose checkpoints are there."""
    return tuple(
        key for key in registry.BY_COMMAND if checkpoint_path(profile, registry.MODELS[key].checkpoint).is_dir()
    )


def require_checkpoint(profile, name: str) -> Path:
    """The path of a checkpoint. What is wrong with it is said with what makes it.

    Raises FileNotFoundError where it is missing, and ValueError where it is not as it was saved (fault_of).
    """
    path = checkpoint_path(profile, name)
    model = registry.MODELS.get(registry.BY_CHECKPOINT.get(name))
    if model and model.notebook:
        first = f"run {model.notebook} first (profile {profile.name}), or `make run` for all"
        anew = f"run scripts/run_notebooks.py {Path(model.notebook).stem}"
    else:
        maker = f"`{model.command}`" if model else "what makes it"
        first, anew = f"run {maker} first (profile {profile.name})", f"delete it and run {maker}"
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {show(path)} is missing; {first}.")
    if fault := fault_of(path):
        raise ValueError(
            f"checkpoint {show(path)}: {fault}; {anew}, or put the file back. Where you changed it yourself, delete "
            f"its {MANIFEST}."
        )
    return path
