"""What a run will cost, before it starts: parameters, tokens, epochs, FLOPs and memory.

Sums over the architecture; nothing is trained and no weight is allocated. FLOPs count a
multiplication and an addition as two, of matrix products only: all else together is a few percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from .settings import TrainingSettings

# Tokens that the encoder reads of an example where the corpus is not at hand: newstest2013 has 25
# to 30 byte-pair tokens a side, SQuAD 170 to 190 a question with its context, SNLI and its like 30
# to 40 a pair, and the different texts of either 20 to 40.
_ASSUMED_LENGTHS: dict[type[PreTrainedModel], int] = {
    VanillaTransformerForConditionalGeneration: 30,
    VanillaTransformerForQuestionAnswering: 180,
    VanillaTransformerForSequenceClassification: 35,
    VanillaTransformerForMaskedLM: 30,
}

# Batches of sentences of like length are this full: what the last row leaves free is lost.
_BATCH_FILLING = 0.95

# Byte-level BPE gives 1.1 to 1.5 tokens a word on the corpora of the recipes.
TOKENS_PER_WORD = 1.3

# Texts in which the tokens of a word are counted.
_SAMPLED_TEXTS = 2000


@dataclass(frozen=True)
class CorpusSize:
    """How much text there is to train on.

    Attributes:
        examples: What the model is given one at a time: pairs of texts, windows, blocks.
        source_tokens, target_tokens: Of all of them, `</s>` included. Where no text is written,
            an example has one target token, as for the batches.
        is_counted: Whether a tokenizer counted the tokens; else they are estimated from the words.
    """

    examples: int
    source_tokens: float
    target_tokens: float
    is_counted: bool


@dataclass(frozen=True)
class Shape:
    """A batch: tokens, padding included, and tokens in an example of it.

    Where no text is written, an example has one target token: the one step of a decoder that pools.
    """

    source_tokens: float
    target_tokens: float
    source_length: float
    target_length: float

    def share(self, parts: int) -> Shape:
        """One of `parts` equal parts."""
        return Shape(
            self.source_tokens / parts,
            self.target_tokens / parts,
            self.source_length,
            self.target_length,
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one process at the peak of an update.

    Attributes:
        weights: Parameters in float32, and under autocast their copies in half precision.
        gradients: One float32 a parameter; with several processes DDP's buckets as well.
        optimizer: Adam's two moments.
        average: The moving average of the weights.
        activations: What the forward pass keeps for the backward pass, for one piece.
        output_layer: Logits of a chunk of rows and the gradient of the output matrix.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    output_layer: float

    @property
    def total(self) -> float:
        """All of it; allocators and the libraries need some more."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class RunEstimate:
    """What a run will cost.

    Attributes:
        config: The architecture.
        has_decoder: Whether the decoder's layers are part of the model.
        writes_text: Whether target tokens are tokens; else they count examples.
        parameters: Of the model, tied ones once; exact.
        update: The global batch of one update.
        piece: What one process computes at a time.
        processes: How many share an update.
        updates_per_epoch, epochs: None where the corpus is not at hand.
        update_flops: Of one update on all processes together.
        total_flops: Of the whole run, validation left out.
        memory: Of one process.
    """

    config: VanillaTransformerConfig
    has_decoder: bool
    writes_text: bool
    parameters: int
    update: Shape
    piece: Shape
    processes: int
    updates_per_epoch: float | None
    epochs: float | None
    update_flops: float
    total_flops: float
    memory: MemoryEstimate


