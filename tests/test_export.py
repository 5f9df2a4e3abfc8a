"""What is exported is read back as OpenRLHF 0.11.2 reads it: names of weights, scores, prompts, the command."""

import json
import os
import shutil
import subprocess

from rlhf import data, export, models, outputs
from rlhf.generation import encode_prompts
from rlhf.reward import scoring
from rlhf.template import format_prompt

import pytest
import torch
from conftest import ppo_settings, stage_module
from datasets import load_dataset
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def settled(run, profile):
    """A finished run that may be written to, with the settings and the unit that notebook 3.1 writes down."""
    shutil.copytree(run, outputs.root())
    outputs.update_run(profile, ppo_trl=vars(ppo_settings(profile, "trl")))
    outputs.write_json(profile, "reward_unit.json", {"logits": 1.7})
    return profile


def read_reward_model(folder):
    """As its loader does: the architecture's trunk and a head that the configuration names, and no other weight."""
    config = AutoConfig.from_pretrained(folder)
    trunk = AutoModel._model_mapping[type(config)]

    class RewardModel(trunk.__base__):
        def __init__(self, config):
            super().__init__(config)
            setattr(self, self.base_model_prefix, trunk(config))
            setattr(self, config.value_head_prefix, torch.nn.Linear(config.hidden_size, 1, bias=False))
            self.post_init()

    model, loading = RewardModel.from_pretrained(folder, config=config, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def its_scores(model, rows, pad):
    """Its forward pass: positions from the mask, the value at the last token that is not padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    trunk = getattr(model, model.base_model_prefix)
    states = trunk(ids, attention_mask=mask, position_ids=positions)["last_hidden_state"]
    values = getattr(model, model.config.value_head_prefix)(states).squeeze(-1)
    return values[torch.arange(len(rows)), mask.sum(1) - 1]


def test_exported_reward_model_scores_as_the_project_does(settled):
    folder = export.for_openrlhf(settled) / export.REWARD_MODEL
    tokenizer, rows = models.load_tokenizer(settled), data.load_preferences(settled)["test"].select(range(6))
    texts = list(rows["prompt"]), list(rows["chosen"]), [True, False] * 3
    wanted = scoring.score(models.load_reward_model(settled), tokenizer, *texts)
    model, pad = read_reward_model(folder), AutoTokenizer.from_pretrained(folder).pad_token_id
    assert its_scores(model, scoring.encode(tokenizer, *texts), pad).numpy() == pytest.approx(wanted, abs=1e-5)
    assert wanted.std() > 0.01
    assert (model.config.mean, model.config.std) == (0.0, 1.7)


def test_exported_policy_is_the_fine_tuned_one(settled):
    policy = AutoModelForCausalLM.from_pretrained(export.for_openrlhf(settled) / export.POLICY)
    wanted = models.load_policy(settled, "sft_full").state_dict()
    assert policy.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in policy.state_dict().items())


def test_run_by_adapters_is_exported_with_them_merged_into_the_whole_base(settled):
    qlora = models.load_policy(settled, "sft_qlora").state_dict()
    outputs.update_run(settled, by_adapters=True)
    policy, reward_model = models.whole_models(settled)
    assert all(torch.equal(value, qlora[name]) for name, value in policy.state_dict().items())
    adapter = outputs.checkpoint_path(settled, "reward_model_final")
    config = AutoConfig.from_pretrained(outputs.checkpoint_path(settled, "base"), num_labels=1)
    plain = PeftModel.from_pretrained(type(reward_model).from_pretrained(config._name_or_path, config=config), adapter)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.allclose(reward_model(ids).logits, plain.eval()(ids).logits, atol=1e-5)


def test_exported_prompts_are_read_as_the_tokens_that_the_policy_was_fine_tuned_on(settled, own_datasets_cache):
    file = export.for_openrlhf(settled) / export.PROMPTS
    rows = load_dataset("json", data_files=str(file))["train"]["prompt"]
    tokenizer = models.load_tokenizer(settled)
    questions = data.training_prompts(settled, tokenizer, 256)
    assert list(rows) == [format_prompt(question) for question in questions]
    read = [tokenizer(text=row, add_special_tokens=False)["input_ids"] for row in rows]
    assert read == encode_prompts(tokenizer, questions)


def test_bos_is_in_the_text_where_the_tokenizer_adds_it_and_a_special_token_in_a_prompt_is_left_out(tokenizer, capsys):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    texts = export.prompt_texts(tokenizer, ["Why?", f"What is {tokenizer.eos_token}?"])
    assert texts == [tokenizer.bos_token + format_prompt("Why?")]
    assert "1 of 2 hold what would become a special token" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no prompt of 1"):
        export.prompt_texts(tokenizer, [tokenizer.eos_token])


def test_command_names_what_was_written_and_the_settings(settled, tmp_path):
    folder, settings = export.for_openrlhf(settled), ppo_settings(settled, "trl")
    (tmp_path / "python3").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "python3").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "4"}
    done = subprocess.run(["sh", folder / export.COMMAND], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[:2] == ["-m", "openrlhf.cli.train_ppo_ray"]

    def value(option):
        return words[words.index(f"--{option}") + 1]

    for option in ("actor.model_name_or_path", "reward.model_name_or_path", "data.prompt_dataset"):
        assert os.path.exists(value(option)), option
    row = json.loads((folder / export.PROMPTS).read_text(encoding="utf-8").split("\n")[0])
    assert list(row) == [value("data.input_key")]
    assert "--data.apply_chat_template" not in words  # the template is in the text
    assert value("actor.num_gpus_per_node") == value("vllm.num_engines") == "4"
    assert float(value("actor.adam.lr")) == settings.learning_rate
    assert float(value("algo.kl.init_coef")) == settings.kl_coef
    per_update = int(value("rollout.batch_size"))
    answers = int(value("data.max_samples")) * int(value("train.num_episodes"))
    assert per_update == settings.batch_size and answers >= settings.updates * settings.batch_size
    assert per_update // int(value("train.batch_size")) == settings.mini_batches


def test_run_without_settings_of_ppo_says_which_notebook_writes_them(settled):
    (outputs.evaluation_dir(settled) / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"1_ppo_alignment\.ipynb"):
        export.for_openrlhf(settled)


def test_engine_that_is_not_known_is_named(capsys):
    assert stage_module("scripts/export.py")["main"](["verl"]) == 2
    assert "error: FOR='verl' is no engine that is known; set it to openrlhf." in capsys.readouterr().err
