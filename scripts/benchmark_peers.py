"""The models that are measured, ours and the peers: built alike, and shown to be alike.

All have the same dimensions, one matrix for both embeddings and the output layer, dropout on the
sums of embeddings and on the sub-layers' outputs, and label smoothing. Dropout of attention weights
and within the feed-forward layer, which the paper has not, is turned off where a peer has it: it
gets faster by that. Where a peer's architecture is the paper's, `compare` gives it our weights and
asserts our loss and our gradient.
"""

import argparse
import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarking import OURS
from torch import nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseActDense
from transformers.trainer_pt_utils import LabelSmoother

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.modeling_vanilla_transformer import IGNORE_INDEX, sinusoidal_positions

# Packages that torch and transformers do not bring. Their own requirements pin other versions of
# what is here already, or fetch what only their data pipelines need: hence --no-deps.
INSTALL = (
    "pip install --no-deps x-transformers==2.31.10 einx==0.4.3 einops==0.8.2 frozendict==2.5.1 "
    "loguru==0.7.3 torch-einops-utils==0.2.0 eole==0.6.4 pyonmttok==1.38.1 configargparse==1.9.0 "
    "joeynmt==2.3.0 importlib_metadata==7.2.1 zipp==4.1.2"
)

PAD, START, END, FIRST_WORD = 0, 1, 2, 3
LONGEST = 256
# Relative, of two models with the same weights in float32: sums in another order, and epsilons of
# the norms between 1e-6 and 1e-5.
SAME_LOSS, SAME_GRADIENT = 1e-4, 1e-3

# `input_ids` and `attention_mask` [B, S]; `labels` [B, T], -100 for padding; `decoder_input_ids`
# [B, T], the same a place to the right.
Batch = dict[str, torch.Tensor]
Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Size:
    """Dimensions that all contenders share."""

    d_model: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int = 37_000


SIZES = {
    "tiny": Size(32, 64, 2, 2, 101),
    "small": Size(256, 1024, 4, 6),
    "base": Size(512, 2048, 8, 6),
    "big": Size(1024, 4096, 16, 6),
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all contenders are built with."""

    size: Size
    dropout: float = 0.1
    label_smoothing: float = 0.1
    device: str = "cpu"
    precision: str = "no"
    seed: int = 1


LossFunction = Callable[[nn.Module, Batch, Setup], torch.Tensor]


def target_tokens(batch: Batch) -> int:
    """What the loss is averaged over, and what speed counts."""
    return int((batch["labels"] != IGNORE_INDEX).sum())


# ------------------------------------------------------------------------------------ one by one


def build_ours(setup: Setup) -> VanillaTransformerForConditionalGeneration:
    """Ours, with MarianMT's biases in attention, sinusoids and epsilon of the norms."""
    size = setup.size
    return VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(
            vocab_size=size.vocab_size,
            d_model=size.d_model,
            d_ff=size.d_ff,
            num_heads=size.num_heads,
            num_encoder_layers=size.num_layers,
            num_decoder_layers=size.num_layers,
            dropout=setup.dropout,
            label_smoothing=setup.label_smoothing,
            attention_bias=True,
            layer_norm_eps=1e-5,
            position_encoding="concatenated",
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=START,
            use_cache=False,
        )
    )


def our_loss(model: nn.Module, batch: Batch, setup: Setup) -> torch.Tensor:
    """The model's own."""
    loss: torch.Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    ).loss
    return loss


def _bart_arguments(setup: Setup) -> dict[str, Any]:
    """What BART and Marian call the dimensions."""
    size = setup.size
    return {
        "vocab_size": size.vocab_size,
        "d_model": size.d_model,
        "encoder_layers": size.num_layers,
        "decoder_layers": size.num_layers,
        "encoder_attention_heads": size.num_heads,
        "decoder_attention_heads": size.num_heads,
        "encoder_ffn_dim": size.d_ff,
        "decoder_ffn_dim": size.d_ff,
        "dropout": setup.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "scale_embedding": True,
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
        "decoder_start_token_id": START,
        "forced_eos_token_id": None,
        "use_cache": False,
    }