def estimate_run(
    config: VanillaTransformerConfig,
    settings: TrainingSettings,
    *,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
    masked_share: float = 0.15,
    corpus: CorpusSize | None = None,
    processes: int = 1,
    is_sharded: bool = False,
    on_gpu: bool = False,
) -> RunEstimate:
    """Adds up what a run will cost.

    Args:
        config: The architecture.
        settings: How to train.
        model_class: The head that is trained.
        masked_share: Of the tokens, how many a masked language model has to guess.
        corpus: The size of the training data; without it batches are taken to be full, and
            examples to have as many tokens as is usual for the head (30 a side for translation).
        processes: How many share an update.
        is_sharded: Parameters, gradients and optimizer are shared out too (FSDP2).
        on_gpu: Dropout keeps a byte an element there, and four on a processor.
    """
    writes_text = model_class is VanillaTransformerForConditionalGeneration
    updates_per_epoch = None
    if corpus is None:
        length = _ASSUMED_LENGTHS[model_class]
        update = Shape(settings.max_source_tokens, settings.max_target_tokens, length, length)
        if not writes_text:
            # Tokens or examples, whichever budget is full first.
            examples = min(settings.max_source_tokens / length, settings.max_target_tokens)
            update = Shape(examples * length, examples, length, 1)
    else:
        # The side that fills its budget first ends a batch.
        batches = max(
            1.0,
            corpus.source_tokens / settings.max_source_tokens,
            corpus.target_tokens / settings.max_target_tokens,
        )
        updates_per_epoch = batches / _BATCH_FILLING if batches > 1 else 1.0
        update = Shape(
            corpus.source_tokens / batches,
            corpus.target_tokens / batches,
            corpus.source_tokens / corpus.examples,
            corpus.target_tokens / corpus.examples,
        )
    piece = update.share(processes * settings.accumulation_steps)
    update_flops = training_flops(
        config,
        update,
        model_class,
        masked_share=masked_share,
        activation_checkpointing=settings.activation_checkpointing,
    )
    return RunEstimate(
        config=config,
        has_decoder=_has_decoder(config, model_class),
        writes_text=writes_text,
        parameters=count_parameters(config, model_class),
        update=update,
        piece=piece,
        processes=processes,
        updates_per_epoch=updates_per_epoch,
        epochs=None if updates_per_epoch is None else settings.updates / updates_per_epoch,
        update_flops=update_flops,
        total_flops=settings.updates * update_flops,
        memory=estimate_memory(
            config,
            settings,
            piece,
            model_class,
            masked_share=masked_share,
            processes=processes,
            is_sharded=is_sharded,
            on_gpu=on_gpu,
        ),
    )


def count_parameters(
    config: VanillaTransformerConfig,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
) -> int:
    """Parameters of the model, tied ones once: exact, and no memory is taken for them."""
    with torch.device("meta"):
        return int(model_class(config).num_parameters())


def training_flops(
    config: VanillaTransformerConfig,
    shape: Shape,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
    *,
    masked_share: float = 0.15,
    activation_checkpointing: bool = False,
) -> float:
    """Forward and backward over one batch: three times the forward pass.

    The backward pass has two products for each one of the forward pass: one gives the gradient of
    its input, one that of the weights. Activation checkpointing runs the layers once more.
    """
    layers = _layer_flops(config, shape, _has_decoder(config, model_class))
    rows, width = _output_layer(config, shape, model_class, masked_share)
    output = 2 * rows * config.d_model * width
    return (4 if activation_checkpointing else 3) * layers + 3 * output


def _has_decoder(config: VanillaTransformerConfig, model_class: type[PreTrainedModel]) -> bool:
    if model_class is VanillaTransformerForSequenceClassification:
        return config.pooling == "decoder"
    return model_class is VanillaTransformerForConditionalGeneration


def _output_layer(
    config: VanillaTransformerConfig,
    shape: Shape,
    model_class: type[PreTrainedModel],
    masked_share: float,
) -> tuple[float, int]:
    """How many states the output layer reads, and how many logits it makes of each."""
    if model_class is VanillaTransformerForMaskedLM:
        # In training, of the masked tokens only.
        return masked_share * shape.source_tokens, config.vocab_size
    if model_class is VanillaTransformerForQuestionAnswering:
        # First and last token of the answer.
        return shape.source_tokens, 2
    if model_class is VanillaTransformerForSequenceClassification:
        return shape.target_tokens, config.num_labels
    return shape.target_tokens, config.decoder_vocab_size or config.vocab_size


def _layer_flops(config: VanillaTransformerConfig, shape: Shape, has_decoder: bool) -> float:
    """The forward pass of the layers, without the output layer.

    For a token that attends, with h heads of d_k and d_v:

    - projections (3.2.2): 2 d h (d_k + d_v) for q and o, and as much for k and v of a token that is
      attended to;
    - scores and their product with the values (3.2.1): 2 h (d_k + d_v) for each position attended
      to, the masked ones of the decoder included;
    - feed-forward (3.3): 4 d d_ff.
    """
    d, (keys, values, decoder_d_ff) = config.d_model, _widths(config)
    width = keys + values
    source, target = shape.source_tokens, shape.target_tokens
    projection = 2 * d * width
    encoder_layer = source * (
        2 * projection + 2 * width * shape.source_length + 4 * d * config.d_ff
    )
    self_attention = target * (2 * projection + 2 * width * shape.target_length)
    cross_attention = (target + source) * projection + target * 2 * width * shape.source_length
    decoder_layer = self_attention + cross_attention + target * 4 * d * decoder_d_ff
    encoder = config.num_encoder_layers * encoder_layer
    return encoder + has_decoder * config.num_decoder_layers * decoder_layer


def _widths(config: VanillaTransformerConfig) -> tuple[int, int, int]:
    """Keys and values of all heads together, and the decoder's d_ff."""
    assert config.d_k is not None
    assert config.d_v is not None
    assert config.decoder_d_ff is not None
    return config.num_heads * config.d_k, config.num_heads * config.d_v, config.decoder_d_ff


