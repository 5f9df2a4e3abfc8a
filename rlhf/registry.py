"""The models of a run, one row each: every table, figure, card and error message takes their names from here."""

from typing import NamedTuple


class Model(NamedTuple):
    """How a model is called, where it lies and who makes it."""

    checkpoint: str  # its folder below checkpoints/<profile>/
    notebook: str  # that makes it
    label: str  # in tables and figures
    colour: str = "#222222"  # of Okabe and Ito's palette, which colour-blind readers can tell apart
    marker: str = "o"
    about: str = ""  # one sentence for its card
    settings: str | None = None  # the part of the profile that it was trained with
    adapter: bool = False


# By the key of the CSVs; the order here is the order everywhere.
MODELS = {
    "base": Model(
        "base",
        "01_supervised_finetuning/1_data_prep_and_baseline.ipynb",
        "base",
        "#8C8C8C",
        "o",
        "The model that the others start from.",
        "lab",
    ),
    "sft_qlora": Model(
        "sft_qlora_final",
        "01_supervised_finetuning/2_finetune_qlora.ipynb",
        "QLoRA SFT",
        "#56B4E9",
        "s",
        "A LoRA adapter, fine-tuned over a 4-bit base on the chosen answers, evaluated merged into the float32 base.",
        "sft",
        adapter=True,
    ),
    "sft_full": Model(
        "sft_full_final",
        "01_supervised_finetuning/4_finetune_full.ipynb",
        "full SFT",
        "#0072B2",
        "D",
        "Supervised fine-tuning of all weights on the chosen answers.",
        "sft",
    ),
    "reward_model": Model(
        "reward_model_final",
        "02_reward_modeling/2_train_reward_model.ipynb",
        "reward model",
        about="A LoRA adapter with its score head, on `sft_full_final`: one logit for a prompt and an answer, higher "
        "is better. Rewards of two reward models can't be compared.",
        settings="reward",
        adapter=True,
    ),
    "ppo": Model(
        "ppo_trl_final",
        "03_ppo_alignment/1_ppo_alignment.ipynb",
        "PPO (TRL)",
        "#D55E00",
        "^",
        "PPO by TRL 1.12.0, from `sft_full_final`.",
    ),
    "ppo_scratch": Model(
        "ppo_scratch_final",
        "03_ppo_alignment/2_ppo_from_scratch.ipynb",
        "PPO (scratch)",
        "#E69F00",
        "v",
        "PPO by the project's own trainer, from `sft_full_final`.",
    ),
    "ppo_aligned": Model(
        "ppo_aligned_final",
        "03_ppo_alignment/2_ppo_from_scratch.ipynb",
        "PPO",
        "#D55E00",
        "^",
        "The better of two runs of PPO from `sft_full_final`, chosen on the validation split.",
    ),
}
POLICIES = ("base", "sft_qlora", "sft_full", "ppo", "ppo_scratch")  # those that the evaluation compares
ALIGNED_CANDIDATES = ("ppo", "ppo_scratch")  # ppo_aligned is a copy of one of them
BY_CHECKPOINT = {model.checkpoint: key for key, model in MODELS.items()}
