"""Checkpoints that must not be loaded: pickles, code and files from elsewhere, and those that are cut off."""

import json
import pickle
import shutil
from pathlib import Path

from rlhf import download, models, outputs, registry
from rlhf.evaluation.published import load_published_policy, load_published_reward
from rlhf.hub.pull import MANIFEST, pull
from rlhf.profiles import load_profile

import pytest
from ppo_stage import make
from safetensors.torch import save_file


class _RunsCode:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def edit(file: Path, **entries) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(content | entries), encoding="utf-8")


def pickle_alone(folder, trace):
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    for name in ("pytorch_model.bin", "model.pt", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(_RunsCode(trace)))


def code_of_its_own(folder, trace):
    (folder / "modeling_own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    edit(folder / "config.json", model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})


def tokenizer_of_its_own(folder, trace):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.Own", None]})


def shard_elsewhere(folder, trace):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    save_file({}, folder / "model-00001-of-00001.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"a": "../outside.safetensors"})


def shard_at_the_root(folder, trace):
    edit(folder / "model.safetensors.index.json", weight_map={"a": "/etc/hostname"})


def shard_missing(folder, trace):
    edit(folder / "model.safetensors.index.json", weight_map={"a": "model-00002-of-00002.safetensors"})


def weights_cut_off(folder, trace):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def weights_empty(folder, trace):
    (folder / "model.safetensors").write_bytes(b"")


def config_cut_off(folder, trace):
    file = folder / "config.json"
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")


FAULTS = {
    pickle_alone: r"has no \.safetensors file; .*pickles",
    code_of_its_own: r"asks in config\.json for code of its own \(auto_map\)",
    tokenizer_of_its_own: r"asks in tokenizer_config\.json for code of its own",
    shard_elsewhere: r"names a file outside of it in model\.safetensors\.index\.json: '\.\./outside\.safetensors'",
    shard_at_the_root: r"names a file outside of it .*'/etc/hostname'",
    shard_missing: r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json names",
    weights_cut_off: r"has a model\.safetensors that can't be read \(SafetensorError: .*it may be cut off",
    weights_empty: r"has a model\.safetensors that can't be read",
    config_cut_off: r"has a config\.json that can't be read \(JSONDecodeError: .*it may be cut off",
}
SPOILED = pytest.mark.parametrize(
    ("spoil", "message"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", "")
)


@pytest.fixture
def trace(tmp_path):
    """A file that is there once code of a checkpoint has run."""
    yield tmp_path / "code_has_run"
    assert not (tmp_path / "code_has_run").exists()


def test_a_sound_checkpoint_has_no_fault(base_checkpoint):
    assert download.fault_of(base_checkpoint) == ""


@SPOILED
def test_checkpoint_of_the_run_is_refused_by_name_before_anything_is_trained(profile_with_base, trace, spoil, message):
    spoil(outputs.checkpoint_path(profile_with_base, "base"), trace)
    for load in (models.load_tokenizer, models.load_base):
        with pytest.raises(ValueError, match=rf"checkpoint .*smoke/base {message}"):
            load(profile_with_base)


@SPOILED
def test_model_of_others_is_refused_by_name(base_checkpoint, tmp_path, monkeypatch, trace, spoil, message):
    folder = tmp_path / "theirs"
    shutil.copytree(base_checkpoint, folder)
    spoil(folder, trace)
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("RLHF_MODEL", str(folder))
    with pytest.raises(ValueError, match=rf"model '.*theirs' {message}"):
        models.prepare_base(load_profile("gpt2"))
    assert not (tmp_path / "outputs" / "checkpoints" / "gpt2" / "base").exists()


@SPOILED
def test_published_stages_of_others_are_refused_by_name(base_checkpoint, tmp_path, trace, spoil, message):
    loaders = {
        "sft_full_final": lambda: load_published_policy(tmp_path, "sft_full_final"),
        "reward_model_final": lambda: load_published_reward(tmp_path, str(base_checkpoint)),
    }
    for stage, load in loaders.items():
        folder = tmp_path / stage
        shutil.copytree(base_checkpoint, folder)
        spoil(folder, trace)
        with pytest.raises(ValueError, match=f"{stage} {message}"):
            load()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/etc", "..", ".", ""])
def test_name_of_a_checkpoint_that_leads_elsewhere_is_refused(profile, name):
    with pytest.raises(ValueError, match=r"is no name of a file in .*give a name without a folder"):
        outputs.checkpoint_path(profile, name)


@pytest.mark.parametrize("part", ["policy", "value", "optimizer", "random"])
@pytest.mark.parametrize("how", ["cut off", "missing"])
def test_checkpoint_of_ppo_that_is_cut_off_is_refused_and_changes_nothing(stage, tmp_path, part, how):
    trainer = make(stage, checkpoints=tmp_path)
    path = trainer.save()
    file = path / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-8]) if how == "cut off" else file.unlink()
    before = [p.detach().clone().fill_(1) for p in trainer.parameters]
    for p in trainer.parameters:
        p.data.fill_(1)
    with pytest.raises(ValueError, match=r"update_00000 can't be read .*resume from an earlier one"):
        trainer.resume(path)
    assert all(p.equal(old) for p, old in zip(trainer.parameters, before, strict=True))


def test_state_of_ppo_that_is_cut_off_is_refused(stage, tmp_path):
    path = make(stage, checkpoints=tmp_path).save()
    (path / "state.json").write_text((path / "state.json").read_text()[:-5])
    with pytest.raises(ValueError, match=r"update_00000 can't be read"):
        make(stage).resume(path)


@pytest.fixture
def repository(base_checkpoint, tmp_path) -> Path:
    """What `publish` makes, with the base in every folder."""
    folder = tmp_path / "repository"
    for checkpoint in {*registry.BY_CHECKPOINT, "ppo_aligned_final"}:
        shutil.copytree(base_checkpoint, folder / checkpoint)
    manifest = {"profile": "smoke", "seed": 0, "ppo_aligned_final": "ppo_trl_final", "by_adapters": False}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"examples": []}))
    return folder


def test_pulled_checkpoint_that_is_not_as_it_was_published_is_refused(profile, repository):
    with (repository / "sft_full_final" / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x01\x02\x03\x04\x05")
    with pytest.raises(ValueError, match=r"repository: sft_full_final: model.safetensors is not what was saved"):
        pull(profile, str(repository))
    assert not outputs.checkpoints_dir(profile).exists()


@pytest.mark.parametrize("spoil", [code_of_its_own, shard_elsewhere, weights_cut_off])
def test_pulled_checkpoint_with_a_fault_is_refused_before_anything_is_written(profile, repository, trace, spoil):
    spoil(repository / "sft_full_final", trace)
    with pytest.raises(ValueError, match=f"repository: sft_full_final {FAULTS[spoil]}"):
        pull(profile, str(repository))
    assert not outputs.checkpoints_dir(profile).exists()