def build_marian(setup: Setup) -> nn.Module:
    """MarianMT of transformers: the paper's architecture."""
    return MarianMTModel(
        MarianConfig(
            **_bart_arguments(setup),
            decoder_vocab_size=setup.size.vocab_size,
            share_encoder_decoder_embeddings=True,
        )
    )


def marian_weights(ours: Weights) -> Weights:
    """Our weights by Marian's names."""
    names = {
        ".o_proj.": ".out_proj.",
        ".cross_attn": ".encoder_attn",
        ".ffn_layer_norm.": ".final_layer_norm.",
    }
    return _renamed(ours, names)


def build_bart(setup: Setup) -> nn.Module:
    """BART: learned positions, and a norm more behind each embedding."""
    return BartForConditionalGeneration(BartConfig(**_bart_arguments(setup)))


def build_t5(setup: Setup) -> nn.Module:
    """T5 v1.0: pre-norm without biases, relative positions."""
    size = setup.size
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=size.vocab_size,
            d_model=size.d_model,
            d_kv=size.d_model // size.num_heads,
            d_ff=size.d_ff,
            num_layers=size.num_layers,
            num_decoder_layers=size.num_layers,
            num_heads=size.num_heads,
            dropout_rate=setup.dropout,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=START,
            use_cache=False,
        )
    )
    for module in model.modules():
        if isinstance(module, T5Attention):
            module.dropout = 0.0
        elif isinstance(module, T5DenseActDense):
            module.dropout.p = 0.0
    return model


def hugging_face_loss(model: nn.Module, batch: Batch, setup: Setup) -> torch.Tensor:
    """Of the logits: the models of transformers smooth no labels."""
    return smoothed_cross_entropy(_logits(model, batch), batch, setup)


def trainer_loss(model: nn.Module, batch: Batch, setup: Setup) -> torch.Tensor:
    """As Trainer computes it for `label_smoothing_factor`."""
    smoother = LabelSmoother(epsilon=setup.label_smoothing)
    loss: torch.Tensor = smoother({"logits": _logits(model, batch)}, batch["labels"])
    return loss


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: torch.Tensor = model(**inputs).logits
    return logits


def smoothed_cross_entropy(logits: torch.Tensor, batch: Batch, setup: Setup) -> torch.Tensor:
    """By torch; mean over the real target tokens."""
    return F.cross_entropy(
        logits.flatten(0, 1),
        batch["labels"].flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=setup.label_smoothing,
    )


