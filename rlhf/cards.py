"""Model cards in the Hub's format, filled from a run's CSVs: what was trained, on what, how well, how to load it."""

import dataclasses
import json
from typing import NamedTuple

from rlhf import metrics, outputs
from rlhf.profiles import Profile
from rlhf.template import TEMPLATE

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData


class Stage(NamedTuple):
    """A checkpoint as its card shows it."""

    model: str  # its name in the CSVs
    title: str
    about: str
    settings: str | None = None  # the part of the profile that it was trained with
    adapter: bool = False


STAGES = {
    "base": Stage(
        "base", "Base model", "The small GPT-2 that the others start from, pretrained on generated text.", "lab"
    ),
    "sft_full_final": Stage(
        "sft_full", "Fully fine-tuned policy", "Supervised fine-tuning of all weights on the chosen answers.", "sft"
    ),
    "sft_qlora_final": Stage(
        "sft_qlora",
        "QLoRA fine-tuned policy",
        "A LoRA adapter, trained over a 4-bit base on the same data, evaluated merged into the float32 base.",
        "sft",
        adapter=True,
    ),
    "reward_model_final": Stage(
        "reward_model",
        "Reward model",
        "A LoRA adapter with its score head, on `sft_full_final`: one logit for a prompt and an answer, higher is "
        "better. Rewards of two reward models can't be compared.",
        "reward",
        adapter=True,
    ),
    "ppo_trl_final": Stage("ppo", "Policy of PPO by TRL", "PPO by TRL 1.12.0, from `sft_full_final`."),
    "ppo_scratch_final": Stage("ppo_scratch", "Policy of PPO from scratch", "PPO by the project's own trainer."),
    "ppo_aligned_final": Stage(
        "", "Aligned policy", "The better of two runs of PPO from `sft_full_final`, chosen on the validation split."
    ),
}
METRICS = {
    "rouge1": ("rouge", "ROUGE-1"),
    "rouge2": ("rouge", "ROUGE-2"),
    "rougeL": ("rouge", "ROUGE-L"),
    "accuracy": ("accuracy", "preference accuracy"),
}
LIMITS = (
    "It is a small model for study, not for use. It writes fluent text that is often wrong, has had no safety "
    "training, and knows English only. The reward that it was trained on is an approximation: what that could not see, "
    "PPO had no reason to keep."
)
LAB_LIMITS = " Model and data are generated: it answers how-to questions of a small artificial world and nothing else."
POLICY = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained("{repo}", subfolder="{stage}")
tokenizer = AutoTokenizer.from_pretrained("{repo}", subfolder="{stage}")
generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
prompt = "### Instruction:\\nHow do I descale a kettle?\\n\\n### Response:\\n"
print(generate(prompt, max_new_tokens=96, do_sample=False, return_full_text=False)[0]["generated_text"])
```"""
REWARD = """```python
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

policy = AutoModelForSequenceClassification.from_pretrained("{repo}", subfolder="sft_full_final", num_labels=1)
reward_model = PeftModel.from_pretrained(policy, "{repo}", subfolder="reward_model_final").eval()
tokenizer = AutoTokenizer.from_pretrained("{repo}", subfolder="reward_model_final")
prompt = "### Instruction:\\nHow do I descale a kettle?\\n\\n### Response:\\n"
answer = "Fill it with water and vinegar, let it stand, and rinse it."
with torch.no_grad():
    tokens = tokenizer(prompt + answer + tokenizer.eos_token, return_tensors="pt")
    print(reward_model(**tokens).logits.item())
