"""The lab's base model: a small GPT-2 with its own tokenizer, shipped with the project as a published model would be.

`make pretrain` made it (rlhf/pretraining.py). The smoke profile takes a new model of random weights instead.
"""

import hashlib
import warnings
from pathlib import Path

from rlhf import outputs, runtime
from rlhf.lab.corpus import documents
from rlhf.template import TEMPLATE

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SHIPPED = Path(__file__).parent / "base"
LANGUAGE_FILE = "language.sha256"  # in SHIPPED: `language` when it was pretrained
EOS, PAD = "<|endoftext|>", "<|pad|>"
# Attention written out. On a CPU the gradient of torch's fused kernel took more than a quarter of forward and backward
# of a pretraining step, and the whole step a third longer than without it.
CPU_ATTENTION = "eager"
TOKENIZER_DOCUMENTS = 20_000  # at most: from here on more text changes hardly a merge


def language() -> str:
    """A fingerprint of the lab's text as the code writes it now."""
    return hashlib.sha256("\n\n".join(documents(200, seed=0)).encode()).hexdigest()


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, with a pad token that is not the end-of-sequence token."""
    bpe = ByteLevelBPETokenizer()
    # The template is part of what is tokenised later, so its words should not fall apart into bytes.
    learnt = [*texts, *[TEMPLATE] * 100]
    bpe.train_from_iterator(learnt, vocab_size=vocabulary, special_tokens=[EOS, PAD], show_progress=False)
    trained = Tokenizer.from_str(bpe.to_str())
    tokens = {"bos_token": EOS, "eos_token": EOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=context, **tokens)


def new_model(lab, tokenizer, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of the profile's size with random weights."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GPT2Config(
        **{"vocab_size": len(tokenizer), "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad},
        **{"n_positions": lab.context, "n_embd": lab.width, "n_layer": lab.layers, "n_head": lab.heads},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        activation_function="gelu_pytorch_tanh",  # GPT-2's, computed in one step
        attn_implementation=CPU_ATTENTION,
    )
    with runtime.isolated_generator(seed):
        return GPT2LMHeadModel(config).eval()


def prepare(profile) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The base model in float32 and its tokenizer, saved to checkpoints/<profile>/base.

    The shipped one where the profile says `pretrained`, else one of random weights. Raises ValueError where the shipped
    one has another size than the profile, warns where it was pretrained on other text than the lab has now.
    """
    lab = profile.lab
    if lab.pretrained:
        model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32, attn_implementation=CPU_ATTENTION)
        tokenizer, config = AutoTokenizer.from_pretrained(SHIPPED), model.config
        shipped = (config.n_layer, config.n_embd, config.n_head, config.vocab_size, config.n_positions)
        if shipped != (lab.layers, lab.width, lab.heads, lab.vocabulary, lab.context):
            raise ValueError(
                f"the shipped base has layers, width, heads, vocabulary, context {shipped}, the {profile.name} profile "
                f"asks for others; set them back in rlhf/profiles.toml or run make pretrain."
            )
        if (SHIPPED / LANGUAGE_FILE).read_text(encoding="utf-8").strip() != language():
            warnings.warn("the lab's text has changed since its base was pretrained; run make pretrain.", stacklevel=2)
    else:
        texts = documents(min(lab.documents, TOKENIZER_DOCUMENTS), profile.seed)
        tokenizer = train_tokenizer(texts, lab.vocabulary, lab.context)
        model = new_model(lab, tokenizer, profile.seed)
    outputs.save_checkpoint(profile, "base", model, tokenizer)
    return model, tokenizer
