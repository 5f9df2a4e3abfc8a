"""The Hugging Face Hub: whether it can be reached, what is fetched from it, and publishing a run's checkpoints."""

import argparse
import json
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from rlhf import cards, outputs
from rlhf.profiles import load_profile

import datasets
import httpx2
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

MANIFEST = "rlhf.json"  # at the root of a published repository: its profile, which policy is the aligned one, prompts
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.md")  # nothing that can hold code: no pickle, no script


def go_offline_without_connection(seconds: float = 5) -> None:
    """Tell the Hub's clients to use their cache alone if the Hub does not answer within `seconds`.

    Without this each of their requests is retried for up to a minute before it fails.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except (httpx2.HTTPError, OSError):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder with the files of a model repository: a local one as it is, or the Hub's in the Hub's own cache.

    Of a Hub repository only SAFE_FILES are fetched; what an interrupted download had is not fetched again. Raises
    ConnectionError where it can't be had.
    """
    if Path(name).is_dir():
        return Path(name)
    go_offline_without_connection()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(SAFE_FILES)))
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"repository {name!r}{at} can't be fetched ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            f"check its name and the connection, or give a local folder of the same layout."
        ) from error


def publish(profile, repo_id: str, private: bool = True, dry_run: bool = True) -> dict[str, int]:
    """Upload the checkpoints of a run as subfolders of one repository, with a model card for each and for all.

    Returns the bytes of each file. A dry run uploads nothing and needs no token. Only SAFE_FILES go up, and no path of
    this machine in them. Raises ValueError for a name that is none, FileNotFoundError for a stage that has not run, and
    PermissionError without a token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r}: {error}; give a name like user/rlhf-gpt2.") from error
    if "/" not in repo_id:
        raise ValueError(f"repository {repo_id!r} has no owner; give a name like user/rlhf-gpt2.")
    if not dry_run and get_token() is None:
        raise PermissionError("no token of the Hub was found; run `hf auth login` once, or set HF_TOKEN.")
    with tempfile.TemporaryDirectory() as folder:
        files = assemble(profile, repo_id, Path(folder))
        if not dry_run:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            message = f"Checkpoints of the {profile.name} profile"
            api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message)
    return files


def assemble(profile, repo_id: str, folder: Path) -> dict[str, int]:
    """What is published, put into an empty folder. Returns the bytes of each file by its path in it."""
    stages = cards.published_stages(profile)
    for stage in stages:
        source = outputs.require_checkpoint(profile, stage)
        target = folder / stage
        target.mkdir()
        _copy_safe_files(source, target)
        config = target / "adapter_config.json"
        if config.exists():  # PEFT notes where the base lay on this machine
            settings = json.loads(config.read_text(encoding="utf-8"))
            own = stage == "reward_model_final" or profile.lab
            settings["base_model_name_or_path"] = repo_id if own else outputs.show_name(profile.model)
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        cards.card(profile, repo_id, stage).save(target / "README.md")
    cards.card(profile, repo_id).save(folder / "README.md")
    manifest = {"profile": profile.name, "seed": profile.seed, "ppo_aligned_final": cards.aligned(profile)}
    manifest["examples"] = [example["prompt"] for example in outputs.read_json(profile, "qualitative.json")]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def read_manifest(repo_id: str, source: Path) -> dict:
    """What a repository, fetched to `source`, says of itself. Raises ValueError where it says nothing."""
    try:
        return json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{outputs.show_name(repo_id)} has no {MANIFEST}; give a repository that `make publish` made."
        ) from error


def _copy_safe_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if any(fnmatch(file.name, pattern) for pattern in SAFE_FILES):
            shutil.copyfile(file, target / file.name)


def pull(profile, repo_id: str, revision: str | None = None) -> list[str]:
    """Put published checkpoints where a run of the profile would have written them. Returns the names of the stages.

    repo_id: a repository that `publish` made, or a local folder laid out like it. Which one and which revision is
    noted in run.json. Raises ConnectionError where it can't be fetched, and ValueError where it is of another profile
    or lacks a stage, before anything is written.
    """
    source = fetch(repo_id, revision)
    manifest = read_manifest(repo_id, source)
    for name, ours in (("profile", profile.name), ("seed", profile.seed)):  # the lab's data depend on both
        if manifest[name] != ours:
            raise ValueError(
                f"{outputs.show_name(repo_id)} was made with {name} {manifest[name]}, not {ours}; "
                f"set RLHF_{name.upper()}={manifest[name]}."
            )
    copied = manifest["ppo_aligned_final"]
    places = {stage: source / stage for stage in cards.STAGES if stage != "base" or profile.lab}
    places[copied] = source / "ppo_aligned_final"
    missing = [stage for stage, path in places.items() if not list(path.glob("*.safetensors"))]
    if missing:
        raise ValueError(
            f"{outputs.show_name(repo_id)} lacks {', '.join(missing)}; publish it again after a complete run."
        )
    for stage, path in places.items():
        with outputs.new_folder(outputs.checkpoint_path(profile, stage)) as folder:
            _copy_safe_files(path, folder)
    for name in ("rouge.csv", "behaviour.csv"):  # they add up over notebooks, and tell of other checkpoints
        (outputs.evaluation_dir(profile) / name).unlink(missing_ok=True)
    commit = source.name if source.parent.name == "snapshots" else None  # as the Hub's cache lays it out
    pulled = {"from": outputs.show_name(repo_id), "commit": commit}
    outputs.update_run(profile, pulled=pulled, ppo_aligned_final=copied, examples=manifest["examples"])
    return list(places)


def main(arguments: list[str] | None = None) -> int:
    """make publish and make run FROM=hub:...; exit status 2 where it can't be done."""
    parser = argparse.ArgumentParser(prog="python -m rlhf.hub", description="Publish or pull the checkpoints of a run.")
    parser.add_argument("command", choices=("publish", "pull"))
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--upload", action="store_true", help="publish: really upload; without it, show what would be")
    parser.add_argument("--public", action="store_true", help="publish: for everyone to see")
    parser.add_argument("--revision", help="pull: a branch, tag or commit")
    options = parser.parse_args(arguments)
    try:
        profile = load_profile()
        if options.command == "pull":
            stages = pull(profile, options.repository, options.revision)
            print(f"pulled {', '.join(stages)}")
            return 0
        files = publish(profile, options.repository, private=not options.public, dry_run=not options.upload)
    except (OSError, ValueError, HfHubHTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, size in files.items():
        print(f"{size / 1e6:10.3f} MB  {name}")
    total = f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB"
    who = "everyone" if options.public else "you alone"
    print(f"{total} {'are now in' if options.upload else 'would go to'} {options.repository}, visible to {who}.")
    if not options.upload:
        print("Nothing was uploaded; add UPLOAD=1 to do it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
