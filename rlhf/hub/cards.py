"""Model cards in the Hub's format, filled from a run's CSVs and run.json; card.md is their template."""

import json
from pathlib import Path

from rlhf import metrics, outputs, registry
from rlhf.hub.limits import limits
from rlhf.profiles import Profile
from rlhf.template import TEMPLATE

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# Of the bases that the project knows, which are English; a model made from any other is under that one's license and in
# its languages, which the card leaves open.
LICENSES = {"openai-community/gpt2": "mit", "openai-community/gpt2-medium": "mit", "smollm2": "apache-2.0"}
OF_COMMANDS = {"rouge1": "rouge1_sample", "kl": "kl_from_sft", "gold": "gold"}  # the metrics of beyond_metrics.csv
HUB_METRICS = ("rouge1", "rouge2", "rougeL", "accuracy")  # that the Hub shows beside a card


def card(profile: Profile, repo_id: str, key: str | None = None) -> ModelCard:
    """The card of a model by its key, or without one that of the repository, which shows all models."""
    run = read_run(profile)
    settings, models = run["settings"], published(profile, run)
    model = models[key] if key else None
    title = repo_id.split("/")[-1] + (f": {model.label}" if model else "")
    adapters = {
        name for name, it in models.items() if outputs.is_adapter(outputs.checkpoint_path(profile, it.checkpoint))
    }
    config = outputs.require_checkpoint(profile, "base") / "config.json"
    architecture = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    described = [key] if key else [name for name in models if name != "base"]
    tables = {name: results(profile, name) for name in described}
    data = ModelCardData(
        license="mit" if settings["lab"] else LICENSES.get(settings["model"]),
        language="en" if settings["lab"] or settings["model"] in LICENSES else None,
        library_name="peft" if key in adapters else "transformers",
        pipeline_tag="text-classification" if key == "reward_model" else "text-generation",
        tags=["rlhf", "ppo", "trl", "peft", architecture],
        base_model=hub_name(settings["model"]),
        datasets=[settings["dataset"]] if hub_name(settings["dataset"]) else None,
        model_name=title,
        eval_results=[result for table in tables.values() for result in _eval_results(settings, table)] or None,
    )
    used = settings.get(model.settings) if model else None
    if key in registry.BY_COMMAND:
        used = chosen_settings(profile, key)
    return ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md")),
        title=title,
        repo=repo_id,
        key=key,
        models=models,
        adapters=adapters,
        run=run,
        start="a small GPT-2 that the project pretrained" if settings["lab"] else f"`{settings['model']}`",
        data="generated pairs of the lab corpus" if settings["lab"] else f"`{settings['dataset']}`",
        template=TEMPLATE,
        results=tables,
        settings=used and json.dumps(used, indent=1),
        limits=limits(bool(settings["lab"])),
    )


def read_run(profile: Profile) -> dict:
    """run.json of a finished run. Raises FileNotFoundError where it lacks an entry that cards need."""
    run = outputs.read_json(profile, "run.json")
    missing = [entry for entry in ("seed", "git", "settings", "ppo_aligned_final") if entry not in run]
    if missing:
        raise FileNotFoundError(f"{profile.name}/run.json lacks {', '.join(missing)}; finish the run first (make run).")
    return run


def published(profile: Profile, run: dict) -> dict[str, registry.Model]:
    """The models to publish, by key: no base that is on the Hub already, and the aligned policy only as ppo_aligned.

    Those of registry.BY_COMMAND are published where they have been made. In a run by adapters there is no full SFT
    policy: the others were made from the QLoRA one.
    """
    left_out = {aligned(run), "base" if hub_name(run["settings"]["model"]) else None}
    left_out |= set(registry.BY_COMMAND) - set(outputs.made_by_command(profile))
    if not run.get("by_adapters"):
        return {key: model for key, model in registry.MODELS.items() if key not in left_out}
    left_out.add("sft_full")
    start = registry.MODELS["sft_full"].checkpoint, registry.MODELS["sft_qlora"].checkpoint
    kept = {key: model for key, model in registry.MODELS.items() if key not in left_out}
    return {key: model._replace(about=model.about.replace(*start)) for key, model in kept.items()}


def aligned(run: dict) -> str:
    """The key of the policy of which ppo_aligned is a copy."""
    return registry.BY_CHECKPOINT[run["ppo_aligned_final"]]


def is_repository(name: str) -> bool:
    """Whether the Hub allows `name` for a repository of somebody's: owner/name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def hub_name(name: str) -> str | None:
    """`name` where it is one on the Hub; None for a local path, as run.json shows it, and for "lab"."""
    local = any((folder / name).exists() for folder in (outputs.ROOT, outputs.root().resolve().parent))
    return name if is_repository(name) and not local else None


def results(profile: Profile, key: str) -> pd.DataFrame:
    """What the evaluation says of a model: metric, mean, ci_low, ci_high, n; of the reward model its accuracy."""
    columns = ["metric", "mean", "ci_low", "ci_high", "n"]
    if key == "reward_model":
        return metrics.accuracy_row(outputs.read_csv(profile, "reward_model.csv"))[columns]
    if key in registry.BY_COMMAND:
        rows = outputs.read_csv(profile, "beyond_metrics.csv").replace({"metric": OF_COMMANDS})
        return rows[(rows.method == key) & (rows.seed == profile.seed) & rows.metric.isin(OF_COMMANDS.values())][
            columns
        ]
    names = ["rouge.csv", "reward.csv", "kl.csv"] + ["gold.csv"] * bool(profile.lab)
    rows = pd.concat(outputs.read_csv(profile, name) for name in names)
    model = aligned(read_run(profile)) if key == "ppo_aligned" else key
    shown = [*HUB_METRICS, "rouge1_sample", "reward", "kl_from_sft", "gold"]
    return rows[(rows.model == model) & rows.metric.isin(shown)][columns]


def chosen_settings(profile: Profile, key: str) -> dict[str, float]:
    """The learning rate and the dial that the search of a method of registry.BY_COMMAND has chosen."""
    table = outputs.read_csv(profile, "beyond_search.csv")
    row = table[(table.method == key) & table.chosen].iloc[0]
    return {"learning_rate": float(row.learning_rate), row.dial: float(row.value)}


def _eval_results(settings: dict, table: pd.DataFrame) -> list[EvalResult]:
    name = "lab corpus" if settings["lab"] else settings["dataset"]
    return [
        EvalResult(
            task_type="text-classification" if metric == "accuracy" else "text-generation",
            dataset_type=hub_name(name) or ("generated" if settings["lab"] else "local"),
            dataset_name=name,
            dataset_split="test",
            metric_type="accuracy" if metric == "accuracy" else "rouge",
            metric_name=metric,
            metric_value=round(float(mean), 4),
        )
        for metric, mean in zip(table.metric, table["mean"], strict=True)
        if metric in HUB_METRICS
    ]
