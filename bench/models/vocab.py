"""Language models whose logits stand at the peak: large vocabularies on small networks, and two of real size.

Factories as in `zoo`: (module, positional arguments, keyword arguments); the module returns its loss.
"""

from collections.abc import Callable, Mapping

import torch

from bench.models.gpt import GPT, GPTConfig
from bench.models.zoo import Case, LossOf, seeded

GPT2_VOCABULARY = 50257
LLAMA_VOCABULARY = 128256


@seeded
def lm32k() -> Case:
    """The GPT of `bench.byte_lm`, two layers of width 64 and 32 000 words, 1024 tokens."""
    model = GPT(GPTConfig(layers=2, context=128, width=64, vocabulary=32000))
    text = torch.randint(0, 32000, (8, 129))
    return model, (text[:, :-1].contiguous(), text[:, 1:].contiguous()), {}


@seeded
def gpt2_narrow() -> Case:
    """GPT-2 with its 12 layers and vocabulary, width 64, 1024 tokens."""
    return _gpt2(width=64, heads=4, batch=8, time=128)


def gpt2_small() -> Case:
    """GPT-2 as published (124 M parameters), 8 x 1024 tokens."""
    return _gpt2(width=768, heads=12, batch=8, time=1024)


def llama_1b() -> Case:
    """Llama 3.2 1B, 4 x 2048 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        use_cache=False,
    )
    ids = torch.randint(0, LLAMA_VOCABULARY, (4, 2048))
    return LossOf(LlamaForCausalLM(config)).train(), (), {"input_ids": ids, "labels": ids}


def _gpt2(width: int, heads: int, batch: int, time: int) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    # Dropout of attention scores would keep them in memory whole: the CPU has no fused kernel for it, a GPU has.
    config = GPT2Config(n_positions=time, n_embd=width, n_head=heads, attn_pdrop=0.0, use_cache=False)
    model = GPT2LMHeadModel(config)
    # As in `zoo.gpt2`: without a loss type, transformers logs a warning, and that breaks the graph.
    model.loss_type = "ForCausalLM"
    ids = torch.randint(0, GPT2_VOCABULARY, (batch, time))
    return LossOf(model).train(), (), {"input_ids": ids, "labels": ids}


MEASURED: Mapping[str, Callable[[], Case]] = {factory.__name__: factory for factory in (lm32k, gpt2_narrow)}
"""Small enough to run on a CPU."""
SIMULATED: Mapping[str, Callable[[], Case]] = {factory.__name__: factory for factory in (gpt2_small, llama_1b)}
"""Traced on fake tensors."""
