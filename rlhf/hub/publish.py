"""Publishing a run's checkpoints as one repository of the Hugging Face Hub."""

import json
import shutil
import tempfile
from pathlib import Path

from rlhf import outputs
from rlhf.download import as_one_line
from rlhf.hub import cards
from rlhf.hub.pull import MANIFEST, read_manifest, safe_files
from rlhf.profiles import Profile

from huggingface_hub import create_repo, get_token, upload_folder


def publish(profile: Profile, repo_id: str, private: bool = True, dry_run: bool = True) -> dict[str, int]:
    """Upload the checkpoints of a run as subfolders of one repository, with a model card for each and for all.

    Returns the bytes of each file. A dry run uploads nothing and needs no token. Only SAFE_FILES go up, and no path of
    this machine in them. Raises ValueError for a name that is none or a link that leads out of the checkpoints,
    FileNotFoundError for a stage that has not run, and PermissionError without a token.
    """
    if not cards.is_repository(repo_id):
        raise ValueError(f"the Hub allows no repository {repo_id!r}; give a name like user/rlhf-gpt2.")
    if not dry_run and get_token() is None:
        raise PermissionError("no token of the Hub was found; run `hf auth login` once, or set HF_TOKEN.")
    with tempfile.TemporaryDirectory() as folder:
        files = assemble(profile, repo_id, Path(folder))
        if not dry_run:
            message = f"Checkpoints of the {profile.name} profile"
            with as_one_line(
                f"{repo_id} can't be published", "check connection, token and name, and publish it again."
            ):
                create_repo(repo_id, private=private, exist_ok=True)
                upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message)
    return files


def assemble(profile: Profile, repo_id: str, folder: Path) -> dict[str, int]:
    """What is published, put into an empty folder. Returns the bytes of each file by its path in it."""
    run = cards.read_run(profile)
    for key, model in cards.published(profile, run).items():
        source, target = outputs.require_checkpoint(profile, model.checkpoint), folder / model.checkpoint
        target.mkdir()
        for file in safe_files(source, outputs.checkpoints_dir(profile)):
            shutil.copyfile(file, target / file.name)
        config = target / "adapter_config.json"
        if config.exists():  # PEFT notes where the base lay on this machine
            on_policy = key == "reward_model" and not run.get("by_adapters")
            base = None if on_policy else cards.hub_name(run["settings"]["model"])
            settings = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base or repo_id}
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        outputs.write_manifest(target)
        cards.card(profile, repo_id, key).save(target / "README.md")
    cards.card(profile, repo_id).save(folder / "README.md")
    manifest = {"profile": profile.name, "seed": run["seed"], "ppo_aligned_final": run["ppo_aligned_final"]}
    manifest["by_adapters"] = bool(run.get("by_adapters"))
    manifest["examples"] = [example["prompt"] for example in outputs.read_json(profile, "qualitative.json")]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    read_manifest(repo_id, folder)  # what can't be pulled is not published
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
