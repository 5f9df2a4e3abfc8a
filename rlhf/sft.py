"""Supervised fine-tuning: tokens with the labels of the loss, and one SFTTrainer for full, LoRA and QLoRA training."""

import statistics

from rlhf import finite, models, outputs, runtime
from rlhf.profiles import Profile
from rlhf.tokens import encode
from rlhf.training import StageTrainer, fit_arguments, logged, lora_config, train_in_float32

import pandas as pd
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

METHODS = ("full", "lora", "qlora")
IGNORED = -100  # a label that the loss leaves out
ENDINGS = ("eos", "none", "pad_is_eos")


def tokenize(examples: Dataset, tokenizer, ending: str = "eos") -> Dataset:
    """Columns input_ids and labels: the loss is taken on the completion only, prompt labels are IGNORED.

    `ending` is how the example ends: "eos", an end-of-sequence token that is learned like any other; "none", without
    one; "pad_is_eos", with one that no loss sees, as when pad and EOS are the same token and padding is masked.
    Raises ValueError for any other ending, and where the tokenizer joins the end of a prompt with the completion: the
    policy, which continues the prompt's own tokens, could never write what it learned.
    """
    if ending not in ENDINGS:
        raise ValueError(f"ending {ending!r} is none of {', '.join(ENDINGS)}.")
    prompts = encode(tokenizer, examples["prompt"])
    texts = [p + c for p, c in zip(examples["prompt"], examples["completion"], strict=True)]
    wholes = encode(tokenizer, texts)
    for text, prompt, whole in zip(texts, prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt:
            raise ValueError(
                f"the tokenizer reads the end of the template and the answer's first characters as one token, as in "
                f"{text[:200]!r}; choose a model whose tokenizer splits at the end of a line."
            )
    last = [] if ending == "none" else [tokenizer.eos_token_id]
    label = [IGNORED] if ending == "pad_is_eos" else last
    labels = [[IGNORED] * len(p) + ids[len(p) :] + label for p, ids in zip(prompts, wholes, strict=True)]
    return Dataset.from_dict({"input_ids": [ids + last for ids in wholes], "labels": labels})


class _SFTTrainer(StageTrainer, SFTTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        """The model's own loss, with logits from the first label of the batch on.

        TRL's default computes them chunk by chunk, twice and with an entropy, which saves memory where a text has many
        thousands of tokens, and it does not know every factor of generation.head_logits.
        """
        labels = inputs["labels"]
        first = max(0, int((labels != IGNORED).any(dim=0).nonzero()[0]) - 1)  # the place before predicts a label
        needed = {"labels": labels[:, first:], "logits_to_keep": labels.shape[1] - first, "use_cache": False}
        return Trainer.compute_loss(self, model, {**inputs, **needed}, *args, **kwargs)


def make_trainer(
    profile: Profile,
    run: str,
    model,
    tokenizer,
    train,
    validation,
    *,
    learning_rate: float,
    epochs: float | None = None,
    evaluations: int | None = None,
    adapter: LoraConfig | None = None,
) -> SFTTrainer:
    """A trainer on tokenised examples (`tokenize`); TensorBoard files go to outputs/logs/<profile>/<run>.

    With `adapter` only the adapter is trained. `epochs` and `evaluations` replace the profile's.
    """
    examples = (epochs or profile.sft.epochs) * len(train)
    evaluations = 0 if validation is None else evaluations or profile.sft.evaluations
    config = SFTConfig(
        loss_type="nll",
        **fit_arguments(profile, run, profile.sft, examples=examples, evaluations=evaluations),
        learning_rate=learning_rate,
        max_grad_norm=profile.sft.max_grad_norm,
        train_sampling_strategy="group_by_length",
    )
    with runtime.isolated_generator(profile.seed):  # an adapter's first weights are drawn here: the same for every run
        trainer = _SFTTrainer(
            model=model,
            args=config,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    train_in_float32(trainer.model)
    return trainer


def methods(profile: Profile) -> tuple[str, ...]:
    """The methods that the base is not too large for, in the order of METHODS."""
    return ("qlora",) if outputs.by_adapters(profile) else METHODS


def learning_rates(profile: Profile, method: str) -> tuple[float, ...]:
    """The rates that are tried for a method."""
    return profile.sft.full_learning_rates if method == "full" else profile.sft.qlora_learning_rates


def start_model(profile: Profile, method: str) -> tuple[PreTrainedModel, LoraConfig | None]:
    """What a method trains: the base model (in 4 bit for "qlora") and the adapter's configuration, None for "full".

    Raises ValueError for a method that is not in METHODS.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}.")
    model = models.load_base(profile, quantized=method == "qlora")
    return model, None if method == "full" else lora_config(profile.sft.lora, "CAUSAL_LM", model)


class StepTimes(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        self.started = runtime.clock()

    def on_step_end(self, *_, **__):
        self.seconds.append(runtime.clock() - self.started)


def measure_cost(profile: Profile, method: str, tokenizer, train, steps: int) -> dict[str, float | str]:
    """Train `steps` steps and count: trainable parameters, megabytes, the median of the seconds that a step takes.

    The first steps of a process are slower, for each new shape of a batch: a mean would charge them to the method that
    comes first. memory_megabytes are those of the weights, the gradients and the optimiser's states: what does not
    depend on the size of a batch.
    """
    model, adapter = start_model(profile, method)
    part = train.select(range(min(len(train), steps * profile.sft.batch_size * profile.sft.gradient_accumulation)))
    options = {"learning_rate": 1e-4, "epochs": 1, "adapter": adapter}
    trainer = make_trainer(profile, f"cost_{method}", model, tokenizer, part, None, **options)
    times = StepTimes()
    trainer.add_callback(times)
    trainer.resumes = False
    trainer.train()
    states = [state for states in trainer.optimizer.state.values() for state in states.values()]
    optimizer_bytes = sum(getattr(state, "nbytes", 0) for state in states)
    gradient_bytes = sum(parameter.nbytes for parameter in trainer.model.parameters() if parameter.requires_grad)
    weight_bytes = models.weight_bytes(trainer.model)
    return {
        "method": method,
        "trainable_parameters": models.trainable_parameters(trainer.model),
        "weight_megabytes": weight_bytes / 1e6,
        "memory_megabytes": (weight_bytes + gradient_bytes + optimizer_bytes) / 1e6,
        "seconds_per_step": statistics.median(times.seconds),
    }


def search_learning_rate(profile: Profile, method: str, tokenizer, train, validation) -> pd.DataFrame:
    """Validation loss after one pass over a share of the data, for each learning rate of the profile.

    Columns method, learning_rate, validation_loss. Every run starts from the same weights and sees the same examples.
    A rate that diverges is left out, with a printed line. Raises NotFiniteError where all of them do.
    """
    rows, part = [], share_of(train, profile.sft.search_share, profile.seed)
    rates = learning_rates(profile, method)
    for learning_rate in rates:
        model, adapter = start_model(profile, method)
        run = f"search_{method}_{learning_rate:g}"
        options = {"learning_rate": learning_rate, "epochs": 1, "evaluations": 1, "adapter": adapter}
        trainer = make_trainer(profile, run, model, tokenizer, part, validation, **options)
        try:
            trainer.train()
        except finite.NotFiniteError as error:
            print(f"{method}, learning rate {learning_rate:g}: it diverged and is left out ({error})")
            continue
        rows.append((method, learning_rate, logged(trainer, "loss").query("split == 'validation'").loss.iloc[-1]))
    if not rows:
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise finite.NotFiniteError(f"{method}: each rate ({tried}) diverged; set lower ones in rlhf/profiles.toml.")
    return pd.DataFrame(rows, columns=["method", "learning_rate", "validation_loss"])


def best_learning_rate(searched: pd.DataFrame) -> float:
    return float(searched.loc[searched.validation_loss.idxmin(), "learning_rate"])


def loss_curve(trainer, run: str) -> pd.DataFrame:
    """Training and validation loss over the steps of a trainer: columns run, split, step, loss."""
    curve = logged(trainer, "loss")
    curve.insert(0, "run", run)
    return curve


def share_of(examples, share: float, seed: int):
    """A random share of the examples, at least one batch of 8: enough to compare learning rates."""
    return examples.shuffle(seed=seed).select(range(min(len(examples), max(8, round(share * len(examples))))))
