"""Fine-tune the base model on the chosen answers, as notebooks 1.2 and 1.4 do. Start it by `accelerate launch`."""

import os

os.environ["RLHF_LAUNCHED"] = "1"  # before rlhf is imported, which hides a launcher from notebooks

from rlhf import launch, models, outputs, sft
from rlhf.profiles import Profile, load_profile

from prepare_data import get_sft_datasets

PROFILE = ""
METHOD = ""  # full, lora or qlora


def train(profile: Profile, first: bool) -> None:
    run = f"sft_{METHOD}"
    tokenizer = models.load_tokenizer(profile)
    rows = {split: sft.tokenize(part, tokenizer) for split, part in get_sft_datasets(profile).items()}
    learning_rate = sft.learning_rates(profile, METHOD)[0]  # the notebooks search among them
    model, adapter = sft.start_model(profile, METHOD)
    options = {"learning_rate": learning_rate, "adapter": adapter}
    trainer = sft.make_trainer(profile, run, model, tokenizer, rows["train"], rows["validation"], **options)
    trainer.train()
    launch.save(profile, f"{run}_final", trainer, tokenizer)
    if first:
        outputs.merge_csv(profile, "sft_loss.csv", sft.loss_curve(trainer, run), key="run")


def main() -> None:
    profile = load_profile(PROFILE)
    with launch.processes(profile) as first:
        train(profile, first)


if __name__ == "__main__":
    main()
