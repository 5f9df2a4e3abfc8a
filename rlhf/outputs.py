"""Where a run writes: the paths of a profile's outputs, and atomic writes of CSV, JSON, figures and checkpoints.

Every function takes a `Profile`; its `name` is the folder below checkpoints/, evaluation/, plots/, logs/, notebooks/.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]

# Which notebook makes a checkpoint: what to run when it is missing.
MADE_BY = {
    "base": "01_supervised_finetuning/1_data_prep_and_baseline.ipynb",
    "sft_qlora_final": "01_supervised_finetuning/2_finetune_qlora.ipynb",
    "sft_full_final": "01_supervised_finetuning/4_finetune_full.ipynb",
    "reward_model_final": "02_reward_modeling/2_train_reward_model.ipynb",
    "ppo_trl_final": "03_ppo_alignment/1_ppo_alignment.ipynb",
    "ppo_scratch_final": "03_ppo_alignment/2_ppo_from_scratch.ipynb",
    "ppo_aligned_final": "03_ppo_alignment/2_ppo_from_scratch.ipynb",
}


def root() -> Path:
    """The outputs folder: RLHF_OUTPUTS, or outputs/ at the root of the repository."""
    return Path(os.environ.get("RLHF_OUTPUTS") or ROOT / "outputs")


def evaluation_dir(profile) -> Path:
    return root() / "evaluation" / profile.name


def plots_dir(profile) -> Path:
    return root() / "plots" / profile.name


def logs_dir(profile) -> Path:
    return root() / "logs" / profile.name


def notebooks_dir(profile) -> Path:
    return root() / "notebooks" / profile.name


def checkpoint_path(profile, name: str) -> Path:
    return root() / "checkpoints" / profile.name / name


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
    for folder in (
        evaluation_dir(profile),
        plots_dir(profile),
        logs_dir(profile),
        checkpoint_path(profile, "x").parent,
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise PermissionError(
                f"can't write to {folder} ({error.strerror}); make it writable or set RLHF_OUTPUTS to another folder."
            ) from error


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
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
    return _replace(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(profile, name: str, frame: pd.DataFrame) -> Path:
    """Write evaluation/<profile>/<name>; numbers keep six significant digits, so that equal runs give equal files."""
    path = evaluation_dir(profile) / name
    return _replace(path, lambda temporary: frame.to_csv(temporary, index=False, float_format="%.6g"))


def read_csv(profile, name: str) -> pd.DataFrame:
    path = evaluation_dir(profile) / name
    if not path.exists():
        raise FileNotFoundError(f"{show(path)} is missing; run the notebook that writes it first (make run).")
    return pd.read_csv(path)


def merge_csv(profile, name: str, frame: pd.DataFrame, key: str) -> Path:
    """Replace the rows of evaluation/<profile>/<name> whose `key` is in `frame`, and keep the others."""
    path = evaluation_dir(profile) / name
    if path.exists():
        old = pd.read_csv(path)
        frame = pd.concat([old[~old[key].isin(frame[key])], frame], ignore_index=True)
    return write_csv(profile, name, frame)


def write_json(profile, name: str, content) -> Path:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return write_text(evaluation_dir(profile) / name, text)


def read_json(profile, name: str):
    path = evaluation_dir(profile) / name
    if not path.exists():
        raise FileNotFoundError(f"{show(path)} is missing; run the notebook that writes it first (make run).")
    return json.loads(path.read_text(encoding="utf-8"))


def update_run(profile, **entries) -> Path:
    """Merge `entries` into evaluation/<profile>/run.json; an entry that is a dict is merged key by key."""
    path = evaluation_dir(profile) / "run.json"
    run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, value in entries.items():
        run[key] = {**run.get(key, {}), **value} if isinstance(value, dict) else value
    return write_json(profile, "run.json", run)


def write_figure(profile, name: str, figure) -> Path:
    """Write a figure to plots/<profile>/<name>: a PNG without a date, so that equal figures are equal files."""
    path = plots_dir(profile) / name
    return _replace(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which is put in place of `path` at the end: a killed run leaves no half folder."""
    temporary, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(profile, name: str, *parts) -> Path:
    """Save each part (model, adapter, tokenizer: anything with save_pretrained) into checkpoints/<profile>/<name>."""
    path = checkpoint_path(profile, name)
    with new_folder(path) as folder:
        for part in parts:
            part.save_pretrained(folder)
    return path


def require_checkpoint(profile, name: str) -> Path:
    """The path of a checkpoint; FileNotFoundError says which notebook makes it where it is missing."""
    path = checkpoint_path(profile, name)
    if not path.is_dir():
        raise FileNotFoundError(
            f"checkpoint {show(path)} is missing; run {MADE_BY.get(name, 'the notebook that makes it')} first "
            f"(profile {profile.name}), or `make run` for everything."
        )
    return path
