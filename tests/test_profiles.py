"""Profiles: chosen by name or environment, frozen, and refused with a clear message where a setting is wrong."""

import dataclasses
import os
import random
import warnings

from rlhf import outputs, profiles
from rlhf.profiles import PROFILES, load_profile, recipe_profile, variable_of

import numpy as np
import pytest
import torch


def settings_of(value, path=""):
    """Every setting of a profile as (path, value), the nested ones too."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from settings_of(inner, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", inner


def test_there_are_four_profiles_and_each_loads_under_its_name():
    assert PROFILES == ("smoke", "lab", "gpt2", "larger")
    assert [load_profile(name).name for name in PROFILES] == list(PROFILES)


@pytest.mark.parametrize(("cuda", "name"), [(False, "lab"), (True, "gpt2")])
def test_default_is_lab_without_cuda_and_gpt2_with_it(monkeypatch, cuda, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert load_profile().name == name


def test_environment_chooses_the_profile_and_an_argument_goes_before_it(monkeypatch):
    monkeypatch.setenv("RLHF_PROFILE", " larger ")
    assert load_profile().name == "larger"
    assert load_profile("smoke").name == "smoke"


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_unknown_name_is_refused_and_the_known_ones_are_listed(monkeypatch, where):
    monkeypatch.setenv("RLHF_PROFILE", "huge")
    with pytest.raises(ValueError, match=r"'huge'.*smoke, lab, gpt2, larger"):
        load_profile("huge" if where == "argument" else None)


@pytest.mark.parametrize("name", PROFILES)
def test_no_setting_can_be_changed(name):
    profile = load_profile(name)
    nested = [profile.lab, profile.lab.pretraining] if profile.lab else []
    for part in (profile, profile.sft.lora, profile.decoding, *nested):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.__setattr__(dataclasses.fields(part)[0].name, None)
    hash(load_profile(name))  # a list or dict inside could be changed, and has no hash


@pytest.mark.parametrize("text", ["ten", "-3", "1.5", "1e3"])
@pytest.mark.parametrize("variable", ["RLHF_MAX_STEPS", "RLHF_SEED", "RLHF_THREADS"])
def test_number_that_is_none_is_refused_by_the_name_of_its_variable(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=f"{variable}='{text}'"):
        load_profile("smoke")


@pytest.mark.parametrize("variable", ["RLHF_MAX_STEPS", "RLHF_THREADS"])
def test_zero_steps_or_threads_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    with pytest.raises(ValueError, match=variable):
        load_profile("smoke")


def test_zero_is_a_seed(monkeypatch):
    monkeypatch.setenv("RLHF_SEED", "0")
    assert load_profile("gpt2").seed == 0


@pytest.mark.parametrize("name", PROFILES)
def test_numbers_of_the_environment_replace_those_settings_and_no_other(monkeypatch, name):
    monkeypatch.delenv("RLHF_THREADS", raising=False)
    before = dict(settings_of(load_profile(name)))
    for field, value in (("MAX_STEPS", "7"), ("SEED", "1234"), ("THREADS", " 3 ")):
        monkeypatch.setenv(f"RLHF_{field}", value)
    after = dict(settings_of(load_profile(name)))
    expected = {"max_steps": 7, "seed": 1234, "threads": 3, "eval_prompts": min(before["eval_prompts"], 56)}
    assert {k: after[k] for k in after if after[k] != before[k]} == {
        k: expected[k] for k in expected if expected[k] != before[k]
    }


def test_empty_variables_count_as_unset(monkeypatch):
    before = load_profile("gpt2")
    for field in ("MODEL", "DATASET", "PUBLISHED", "MAX_STEPS", "SEED"):
        monkeypatch.setenv(f"RLHF_{field}", " ")
    assert load_profile("gpt2") == before


@pytest.mark.parametrize("name", ["smoke", "lab"])
@pytest.mark.parametrize("field", ["MODEL", "DATASET", "PUBLISHED"])
def test_profile_that_makes_its_own_model_and_data_refuses_others(monkeypatch, name, field):
    monkeypatch.setenv(f"RLHF_{field}", "openai-community/gpt2")
    with pytest.raises(ValueError, match=rf"RLHF_{field}.*{name}.*RLHF_PROFILE=gpt2"):
        load_profile(name)


@pytest.mark.parametrize(
    "value",
    [
        "./missing",
        "/no/such/folder",
        "data/missing.jsonl",
        "missing.csv",
        "a/x.tsv",
        "x.parquet",
        "a/x.jsonl.zst",
        "x.json.gz",
        "a/b/c",
        "~/x",
    ],
)
@pytest.mark.parametrize("field", ["MODEL", "DATASET", "PUBLISHED"])
def test_missing_local_path_is_refused_by_name(monkeypatch, field, value):
    monkeypatch.setenv(f"RLHF_{field}", value)
    with pytest.raises(ValueError, match=f"RLHF_{field}='{value}'.*no such file"):
        load_profile("gpt2")


def test_hub_names_are_taken_as_they_are(monkeypatch):
    monkeypatch.setenv("RLHF_MODEL", "openai-community/gpt2-large")
    monkeypatch.setenv("RLHF_DATASET", "Anthropic/hh-rlhf")
    profile = load_profile("gpt2")
    assert (profile.model, profile.dataset) == ("openai-community/gpt2-large", "Anthropic/hh-rlhf")


def test_local_path_becomes_absolute_so_that_every_notebook_finds_it(monkeypatch, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    monkeypatch.setenv("RLHF_DATASET", "pairs.jsonl")
    monkeypatch.setenv("RLHF_MODEL", "./model")
    profile = load_profile("gpt2")
    assert (profile.model, profile.dataset) == (str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize("name", PROFILES)
def test_settings_fit_together(name):
    profile = load_profile(name)
    assert profile.sft.warmup_steps >= 0 and profile.sft.evaluations >= 1 and 0 < profile.sft.search_share <= 1
    for rates in (profile.sft.full_learning_rates, profile.sft.qlora_learning_rates):
        assert len(set(rates)) == len(rates) >= 2  # one rate would not be a choice
    assert (profile.lab is None) == (profile.model != "lab") == (profile.dataset != "lab")
    if profile.lab:
        assert profile.lab.width % profile.lab.heads == 0
        pretraining = profile.lab.pretraining
        assert 0 < pretraining.tokens <= profile.lab.context and 0 < pretraining.learning_rate < 1
        assert min(pretraining.steps, pretraining.batch_size, profile.lab.documents) > 0
        assert max(profile.sft.max_length, profile.reward.max_length) <= profile.lab.context
        assert profile.eval_prompts <= profile.lab.pairs[2]


def test_base_of_the_lab_is_the_shipped_one_and_that_of_smoke_is_not():
    assert {name: load_profile(name).lab.pretrained for name in ("smoke", "lab")} == {"smoke": False, "lab": True}


def test_tables_within_tables_become_settings_of_their_own():
    lab = load_profile("lab")
    assert isinstance(lab.lab.pretraining, profiles.PretrainingSettings)
    assert isinstance(lab.sft.lora, profiles.LoraSettings)


def test_gpt2_profile_decodes_as_published():
    decoding = load_profile("gpt2").decoding
    assert (decoding.num_beams, decoding.beam_new_tokens, decoding.repetition_penalty) == (3, 100, 1.2)


@pytest.fixture
def environment_restored(monkeypatch):
    for name in ("TRL_EXPERIMENTAL_SILENCE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


@pytest.mark.usefixtures("environment_restored")
def test_set_up_seeds_every_generator_and_sets_the_threads(profile):
    drawn = []
    for _ in range(2):
        profiles.set_up(dataclasses.replace(profile, seed=11, threads=1))
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        assert torch.get_num_threads() == 1
    assert drawn[0] == drawn[1]
    profiles.set_up(dataclasses.replace(profile, seed=12))
    assert drawn[0] != (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.usefixtures("environment_restored")
def test_a_warning_names_no_place(profile):
    profiles.set_up(profile)
    place = str(outputs.ROOT / "rlhf" / "plots.py")
    shown = warnings.formatwarning("a glyph is missing", UserWarning, place, 146, line="x")
    assert shown == "UserWarning: a glyph is missing\n"


def test_set_up_refuses_outputs_that_cannot_be_written(profile, tmp_path, monkeypatch):
    blocked = tmp_path / "a_file"
    blocked.write_text("in the way")
    monkeypatch.setenv("RLHF_OUTPUTS", str(blocked))
    with pytest.raises(PermissionError, match=r"a_file.*RLHF_OUTPUTS"):
        profiles.set_up(profile)


@pytest.mark.usefixtures("environment_restored")
def test_set_up_makes_the_folders_of_the_outputs(profile):
    profiles.set_up(profile)
    folders = outputs.evaluation_dir(profile), outputs.plots_dir(profile), outputs.logs_dir(profile)
    assert all(folder.is_dir() for folder in folders)


def test_setting_that_no_profile_has_is_refused_by_name():
    for table in ({"pairs": [1, 2, 3], "layeers": 3}, {"pretraining": {"layeers": 3}}):
        with pytest.raises(TypeError, match="layeers"):
            profiles._built(profiles.LabSettings, table)


def test_profile_that_is_based_on_another_takes_what_it_does_not_say(monkeypatch):
    lab, smoke = load_profile("lab"), load_profile("smoke")
    assert smoke.sft.lora == lab.sft.lora and smoke.sft.batch_size != lab.sft.batch_size
    assert smoke.lab.context == lab.lab.context and smoke.lab.layers != lab.lab.layers
    assert smoke.lab.pretraining == lab.lab.pretraining
    assert load_profile("larger").sft.lora.targets == "all-linear" and load_profile("larger").sft.lora.r == 16


def test_recipe_has_a_profile_for_its_size_and_a_variable_for_its_data(monkeypatch, tmp_path):
    assert "sentiment" not in PROFILES
    assert recipe_profile("sentiment") == "sentiment"
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    assert recipe_profile("sentiment") == "sentiment_smoke"
    for name in ("sentiment", "sentiment_smoke"):
        monkeypatch.setenv("RLHF_SST2", str(tmp_path))
        profile = load_profile(name)
        assert profile.dataset == str(tmp_path) and profile.recipe == variable_of(profile, "dataset") == "RLHF_SST2"
        assert variable_of(profile, "model") == "RLHF_MODEL"
    assert load_profile("sentiment").model == "openai-community/gpt2"
    assert recipe_profile("alpaca") == "alpaca_smoke"
    assert variable_of(load_profile("alpaca"), "dataset") == "RLHF_ALPACA"


def test_recipe_refuses_what_it_does_not_have(monkeypatch):
    with pytest.raises(ValueError, match=r"no recipe 'lab'; choose one of sentiment"):
        recipe_profile("lab")
    monkeypatch.setenv("RLHF_DATASET", "some/pairs")
    with pytest.raises(ValueError, match=r"RLHF_DATASET is set, but the data of this recipe is RLHF_SST2"):
        load_profile("sentiment")
    monkeypatch.setenv("RLHF_PROFILE", "gpt2")
    with pytest.raises(ValueError, match=r"RLHF_PROFILE='gpt2': a recipe has its own settings"):
        recipe_profile("sentiment")