class Embedded(nn.Module):
    """Embeddings, sinusoids and output layer around two stacks that come without them."""

    positions: torch.Tensor

    def __init__(self, setup: Setup):
        super().__init__()
        size = setup.size
        self.embedding = nn.Embedding(size.vocab_size, size.d_model, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=size.d_model**-0.5)
        self.scale = math.sqrt(size.d_model)
        table = sinusoidal_positions(torch.arange(LONGEST), size.d_model, "concatenated")
        self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(setup.dropout)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """`[B, L]` to `[B, L, d]`."""
        embedded = self.embedding(ids) * self.scale + self.positions[: ids.shape[1]]
        dropped: torch.Tensor = self.dropout(embedded)
        return dropped

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, d]` to logits `[B, T, V]`."""
        return F.linear(hidden_states, self.embedding.weight)


def module_loss(model: nn.Module, batch: Batch, setup: Setup) -> torch.Tensor:
    """Of a model that takes the batch and gives logits."""
    return smoothed_cross_entropy(model(batch), batch, setup)


class TorchTransformer(Embedded):
    """`torch.nn.Transformer`, without the norms that it adds behind its stacks."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        size = setup.size
        self.stacks = nn.Transformer(
            size.d_model,
            size.num_heads,
            size.num_layers,
            size.num_layers,
            size.d_ff,
            setup.dropout,
            batch_first=True,
        )
        self.stacks.encoder.norm = None
        self.stacks.decoder.norm = None
        for module in self.stacks.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = 0.0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits `[B, T, V]`."""
        is_padding = batch["attention_mask"] == 0
        target = batch["decoder_input_ids"]
        causal = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=target.device
        )
        hidden_states = self.stacks(
            self.embed(batch["input_ids"]),
            self.embed(target),
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=is_padding,
            memory_key_padding_mask=is_padding,
        )
        return self.project(hidden_states)


def torch_weights(ours: Weights) -> Weights:
    """Our weights by the names of `TorchTransformer`."""
    names = {
        "model.encoder.layers.": "stacks.encoder.layers.",
        "model.decoder.layers.": "stacks.decoder.layers.",
        "model.shared.": "embedding.",
        ".o_proj.": ".out_proj.",
        ".cross_attn.": ".multihead_attn.",
        ".self_attn_layer_norm.": ".norm1.",
        ".cross_attn_layer_norm.": ".norm2.",
        ".fc1.": ".linear1.",
        ".fc2.": ".linear2.",
    }
    found = {}
    for name, tensor in _renamed(ours, names).items():
        last = ".norm3." if ".decoder." in name else ".norm2."
        found[name.replace(".ffn_layer_norm.", last)] = tensor
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return {n: t for n, t in found.items() if n.startswith(("stacks.", "embedding."))}


class XTransformer(nn.Module):
    """Encoder and decoder of x-transformers, pre-norm as they come, with SDPA."""

    def __init__(self, setup: Setup):
        super().__init__()
        x = importlib.import_module("x_transformers")
        size = setup.size
        layers = {
            "dim": size.d_model,
            "depth": size.num_layers,
            "heads": size.num_heads,
            "attn_dim_head": size.d_model // size.num_heads,
            "attn_flash": True,
            "attn_sublayer_dropout": setup.dropout,
            "ff_mult": size.d_ff / size.d_model,
            "ff_custom_activation": nn.ReLU(),
            "ff_sublayer_dropout": setup.dropout,
        }
        shared = {
            "num_tokens": size.vocab_size,
            "max_seq_len": LONGEST,
            "emb_dropout": setup.dropout,
            "scaled_sinu_pos_emb": True,
        }
        self.encoder = x.TransformerWrapper(
            attn_layers=x.Encoder(**layers), return_only_embed=True, **shared
        )
        self.decoder = x.TransformerWrapper(
            attn_layers=x.Decoder(cross_attend=True, **layers),
            token_emb=self.encoder.token_emb,
            tie_embedding=True,
            **shared,
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits `[B, T, V]`."""
        is_real = batch["attention_mask"].bool()
        encoded = self.encoder(batch["input_ids"], mask=is_real, return_embeddings=True)
        logits: torch.Tensor = self.decoder(
            batch["decoder_input_ids"], context=encoded, context_mask=is_real
        )
        return logits


class Eole(Embedded):
    """The stacks of eole, which took OpenNMT-py's place; pre-norm as they come."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        size = setup.size
        config = importlib.import_module("eole.config.models")
        dimensions = {
            "hidden_size": size.d_model,
            "layers": size.num_layers,
            "heads": size.num_heads,
            "transformer_ff": size.d_ff,
            "add_qkvbias": True,
            "add_ffnbias": True,
        }
        running = argparse.Namespace(
            dropout=[setup.dropout], attention_dropout=[0.0], self_attn_backend="pytorch"
        )
        # Its configurations are built by methods that pydantic is to drop.
        with warnings.catch_warnings(action="ignore"):
            encoder = config.TransformerEncoderConfig(**dimensions)
            decoder = config.TransformerDecoderConfig(**dimensions, with_cross_attn=True)
        self.encoder = importlib.import_module("eole.encoders.transformer").TransformerEncoder(
            encoder, running
        )
        self.decoder = importlib.import_module("eole.decoders.transformer").TransformerDecoder(
            decoder, running
        )
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if hasattr(module, "dropout_1"):
                # Within the feed-forward layer.
                module.dropout_1.p = 0.0
            if hasattr(module, "reset_parameters"):
                # They come as the memory was.
                module.reset_parameters()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits `[B, T, V]`."""
        is_padding = (batch["attention_mask"] == 0).unsqueeze(1)
        target = batch["decoder_input_ids"]
        encoded, _ = self.encoder(self.embed(batch["input_ids"]), pad_mask=is_padding)
        hidden_states, _ = self.decoder(
            self.embed(target),
            enc_out=encoded,
            src_pad_mask=is_padding,
            tgt_pad_mask=(target == PAD).unsqueeze(1),
        )
        return self.project(hidden_states)


class JoeyNMT(Embedded):
    """The stacks of JoeyNMT, post-norm."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        size = setup.size
        arguments = {
            "hidden_size": size.d_model,
            "ff_size": size.d_ff,
            "num_layers": size.num_layers,
            "num_heads": size.num_heads,
            "dropout": setup.dropout,
            "emb_dropout": setup.dropout,
            "layer_norm": "post",
        }
        self.encoder = importlib.import_module("joeynmt.encoders").TransformerEncoder(**arguments)
        self.decoder = importlib.import_module("joeynmt.decoders").TransformerDecoder(
            vocab_size=size.vocab_size, **arguments
        )
        self.decoder.output_layer.weight = self.embedding.weight
        for stack in (self.encoder, self.decoder):
            # Their own sinusoids are in another order.
            stack.pe.pe[0, :LONGEST] = self.positions
            for module in stack.modules():
                # Of attention weights, and within the feed-forward layer.
                if type(module).__name__ == "MultiHeadedAttention":
                    module.dropout.p = 0.0
                elif type(module).__name__ == "PositionwiseFeedForward":
                    module.pwff_layer[2].p = 0.0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits `[B, T, V]`."""
        is_real = batch["attention_mask"].bool().unsqueeze(1)
        target = batch["decoder_input_ids"]
        encoded, _ = self.encoder(
            self.embedding(batch["input_ids"]) * self.scale, src_length=None, mask=is_real
        )
        logits: torch.Tensor = self.decoder(
            trg_embed=self.embedding(target) * self.scale,
            encoder_output=encoded,
            encoder_hidden=None,
            src_mask=is_real,
            unroll_steps=None,
            hidden=None,
            trg_mask=(target != PAD).unsqueeze(1),
        )[0]
        return logits


def joeynmt_loss(model: nn.Module, batch: Batch, setup: Setup) -> torch.Tensor:
    """JoeyNMT's own: it spreads what it smooths over two words less, and drops a constant."""
    criterion = importlib.import_module("joeynmt.loss").XentLoss(PAD, setup.label_smoothing)
    labels = batch["labels"].masked_fill(batch["labels"] == IGNORE_INDEX, PAD)
    loss: torch.Tensor = criterion(F.log_softmax(model(batch), dim=-1), trg=labels)
    return loss / (labels != PAD).sum()


def joeynmt_weights(ours: Weights) -> Weights:
    """Our weights by the names of `JoeyNMT`."""
    names = {
        "model.encoder.layers.": "encoder.layers.",
        "model.decoder.layers.": "decoder.layers.",
        "model.shared.": "embedding.",
        "lm_head.": "decoder.output_layer.",
        "_proj.": "_layer.",
        ".o_layer.": ".output_layer.",
        ".cross_attn.": ".src_trg_att.",
        ".cross_attn_layer_norm.": ".dec_layer_norm.",
        ".fc1.": ".feed_forward.pwff_layer.0.",
        ".fc2.": ".feed_forward.pwff_layer.3.",
        ".ffn_layer_norm.": ".feed_forward.layer_norm.",
    }
    found = {}
    for name, tensor in _renamed(ours, names).items():
        in_decoder = name.startswith("decoder.")
        norm = ".x_layer_norm." if in_decoder else ".layer_norm."
        attention = ".trg_trg_att." if in_decoder else ".src_src_att."
        name = name.replace(".self_attn_layer_norm.", norm).replace(".self_attn.", attention)
        if name.startswith(("encoder.", "decoder.", "embedding.")):
            found[name] = tensor
    return found


def _renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
    found = {}
    for name, tensor in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


# ------------------------------------------------------------------------------------- all of them


@dataclasses.dataclass(frozen=True)
class Model:
    """How a model is built and compared.

    Attributes:
        build: With random weights.
        loss: With the smoothing of the setup, mean over the target tokens.
        modules: What it needs besides torch and transformers.
        packages: Their distributions, for the record.
        weights: Ours by its names, where the architecture is the same.
        smooths_alike: Whether the loss is the paper's label smoothing; without smoothing all are
            alike.
    """

    build: Callable[[Setup], nn.Module]
    loss: LossFunction = module_loss
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    weights: Callable[[Weights], Weights] | None = None
    smooths_alike: bool = True


MODELS: dict[str, Model] = {
    OURS: Model(build_ours, our_loss),
    "MarianMT": Model(build_marian, trainer_loss, weights=marian_weights),
    "BART": Model(build_bart, hugging_face_loss),
    "T5": Model(build_t5, hugging_face_loss),
    "torch.nn.Transformer": Model(TorchTransformer, weights=torch_weights),
    "x-transformers": Model(
        XTransformer, modules=("x_transformers",), packages=("x-transformers",)
    ),
    "eole": Model(
        Eole,
        modules=("eole.encoders.transformer", "eole.decoders.transformer"),
        packages=("eole",),
    ),
    "JoeyNMT": Model(
        JoeyNMT,
        joeynmt_loss,
        modules=("joeynmt.encoders", "joeynmt.decoders", "joeynmt.loss"),
        packages=("joeynmt",),
        weights=joeynmt_weights,
        smooths_alike=False,
    ),
}


def find_missing(names: Sequence[str]) -> dict[str, str]:
    """Models whose packages cannot be imported, each with the reason."""
    missing = {}
    for name in names:
        try:
            # They tell what else one could install.
            with warnings.catch_warnings(action="ignore"):
                for module in MODELS[name].modules:
                    importlib.import_module(module)
        # A package that does not fit its neighbours fails in any way.
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return missing


def compare(names: Sequence[str], setup: Setup, batch: Batch) -> dict[str, dict[str, float]]:
    """Gives every model that can have them our weights, and asserts that it then computes the same.

    Without dropout, in float32, in training mode.

    Returns:
        For each such model the relative differences of the `loss` and of the `gradient`'s norm.

    Raises:
        AssertionError: One differs: it is not the same model.
    """
    set_seed(setup.seed)
    exact = dataclasses.replace(setup, dropout=0.0)
    ours = build_ours(exact).to(setup.device).train()
    with torch.no_grad():
        # Biases of zero and gains of one would hide a mistake.
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    differences = {}
    for name in names:
        entry = MODELS[name]
        if entry.weights is None:
            continue
        smoothing = setup.label_smoothing if entry.smooths_alike else 0.0
        alike = dataclasses.replace(exact, label_smoothing=smoothing)
        ours.config.label_smoothing = smoothing
        model = entry.build(alike).to(setup.device).train()
        copy_weights(name, model, ours)
        expected = _loss_and_gradient(ours, our_loss(ours, batch, alike))
        found = _loss_and_gradient(model, entry.loss(model, batch, alike))
        apart = [abs(mine / theirs - 1) for mine, theirs in zip(expected, found, strict=True)]
        differences[name] = dict(zip(("loss", "gradient"), apart, strict=True))
        assert apart[0] < SAME_LOSS, f"{name}, our weights: loss {found[0]}, ours {expected[0]}"
        assert apart[1] < SAME_GRADIENT, (
            f"{name}, our weights: gradient's norm {found[1]}, ours {expected[1]}"
        )
    return differences


def copy_weights(name: str, model: nn.Module, ours: nn.Module) -> None:
    """Gives `model`, one of `MODELS`, our weights.

    Raises:
        AssertionError: A weight has no place there, or a parameter of it gets none.
    """
    weigh = MODELS[name].weights
    assert weigh is not None, f"{name} is another architecture"
    weights = weigh(ours.state_dict())
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys, f"{name} has no {result.unexpected_keys}"
    # Tied matrices have several names; buffers and Marian's fixed sinusoids are not trained.
    names = dict(model.named_parameters())
    left = [n for n in result.missing_keys if n in names and names[n].requires_grad]
    assert not left, f"{name} got no weights for {left}"


def _loss_and_gradient(model: nn.Module, loss: torch.Tensor) -> tuple[float, float]:
    model.zero_grad()
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(loss.detach()), float(norm)
