"""Loading the models of a run: the base, the fine-tuned policies, the reward model, the aligned policy.

All of them share one tokenizer whose pad token is not its end-of-sequence token. Everything is loaded in float32 from
safetensors, for exact merging and scoring; training lowers the precision by autocast where the hardware has bfloat16.
"""

from pathlib import Path

from rlhf import download, outputs, registry, runtime
from rlhf.lab import base_model
from rlhf.profiles import Profile

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PAD = "<|pad|>"


def attention(profile: Profile) -> str:
    """How attention is computed: written out for the lab's short texts on a CPU, by torch's fused kernel elsewhere.

    The memory that the kernel saves matters for long texts only.
    """
    return base_model.CPU_ATTENTION if profile.lab and runtime.device().type == "cpu" else "sdpa"


def prepare_base(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer, saved to checkpoints/<profile>/base for all later stages.

    The lab's comes with the project. Any other comes from the Hub or a local folder, and gets a pad
    token and an embedding row for it if it has none. Raises ConnectionError where it can't be loaded.
    """
    if profile.lab:
        model, tokenizer = base_model.prepare(profile)
        return model.to(runtime.device()).eval(), tokenizer
    try:
        path = download.fetch(profile.model)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"model {profile.model!r} can't be loaded ({str(error).splitlines()[0][:200]}); without the Hub, set "
            f"RLHF_MODEL to a local folder with model and tokenizer, or use the offline profile: RLHF_PROFILE=lab."
        ) from error
    add_pad_token(model, tokenizer)
    outputs.save_checkpoint(profile, "base", model, tokenizer)
    return model.to(runtime.device()).eval(), tokenizer


def add_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token of its own, never EOS, and the model a row for it: the mean of the others.

    With pad = EOS the end of an answer is masked like padding: never learned, never scored, never rewarded.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    old = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > old:
        with runtime.isolated_generator(0), torch.no_grad():  # the new rows are drawn before they get their values
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
                layer.weight[old:] = layer.weight[:old].mean(dim=0)
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id


def load_tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(outputs.require_checkpoint(profile, "base"))


def load_base(profile: Profile, quantized: bool = False) -> PreTrainedModel:
    """The base model; `quantized` loads its linear layers in 4-bit NF4 (Dettmers et al. 2023)."""
    path = outputs.require_checkpoint(profile, "base")
    if not quantized:
        return _language_model(profile, path).to(runtime.device())
    compute = torch.bfloat16 if runtime.bf16_is_native() else torch.float32
    four_bit = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    model = _language_model(profile, path, quantization_config=four_bit, device_map={"": runtime.device()})
    for module in model.modules():
        # On a CPU with bfloat16, bitsandbytes 0.50 repacks the weights at the first evaluation, for a kernel that has
        # no gradient: training after it would fail. Keep the packing that trains.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _language_model(profile: Profile, path: Path, **options) -> PreTrainedModel:
    options |= {"dtype": torch.float32, "attn_implementation": attention(profile)}
    return AutoModelForCausalLM.from_pretrained(path, **options)


def load_policy(profile: Profile, key: str) -> PreTrainedModel:
    """A policy of the run, ready to answer: one of registry.POLICIES, or "ppo_aligned", the better of PPO's two.

    An adapter is merged into the float32 base, which is exact; merging into the 4-bit weights would round it away.
    Raises ValueError for another key and FileNotFoundError for a policy that has not been trained.
    """
    if key not in (*registry.POLICIES, "ppo_aligned"):
        raise ValueError(f"no policy {key!r}; choose one of {', '.join(registry.POLICIES)}, ppo_aligned.")
    policy = registry.MODELS[key]
    path = outputs.require_checkpoint(profile, policy.checkpoint)
    if policy.adapter:
        return _merged(load_base(profile), path)
    return _language_model(profile, path).to(runtime.device())


def new_reward_model(profile: Profile, seed: int) -> PreTrainedModel:
    """The full SFT policy with an untrained scalar head, drawn by `seed`, in place of the language-model head.

    The start of reward modelling (Ouyang et al. 2022): a model that already reads the template and the answers.
    """
    path = outputs.require_checkpoint(profile, "sft_full_final")
    config = AutoConfig.from_pretrained(path, num_labels=1, attn_implementation=attention(profile))
    with runtime.isolated_generator(seed):
        options = {"config": config, "dtype": torch.float32}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path, **options)
    return model.to(runtime.device())


def load_reward_model(profile: Profile, which: str = "final") -> PreTrainedModel:
    """The trained reward model, its adapter merged: one logit per text, higher is better.

    `which` names another one than the run's own, trained by a study.
    """
    path = outputs.require_checkpoint(profile, f"reward_model_{which}")
    return _merged(new_reward_model(profile, seed=0), path)


def new_value_model(profile: Profile) -> PreTrainedModel:
    """The start of a value model: a copy of the trained reward model whose head is zero, all of it to be trained.

    It has learned to see in a text what makes a good answer (Ouyang et al. 2022 start theirs from the reward model
    too). But it judges whole texts: what its head says of half an answer is noise larger than the reward itself.
    """
    model = load_reward_model(profile)
    torch.nn.init.zeros_(model.score.weight)
    return model


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with the adapter in its weights, all of which can be trained further: PEFT leaves them frozen."""
    with runtime.isolated_generator(0):  # PEFT draws weights before it loads the adapter's
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged.requires_grad_(True).eval()


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes that the weights take; a 4-bit layer counts its packed bytes."""
    return sum(parameter.nbytes for parameter in model.parameters())
