"""Loading the models of a run: the base, the fine-tuned policies, the reward model, the aligned policy.

All of them share one tokenizer whose pad token is not its end-of-sequence token. Everything is loaded in float32 from
safetensors, for exact merging and scoring; training lowers the precision by autocast where the hardware has bfloat16.
"""

from collections.abc import Callable
from pathlib import Path

from rlhf import hub, outputs
from rlhf.lab import base_model
from rlhf.profiles import Profile

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

PAD = "<|pad|>"
PUBLISHED_TEMPLATE = "\n\nHuman: {prompt}\n\nAssistant: {response}"  # of nabeelshan/rlhf-gpt2-pipeline's reward model


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16() -> bool:
    """Whether to train under bfloat16 autocast: only where the hardware computes in it."""
    return base_model.bf16_is_native()


def attention(profile: Profile) -> str:
    """How attention is computed: written out for the lab's short texts on a CPU, by torch's fused kernel elsewhere.

    The memory that the kernel saves matters for long texts only.
    """
    return base_model.CPU_ATTENTION if profile.lab and device().type == "cpu" else "sdpa"


def prepare_base(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer, saved to checkpoints/<profile>/base for all later stages.

    The lab's is pretrained first where it is missing. Any other comes from the Hub or a local folder, and gets a pad
    token and an embedding row for it if it has none. Raises ConnectionError where it can't be loaded.
    """
    if profile.lab:
        model, tokenizer = base_model.load_or_pretrain(profile)
        return model.to(device()).eval(), tokenizer
    if not Path(profile.model).exists():
        hub.go_offline_without_connection()
    try:
        tokenizer = AutoTokenizer.from_pretrained(profile.model)
        model = AutoModelForCausalLM.from_pretrained(profile.model, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"model {profile.model!r} can't be loaded ({str(error).splitlines()[0][:200]}); without the Hub, set "
            f"RLHF_MODEL to a local folder with the model and its tokenizer, or use the offline profile: "
            f"RLHF_PROFILE=lab."
        ) from error
    add_pad_token(model, tokenizer)
    outputs.save_checkpoint(profile, "base", model, tokenizer)
    return model.to(device()).eval(), tokenizer


def add_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token of its own, never EOS, and the model a row for it: the mean of the others.

    With pad = EOS the end of an answer is masked like padding: never learned, never scored, never rewarded.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        old = model.get_input_embeddings().num_embeddings
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
                layer.weight[old:] = layer.weight[:old].mean(dim=0)
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id


def load_tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(outputs.require_checkpoint(profile, "base"))


def load_base(profile: Profile, quantized: bool = False) -> PreTrainedModel:
    """The base model; `quantized` loads its linear layers in 4-bit NF4 (Dettmers et al. 2023)."""
    path = outputs.require_checkpoint(profile, "base")
    options = {"dtype": torch.float32, "attn_implementation": attention(profile)}
    if quantized:
        compute = torch.bfloat16 if use_bf16() else torch.float32
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
        options["device_map"] = {"": device()}
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    if not quantized:
        return model.to(device())
    for module in model.modules():
        # On a CPU with bfloat16, bitsandbytes 0.50 repacks the weights at the first evaluation, for a kernel that has
        # no gradient: training after it would fail. Keep the packing that trains.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_sft(profile: Profile, method: str = "full") -> PreTrainedModel:
    """The policy fine-tuned by `method`: "full", or "qlora" with its adapter merged into the float32 base.

    Merging into float32 is exact; merging into the 4-bit weights would round the adapter away.
    """
    if method == "full":
        path = outputs.require_checkpoint(profile, "sft_full_final")
        return _policy(profile, path)
    if method == "qlora":
        path = outputs.require_checkpoint(profile, "sft_qlora_final")
        return _merged(load_base(profile), path)
    raise ValueError(f"no fine-tuned policy {method!r}; choose 'full' or 'qlora'.")


def new_reward_model(profile: Profile, seed: int) -> PreTrainedModel:
    """The full SFT policy with an untrained scalar head in place of the language-model head.

    The start of reward modelling (Ouyang et al. 2022): a model that already reads the template and the answers.
    """
    torch.manual_seed(seed)
    path = outputs.require_checkpoint(profile, "sft_full_final")
    config = AutoConfig.from_pretrained(path, num_labels=1, attn_implementation=attention(profile))
    model = AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype=torch.float32)
    return model.to(device())


def load_reward_model(profile: Profile, which: str = "final") -> PreTrainedModel:
    """The trained reward model, its adapter merged: one logit per text, higher is better.

    `which` names another one than the run's own, which scripts/study.py trains.
    """
    path = outputs.require_checkpoint(profile, f"reward_model_{which}")
    return _merged(new_reward_model(profile, seed=0), path)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with the adapter in its weights, all of which can be trained further: PEFT leaves them frozen."""
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().requires_grad_(True).eval()


def load_ppo(profile: Profile, which: str = "aligned") -> PreTrainedModel:
    """The policy of PPO: TRL's ("trl"), the project's own ("scratch"), or the better of the two ("aligned")."""
    if which not in ("trl", "scratch", "aligned"):
        raise ValueError(f"no policy of PPO {which!r}; choose 'trl', 'scratch' or 'aligned'.")
    return _policy(profile, outputs.require_checkpoint(profile, f"ppo_{which}_final"))


def _policy(profile: Profile, path: Path) -> PreTrainedModel:
    options = {"dtype": torch.float32, "attn_implementation": attention(profile)}
    return AutoModelForCausalLM.from_pretrained(path, **options).to(device()).eval()


def load_published_policy(folder: Path, stage: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A policy and its tokenizer out of a folder laid out as a published repository: <folder>/<stage>/.

    Its tokenizer may pad with EOS, as published ones do; for decoding that is no harm. Raises FileNotFoundError where
    the stage is missing.
    """
    path = _published(folder, stage)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    return model.to(device()).eval(), tokenizer


def load_published_reward(
    folder: Path, base: str, template: str = PUBLISHED_TEMPLATE
) -> Callable[[list[str], list[str]], np.ndarray]:
    """The reward function of a published repository's adapter, <folder>/reward_model_final/, on the base model `base`.

    The adapter brings its score head. The template is the one that the adapter was trained on: scored on another text
    its numbers mean little. Texts are scored one by one and cut to the context from the end, as published. Raises
    FileNotFoundError where the adapter is missing.
    """
    path = _published(folder, "reward_model_final")
    has_tokenizer = (path / "tokenizer_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(path if has_tokenizer else base)
    trunk = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    model = PeftModel.from_pretrained(trunk, path).merge_and_unload().to(device()).eval()
    context = model.config.max_position_embeddings

    @torch.no_grad()
    def reward(prompts: list[str], responses: list[str]) -> np.ndarray:
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            text = template.format(prompt=prompt, response=response)
            ids = tokenizer(text, truncation=True, max_length=context, return_tensors="pt")["input_ids"]
            hidden = getattr(model, model.base_model_prefix)(input_ids=ids.to(model.device)).last_hidden_state
            scores.append(model.score(hidden[0, -1]).item())  # by hand: with pad = EOS, the class would look for it
        return np.array(scores)

    return reward


def _published(folder: Path, stage: str) -> Path:
    path = Path(folder) / stage
    if not path.is_dir():
        found = ", ".join(sorted(p.name for p in Path(folder).iterdir() if p.is_dir())) or "no folder"
        raise FileNotFoundError(f"{outputs.show(folder)} has no {stage} (found: {found}); give one that has it.")
    return path


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes that the weights take; a 4-bit layer counts its packed bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