```"""
QLORA = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}", subfolder="sft_qlora_final")
base = AutoModelForCausalLM.from_pretrained({base})
base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
model = PeftModel.from_pretrained(base, "{repo}", subfolder="sft_qlora_final").merge_and_unload()
```"""


def card(profile: Profile, repo_id: str, stage: str | None = None) -> ModelCard:
    """The card of a stage, or without one that of the repository, which shows all stages."""
    described = [stage] if stage else [name for name in published_stages(profile) if name != "base"]
    tables = {name: results(profile, name) for name in described}
    about = STAGES[stage] if stage else None
    data = ModelCardData(
        license="mit",
        language="en",
        library_name="peft" if about and about.adapter else "transformers",
        pipeline_tag="text-classification" if stage == "reward_model_final" else "text-generation",
        tags=["rlhf", "ppo", "trl", "peft", "gpt2"],
        base_model=None if profile.lab else outputs.show_name(profile.model),
        datasets=None if profile.lab else [outputs.show_name(profile.dataset)],
        model_name=about.title if about else repo_id.split("/")[-1],
        eval_results=[result for name in described for result in _eval_results(profile, tables[name])] or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(profile, repo_id, stage, tables)}")


def published_stages(profile: Profile) -> list[str]:
    """The stages that are published: all, but the base only where it is nowhere else, and of PPO's two policies only
    the one that is not the aligned one already."""
    left_out = {aligned(profile)} | (set() if profile.lab else {"base"})
    return [name for name in STAGES if name not in left_out]


def aligned(profile: Profile) -> str:
    """The stage of which ppo_aligned_final is a copy, as run.json says."""
    return outputs.read_json(profile, "run.json")["ppo_aligned_final"]


def results(profile: Profile, stage: str) -> pd.DataFrame:
    """What the evaluation says of a stage: metric, mean, ci_low, ci_high, n; of the reward model its accuracy."""
    columns = ["metric", "mean", "ci_low", "ci_high", "n"]
    if stage == "reward_model_final":
        return metrics.accuracy_row(outputs.read_csv(profile, "reward_model.csv"))[columns]
    rows = pd.concat(
        outputs.read_csv(profile, name)
        for name in ("rouge.csv", "reward.csv", "kl.csv", *(["gold.csv"] if profile.lab else []))
    )
    model = STAGES[aligned(profile) if stage == "ppo_aligned_final" else stage].model
    kept = [*METRICS, "rouge1_sample", "reward", "kl_from_sft", "gold"]
    return rows[(rows.model == model) & rows.metric.isin(kept)][columns]


def _eval_results(profile: Profile, table: pd.DataFrame) -> list[EvalResult]:
    name = "lab corpus" if profile.lab else outputs.show_name(profile.dataset)
    return [
        EvalResult(
            task_type="text-classification" if metric == "accuracy" else "text-generation",
            dataset_type="generated" if profile.lab else name,
            dataset_name=name,
            dataset_split="test",
            metric_type=METRICS[metric][0],
            metric_name=METRICS[metric][1],
            metric_value=round(float(mean), 4),
        )
        for metric, mean in zip(table.metric, table["mean"], strict=True)
        if metric in METRICS
    ]


def _text(profile: Profile, repo_id: str, stage: str | None, tables: dict[str, pd.DataFrame]) -> str:
    """The card below its metadata."""
    run = outputs.read_json(profile, "run.json")
    data = "generated pairs of the lab corpus" if profile.lab else f"`{outputs.show_name(profile.dataset)}`"
    start = "a small GPT-2 that the project pretrained" if profile.lab else f"`{outputs.show_name(profile.model)}`"
    if stage:
        opening = f"# {STAGES[stage].title}\n\n{STAGES[stage].about}"
    else:
        folders = "\n".join(f"- `{name}/`: {STAGES[name].about}" for name in published_stages(profile))
        opening = (
            f"# {repo_id.split('/')[-1]}\n\nEvery stage of RLHF on GPT-2, made and evaluated in one run:\n\n{folders}"
        )
    parts = [
        opening,
        f"Started from {start}, trained on {data}: one split by prompt for all stages, no test prompt in any training. "
        f"Profile `{profile.name}`, seed {profile.seed}, commit `{run['git']['commit']}`.",
        f"## Template\n\n```\n{TEMPLATE}```\n\nThe answer follows and ends in EOS. Padding has a token of its own.",
        "## Results\n\nOn the test prompts, with 95 % bootstrap intervals. ROUGE by beam search, the rest on sampled "
        "answers; reward in logits, KL in nats per answer.",
        *(f"**{STAGES[name].title}**\n\n{_table(table)}" for name, table in tables.items()),
    ]
    if stage and STAGES[stage].settings:
        settings = dataclasses.asdict(getattr(profile, STAGES[stage].settings))
        parts.append(f"## Settings\n\n```json\n{json.dumps(settings, indent=1)}\n```")
    parts.append(f"## How to load\n\n{loading(profile, repo_id, stage)}")
    parts.append(f"## Limits\n\n{LIMITS}{LAB_LIMITS if profile.lab else ''}")
    return "\n\n".join(parts) + "\n"


def loading(profile: Profile, repo_id: str, stage: str | None) -> str:
    """The snippet that loads a stage; without one, those of the aligned policy and of the reward model."""
    base = f'"{repo_id}", subfolder="base"' if profile.lab else f'"{outputs.show_name(profile.model)}"'
    snippets = {"reward_model_final": REWARD, "sft_qlora_final": QLORA}
    if stage:
        return snippets.get(stage, POLICY).format(repo=repo_id, stage=stage, base=base)
    return "\n\n".join(s.format(repo=repo_id, stage="ppo_aligned_final") for s in (POLICY, REWARD))


def _table(table: pd.DataFrame) -> str:
    rows = [
        f"| {metric} | {mean:.3f} | [{low:.3f}, {high:.3f}] | {n} |"
        for metric, mean, low, high, n in table.itertuples(index=False)
    ]
    return "\n".join(["| metric | mean | 95 % interval | n |", "| --- | --- | --- | --- |", *rows])
