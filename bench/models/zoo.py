"""Small models of many families with random weights, each with a batch; all return a scalar loss.

A factory takes nothing and returns (module, positional arguments, keyword arguments), as `fxcompress explain
bench.models.zoo:gpt2` wants it. Every factory seeds its own random stream, so that equal names are equal models.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import digits_nets, gpt, loops

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
VOCABULARY = 256
BATCH = 4
TIME = 64
LABELS = 10
EXPERTS: dict[str, Any] = {"experts_implementation": "grouped_mm"}
"""The eager implementation has shapes that depend on data; `batched_mm` copies the expert weights per token."""
CLASSIFIER: dict[str, Any] = {"num_labels": LABELS}
"""Common to all configurations, and accepted by all, but not declared by the subclasses."""


class LossOf(nn.Module):
    """A transformers model that returns its loss alone, so that the logits are no output that the caller holds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        """Return the model's own loss."""
        loss: Tensor = self.model(**batch).loss
        return loss


def seeded(factory: Callable[[], Case]) -> Callable[[], Case]:
    """Let `factory` draw from seed 0, leave the caller's stream alone, and put the module into training mode."""

    @functools.wraps(factory)
    def run() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, args, kwargs = factory()
        return module.train(), args, kwargs

    return run


def tokens(time: int = TIME, batch: int = BATCH) -> Tensor:
    """Random int64 token ids [batch, time]."""
    return torch.randint(0, VOCABULARY, (batch, time))


def image_batch(side: int, batch: int = 8) -> dict[str, Any]:
    """Random float32 images [batch, 3, side, side] with labels, as transformers' classifiers take them."""
    return {"pixel_values": torch.randn(batch, 3, side, side), "labels": torch.randint(0, LABELS, (batch,))}


@seeded
def gpt2() -> Case:
    """GPT-2: learned positions, pre-LN, GELU, dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=TIME, n_embd=128, n_layer=2, n_head=4, use_cache=False)
    model = GPT2LMHeadModel(config)
    # This class name does not tell the loss; without one, transformers logs a warning, and that breaks the graph.
    model.loss_type = "ForCausalLM"
    ids = tokens()
    return LossOf(model), (), {"input_ids": ids, "labels": ids}


@seeded
def bert() -> Case:
    """BERT: post-LN, bidirectional attention, dropout."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    return LossOf(BertForMaskedLM(config)), (), {"input_ids": tokens(), "labels": tokens()}


@seeded
def llama() -> Case:
    """Llama: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    ids = tokens()
    return LossOf(LlamaForCausalLM(config)), (), {"input_ids": ids, "labels": ids}


@seeded
def t5() -> Case:
    """T5: encoder and decoder, relative positions, ReLU, dropout."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4, use_cache=False
    )  # fmt: skip
    config.decoder_start_token_id = 0
    return LossOf(T5ForConditionalGeneration(config)), (), {"input_ids": tokens(), "labels": tokens()}


@seeded
def vit() -> Case:
    """ViT: patches, pre-LN, GELU."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, **CLASSIFIER,
    )  # fmt: skip
    return LossOf(ViTForImageClassification(config)), (), image_batch(32)


@seeded
def swin() -> Case:
    """Swin: shifted windows, patch merging, relative position bias."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4, **CLASSIFIER
    )
    return LossOf(SwinForImageClassification(config)), (), image_batch(32, batch=4)


@seeded
def resnet() -> Case:
    """ResNet: bottleneck blocks of convolution, batch norm and ReLU."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], layer_type="bottleneck", **CLASSIFIER
    )
    return LossOf(ResNetForImageClassification(config)), (), image_batch(48)


@seeded
def convnext() -> Case:
    """ConvNeXt: depthwise 7x7 convolutions, channels-last LayerNorm, GELU."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        patch_size=2, hidden_sizes=[48, 96], depths=[2, 2], num_stages=2, image_size=32, **CLASSIFIER
    )
    return LossOf(ConvNextForImageClassification(config)), (), image_batch(32)


@seeded
def mamba() -> Case:
    """Mamba: the selective scan, unrolled over time."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=96, state_size=8, num_hidden_layers=2, use_cache=False)
    ids = tokens(time=16, batch=8)
    return LossOf(MambaForCausalLM(config)), (), {"input_ids": ids, "labels": ids}


@seeded
def moe() -> Case:
    """Mixtral: a mixture of four SwiGLU experts, two per token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        use_cache=False,
        **EXPERTS,
    )
    ids = tokens(time=32)
    return LossOf(MixtralForCausalLM(config)), (), {"input_ids": ids, "labels": ids}


@seeded
def lstm() -> Case:
    """An LSTM written as a loop over its cell."""
    return loops.CharLSTM(VOCABULARY, width=128), (tokens(time=17, batch=64),), {}


@seeded
def gcn() -> Case:
    """A graph convolutional network on a planted-partition graph, messages by gather and scatter."""
    edges, degree, communities = loops.community_graph(communities=8, size=128)
    network = loops.GCN(inputs=64, width=128, layers=4, classes=8)
    return network, (torch.randn(len(degree), 64), edges, degree, communities), {}


@seeded
def bytegpt() -> Case:
    """The GPT of `bench.byte_lm`, two layers of it."""
    model = gpt.GPT(gpt.GPTConfig(layers=2, context=128))
    text = torch.randint(0, 256, (4, 129))
    return model, (text[:, :-1].contiguous(), text[:, 1:].contiguous()), {}


def _digits(network: nn.Module, side: int) -> Case:
    images, labels = torch.randn(64, 1, side, side), torch.randint(0, digits_nets.CLASSES, (64,))
    return digits_nets.WithLoss(network), (images, labels), {}


@seeded
def cnn() -> Case:
    """The CNN of `bench.digits`."""
    return _digits(digits_nets.CNN(), 16)


@seeded
def digits_vit() -> Case:
    """The ViT of `bench.digits`."""
    return _digits(digits_nets.ViT(), 16)


@seeded
def bnn() -> Case:
    """The binary CNN of `bench.digits`: its saved values are known to be ±1, masks and small integers."""
    return _digits(digits_nets.BNN(), 8)


ZOO: Mapping[str, Callable[[], Case]] = {
    factory.__name__: factory
    for factory in (
        gpt2, bert, llama, t5, vit, swin, resnet, convnext, mamba, moe, lstm, gcn, bytegpt, cnn, digits_vit, bnn,
    )
}  # fmt: skip
