"""Pulling published checkpoints. What a repository says is checked before anything is written: it is not trusted."""

import json
import os
import reprlib
import shutil
from fnmatch import fnmatch
from pathlib import Path

from rlhf import outputs, registry
from rlhf.download import SAFE_FILES, fault_of, fetch
from rlhf.profiles import PROFILES, Profile

MANIFEST = "rlhf.json"  # at the root of a published repository: its profile, which policy is the aligned one, prompts
ALIGNED = [registry.MODELS[key].checkpoint for key in registry.ALIGNED_CANDIDATES]
MOST_EXAMPLES, LONGEST_EXAMPLE = 50, 10_000  # characters


def pull(profile: Profile, repo_id: str, revision: str | None = None) -> list[str]:
    """Put published checkpoints where a run of the profile would have written them. Returns their names.

    repo_id: a repository that `publish` made, or a local folder laid out like it; run.json notes which, and its commit.
    A base that is not published again is fetched from where it is. Raises ConnectionError where something can't be
    fetched, and before anything is written ValueError for a repository of another profile, with a checkpoint missing
    or refused (download.fault_of) or a link that leads out of it, and for outputs that hold a run of their own.
    """
    _refuse_to_replace_a_run(profile)
    source, name = fetch(repo_id, revision), outputs.show_name(repo_id)
    manifest = read_manifest(repo_id, source)
    for entry, ours in (("profile", profile.name), ("seed", profile.seed)):  # the lab's data depend on both
        if (theirs := manifest[entry]) != ours:
            raise ValueError(f"{name} was made with {entry} {theirs}, not {ours}; set RLHF_{entry.upper()}={theirs}.")
    copied = manifest["ppo_aligned_final"]
    folders = {model.checkpoint: source / model.checkpoint for model in registry.MODELS.values()}
    folders[copied] = source / "ppo_aligned_final"
    for key in registry.BY_COMMAND:  # not in every run
        if not (folder := folders[registry.MODELS[key].checkpoint]).exists():
            del folders[folder.name]
    if manifest["by_adapters"]:
        del folders["sft_full_final"]
    files = {checkpoint: safe_files(folder, source) for checkpoint, folder in folders.items()}
    if fetch_base := not (profile.lab or files["base"]):
        del files["base"]
    if missing := [key for key, found in files.items() if not any(file.suffix == ".safetensors" for file in found)]:
        raise ValueError(f"{name} lacks {', '.join(missing)}; publish it again after a complete run.")
    for checkpoint in files:
        if fault := fault_of(folders[checkpoint]):
            raise ValueError(f"{name}: {checkpoint} {fault}")
        if fault := outputs.fault_of(folders[checkpoint]):
            raise ValueError(f"{name}: {checkpoint}: {fault}; fetch or publish it again.")
    commit = source.name if source.parent.name == "snapshots" else None  # as the Hub's cache lays it out
    # Noted first: what an interrupted pull leaves behind must not pass for a run of its own.
    pulled = {"from": name, "commit": commit}
    outputs.update_run(profile, pulled=pulled, ppo_aligned_final=copied, examples=manifest["examples"])
    if fetch_base:
        from rlhf import models  # it takes seconds, which only this case needs

        models.prepare_base(profile)
    outputs.update_run(profile, by_adapters=manifest["by_adapters"])  # theirs, whatever would fit here
    for checkpoint, found in files.items():
        with outputs.new_folder(outputs.checkpoint_path(profile, checkpoint)) as folder:
            for file in found:
                shutil.copyfile(file, folder / file.name)
            outputs.write_manifest(folder)  # of what was copied: theirs may name files that are no weights or settings
    for table in ("rouge.csv", "behaviour.csv"):  # they add up over notebooks, and tell of other checkpoints
        (outputs.evaluation_dir(profile) / table).unlink(missing_ok=True)
    return list(files)


def _refuse_to_replace_a_run(profile: Profile) -> None:
    run = outputs.evaluation_dir(profile) / "run.json"
    own = [name for name in registry.BY_CHECKPOINT if outputs.checkpoint_path(profile, name).exists()]
    if own and not (run.exists() and "pulled" in outputs.read_json(profile, "run.json")):
        raise ValueError(
            f"{outputs.show(outputs.checkpoints_dir(profile))} holds {', '.join(own)} of a run of its own, which "
            f"pulling would replace; pull into another folder: RLHF_OUTPUTS=<another folder>."
        )


def read_manifest(repo_id: str, source: Path) -> dict:
    """What a repository, fetched to `source`, says of itself: profile, seed, ppo_aligned_final, by_adapters, examples.

    Raises ValueError, which names the repository and the entry, for anything that `publish` would not have written.
    """
    name, remedy = outputs.show_name(repo_id), "give a repository that `make publish` made."
    if source / MANIFEST not in safe_files(source, source):
        raise ValueError(f"{name} has no {MANIFEST}; {remedy}")
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} has a {MANIFEST} that can't be read ({type(error).__name__}); {remedy}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{name} has a {MANIFEST} with {reprlib.repr(manifest)}, not with a JSON object; {remedy}")
    allowed = {
        "profile": (lambda value: value in PROFILES, f"one of {', '.join(PROFILES)}"),
        "seed": (lambda value: type(value) is int and 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"),
        "ppo_aligned_final": (lambda value: value in ALIGNED, f"one of {', '.join(ALIGNED)}"),
        "by_adapters": (lambda value: isinstance(value, bool), "true or false"),
        "examples": (_are_examples, f"at most {MOST_EXAMPLES} texts of at most {LONGEST_EXAMPLE:,} characters"),
    }
    for entry, (is_allowed, description) in allowed.items():
        value = manifest.get(entry)
        if not is_allowed(value):
            raise ValueError(f"{name} has {entry}={reprlib.repr(value)} in {MANIFEST}, not {description}; {remedy}")
    return {entry: manifest[entry] for entry in allowed}


def _are_examples(value) -> bool:
    if not isinstance(value, list) or len(value) > MOST_EXAMPLES:
        return False
    texts = all(isinstance(text, str) and len(text) <= LONGEST_EXAMPLE for text in value)
    return texts and all(
        text.encode("utf-8", "ignore").decode() == text for text in value
    )  # no half of a surrogate pair


def safe_files(folder: Path, source: Path) -> list[Path]:
    """The files right in `folder` that may be copied: of SAFE_FILES, and inside of `source`.

    The Hub's cache holds links into its own folder blobs/, which count as inside. Raises ValueError for any other link
    that leads out of `source`.
    """
    inside = [source]
    if source.parent.name == "snapshots" and source.parents[1].name.startswith("models--"):
        inside.append(source.parents[1] / "blobs")
    files = sorted(file for file in folder.glob("*") if any(fnmatch(file.name, pattern) for pattern in SAFE_FILES))
    for file in files:
        target = Path(os.path.realpath(file))  # unlike Path.resolve, it also answers for links in a circle
        if not any(target.is_relative_to(os.path.realpath(place)) for place in inside):
            where = outputs.show_name(str(source))
            raise ValueError(
                f"{folder.name}/{file.name} is a link that leads out of {where}; put the file itself in its place."
            )
    return [file for file in files if file.is_file()]
