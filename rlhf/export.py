"""What other engines read: for OpenRLHF 0.11, whose PPO spreads its models and the sampling over many GPUs."""

import json
from pathlib import Path

from rlhf import data, models, outputs
from rlhf.adapters import HEAD
from rlhf.generation import encode_prompts
from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile
from rlhf.template import format_prompt

POLICY, REWARD_MODEL, PROMPTS, COMMAND = "policy", "reward_model", "prompts.jsonl", "train.sh"


def for_openrlhf(profile: Profile) -> Path:
    """Write outputs/export/<profile>/openrlhf: policy, reward model, prompts and the command that trains with them.

    The reward model has the names of weights that OpenRLHF's loader expects, those of transformers' classifiers, and
    the unit of the reward, by which the settings of PPO are scaled, as its mean and std. The prompts are texts in the
    template, so no chat template may be applied. Raises FileNotFoundError where the run has not come to notebook 3.1's
    training (or the ppo script's), which writes settings and unit down.
    """
    run, unit = outputs.read_json(profile, "run.json"), outputs.read_json(profile, "reward_unit.json")
    if "ppo_trl" not in run:
        raise FileNotFoundError("run.json lacks the settings of TRL's PPO; run 03_ppo_alignment/1_ppo_alignment.ipynb.")
    settings, tokenizer = Settings(**run["ppo_trl"]), models.load_tokenizer(profile)
    prompts = prompt_texts(tokenizer, data.training_prompts(profile, tokenizer, settings.max_prompt_tokens))
    policy, reward_model = models.whole_models(profile)
    for name, value in {"value_head_prefix": HEAD, "mean": 0.0, "std": unit["logits"]}.items():
        setattr(reward_model.config, name, value)
    with outputs.new_folder(outputs.root() / "export" / profile.name / "openrlhf") as folder:
        for name, model in ((POLICY, policy), (REWARD_MODEL, reward_model)):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / PROMPTS).write_text(rows, encoding="utf-8")
        (folder / COMMAND).write_text(command(settings, len(prompts), tokenizer.model_max_length), encoding="utf-8")
    return outputs.root() / "export" / profile.name / "openrlhf"


def prompt_texts(tokenizer, prompts: list[str]) -> list[str]:
    """The prompts in the template, each with BOS in front where the tokenizer puts it there: OpenRLHF adds none.

    It also reads what looks like a special token as one; a prompt that would so become other tokens than those of the
    fine-tuning is counted and left out. Raises ValueError where none is left.
    """
    expected = encode_prompts(tokenizer, prompts)
    start = tokenizer.bos_token if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""
    texts = [start + format_prompt(prompt) for prompt in prompts]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [text for text, ids, wanted in zip(texts, read, expected, strict=True) if ids == wanted]
    if not kept:
        raise ValueError(f"no prompt of {len(prompts)} is read by OpenRLHF as it was fine-tuned on.")
    if len(kept) < len(texts):
        print(f"prompts: {len(texts) - len(kept)} of {len(texts)} hold what would become a special token; left out")
    return kept


def command(settings: Settings, prompts: int, context: int) -> str:
    """A shell script that starts OpenRLHF's PPO on one machine; the settings have its names for them.

    There is none for missing_eos_penalty (its own penalty replaces the reward, and is not set), nor for the warm-up in
    updates.
    """
    episodes = settings.updates * settings.batch_size
    rate = settings.learning_rate
    options = {
        "actor.model_name_or_path": f"$here/{POLICY}",
        "reward.model_name_or_path": f"$here/{REWARD_MODEL}",
        "ds.value_head_prefix": HEAD,
        "reward.normalize_enable": "",
        "data.prompt_dataset": f"$here/{PROMPTS}",
        "data.input_key": "prompt",
        "data.max_samples": min(prompts, episodes),
        "data.max_len": min(context, settings.max_prompt_tokens + settings.max_new_tokens),
        "rollout.max_new_tokens": settings.max_new_tokens,
        "rollout.temperature": settings.temperature,
        "rollout.batch_size": settings.batch_size,
        "train.batch_size": settings.batch_size // settings.mini_batches,
        "train.max_epochs": settings.epochs,
        "train.num_episodes": -(-episodes // prompts),
        "train.seed": settings.seed,
        "actor.adam.lr": rate,
        "critic.adam.lr": settings.value_learning_rate or rate,
        "actor.adam.eps": settings.adam_epsilon,
        "critic.adam.eps": settings.adam_epsilon,
        "actor.eps_clip": settings.cliprange,
        "critic.value_clip": settings.cliprange_value,
        "algo.kl.init_coef": settings.kl_coef,
        "algo.advantage.gamma": settings.gamma,
        "algo.advantage.lambd": settings.lam,
        **{f"{model}.num_gpus_per_node": "$GPUS" for model in ("actor", "ref", "critic", "reward")},
        "vllm.num_engines": "$GPUS",
        "vllm.gpu_memory_utilization": 0.5,
        **dict.fromkeys(("train.colocate_all", "vllm.enable_sleep", "ds.enable_sleep"), ""),
        "actor.gradient_checkpointing_enable": "",
        "ds.zero_stage": 3,
        "ckpt.output_dir": "$here/ppo_aligned",
    }
    lines = [f"--{name}" + f' "{value}"' * (value != "") for name, value in options.items()]
    return (
        "#!/bin/sh\n"
        '# PPO by OpenRLHF 0.11 (pip install "openrlhf[vllm]"), all models on all GPUs of this machine.\n'
        'GPUS=${GPUS:-8}\nhere=$(cd "$(dirname "$0")" && pwd)\n'
        "python3 -m openrlhf.cli.train_ppo_ray \\\n  " + " \\\n  ".join(lines) + "\n"
    )