def estimate_memory(
    config: VanillaTransformerConfig,
    settings: TrainingSettings,
    piece: Shape,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
    *,
    masked_share: float = 0.15,
    processes: int = 1,
    is_sharded: bool = False,
    on_gpu: bool = False,
) -> MemoryEstimate:
    """Bytes on one process at the peak of an update, for pieces of that shape."""
    half = settings.precision != "no"
    parameters = count_parameters(config, model_class)
    owned = parameters / processes if is_sharded else parameters
    # DDP reduces gradients in buckets of their own.
    has_buckets = processes > 1 and not is_sharded
    rows, width = _output_layer(config, piece, model_class, masked_share)
    # A vocabulary's logits are computed in chunks, along with the gradient of their matrix.
    rows = min(rows, max(256, config.d_model))
    return MemoryEstimate(
        weights=4 * owned + (2 * parameters if half else 0),
        gradients=4 * owned * (2 if has_buckets else 1),
        optimizer=8 * owned,
        average=4 * owned if settings.ema_decay is not None else 0,
        activations=activation_bytes(
            config,
            piece,
            model_class,
            half=half,
            activation_checkpointing=settings.activation_checkpointing,
            on_gpu=on_gpu,
        ),
        output_layer=width * (4 * config.d_model + rows * (6 if half else 4)),
    )


def activation_bytes(
    config: VanillaTransformerConfig,
    shape: Shape,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
    *,
    half: bool = False,
    activation_checkpointing: bool = False,
    on_gpu: bool = True,
) -> float:
    """What the forward pass keeps for the backward pass.

    A sub-layer keeps its input, what its matrix products and its activation read, the dropout mask
    and the sum that its normalisation reads. Matrix products read half precision under autocast;
    normalisation stays in float32. Attention keeps no weights: SDPA computes them twice. A CPU has
    masks of four bytes and, for packed tokens, the output of attention in blocks as well.
    """
    d, (keys, values, decoder_d_ff) = config.d_model, _widths(config)
    size = 2 if half else 4
    # Of ReLU the backward pass needs the output alone, which the next product reads anyway.
    kept_of_activation = 1 if config.activation == "relu" else 2
    end = 4 * d + ((1 if on_gpu else 4) * d if config.dropout else 0)
    query_side = size * (d + keys + (1 if on_gpu else 2) * values) + end
    key_side = size * (keys + values)

    def feed_forward(d_ff: int) -> float:
        return size * (d + kept_of_activation * d_ff) + end

    encoder_layer = shape.source_tokens * (query_side + key_side + feed_forward(config.d_ff))
    decoder_layer = (
        shape.target_tokens * (2 * query_side + key_side + feed_forward(decoder_d_ff))
        + shape.source_tokens * key_side
    )
    source_stream, target_stream = (
        4 * d * tokens for tokens in (shape.source_tokens, shape.target_tokens)
    )
    # The encoder's output, which every decoder layer reads, and the gradient that the loss leaves;
    # without a decoder the output layer keeps the one or the loss the other.
    ends = source_stream + target_stream
    num_decoder_layers = config.num_decoder_layers
    if not _has_decoder(config, model_class):
        ends, num_decoder_layers, decoder_layer = source_stream, 0, 0.0
    if activation_checkpointing:
        # Only the input of every layer, and one layer at a time in full.
        return (
            config.num_encoder_layers * source_stream
            + num_decoder_layers * target_stream
            + max(encoder_layer, decoder_layer)
            + ends
        )
    layers = config.num_encoder_layers * encoder_layer + num_decoder_layers * decoder_layer
    return layers + ends


# ------------------------------------------------------------------------------ how much text


def estimate_tokens(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> np.ndarray:
    """About how many tokens each text has, without special ones: an array `[N]`.

    Its words are counted; how many tokens a word has, the tokenizer tells of a sample, spread over
    the texts. Without one it is taken to be 1.3.
    """
    texts = list(texts)
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    sample = slice(None, None, max(1, len(texts) // _SAMPLED_TEXTS))
    if tokenizer is None or not words[sample].sum():
        return TOKENS_PER_WORD * words
    ids = tokenizer(texts[sample], add_special_tokens=False, verbose=False)["input_ids"]
    return words * (sum(map(len, ids)) / words[sample].sum())


def measure_pairs(
    sources: Iterable[str],
    targets: Iterable[str],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> CorpusSize:
    """The size of pairs of texts of which the second is written, by `estimate_tokens`.

    Pairs with a side of more than `max_length` tokens, `</s>` included, do not count.
    """
    lengths = 1 + np.stack([estimate_tokens(side, tokenizer) for side in (sources, targets)])
    source, target = lengths[:, lengths.max(axis=0) <= max_length]
    return CorpusSize(
        len(source), float(source.sum()), float(target.sum()), is_counted=tokenizer is not None
    )
