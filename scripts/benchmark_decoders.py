"""The decoders that are measured: ours and the peers, with one set of weights.

The model is copied into MarianMT of transformers and into CTranslate2; `check_outputs` and
`largest_logit_difference` show that all of them compute the same function.
"""

import dataclasses
import importlib
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from benchmark_peers import SIZES, marian_weights
from benchmarking import INT8, OURS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.modeling_vanilla_transformer import sinusoidal_positions
from vanilla_transformer.tokenization import SPECIAL_TOKENS, load_tokenizer

INSTALL = "pip install 'ctranslate2>=4.8'"
MARIAN = "MarianMT"
# One with the precision of the others, and one with weights of 8 bits; ours of those translates
# files, but has no `generate`.
CTRANSLATE2 = ("CTranslate2", f"CTranslate2{INT8}")
OURS_INT8 = f"{OURS}{INT8}"
CONTENDERS = (OURS, MARIAN, CTRANSLATE2[0], OURS_INT8, CTRANSLATE2[1])

# Rows of the tables of positions that peers have and the model does not.
MAX_POSITIONS = 1024
# MarianMT's is not an option.
MARIAN_LAYER_NORM_EPS = 1e-5
# Relative to the largest, in float32.
SAME_LOGITS = 1e-4
# Share of sentences.
SAME_IDS = 0.9


class UnequalError(RuntimeError):
    """A peer does not compute what the model computes, so that its time means nothing."""


# ------------------------------------------------------------------------------------ contenders


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search; scores are log P / n^length_penalty everywhere, as transformers has it.

    Attributes:
        num_beams: 1 is greedy.
        max_new_tokens: Bound on an output's tokens.
        is_forced: Every output has exactly that many: `</s>` is forbidden.
    """

    num_beams: int
    max_new_tokens: int
    is_forced: bool = False
    length_penalty: float = 1.0

    @property
    def name(self) -> str:
        """For a table."""
        return "greedy" if self.num_beams == 1 else f"beam {self.num_beams}"


@dataclasses.dataclass(frozen=True)
class Bulk:
    """How to translate a file.

    Attributes:
        num_beams: 1 is greedy.
        max_batch_tokens: Bound on sentences times longest source in a batch.
        is_trained: Sentences end by themselves, at most 50 tokens beyond their source (6.1);
            otherwise they go on to 1 token beyond.
    """

    num_beams: int
    max_batch_tokens: int
    is_trained: bool
    length_penalty: float = 1.0

    @property
    def max_tokens_over_source(self) -> int:
        """Tokens that an output may have beyond its source."""
        return 50 if self.is_trained else 1


class Contender(Protocol):
    """What is timed."""

    def generate(self, sources: list[list[int]], search: Search) -> list[list[int]]:
        """Token ids from token ids, in one batch; without start and end."""
        ...

    def translate(self, lines: list[str], bulk: Bulk) -> list[str]:
        """Lines from lines, in their order."""
        ...


class TransformersContender:
    """A model of transformers: its `generate`, for a file in a loop over sorted batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        **arguments: Any,
    ):
        self.model, self.tokenizer = model, tokenizer
        # More arguments for `generate` with a beam.
        self.arguments = arguments

    def generate(self, sources: list[list[int]], search: Search) -> list[list[int]]:
        """See `Contender`."""
        config = self.model.config
        rows = [torch.tensor(source) for source in sources]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
        lengths = torch.tensor([len(source) for source in sources])
        mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        arguments: dict[str, Any] = {"num_beams": search.num_beams, "do_sample": False}
        if search.num_beams > 1:
            arguments |= {"length_penalty": search.length_penalty, **self.arguments}
        if search.is_forced:
            arguments["min_new_tokens"] = search.max_new_tokens
        with torch.inference_mode():
            outputs = self.model.generate(
                input_ids=input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=search.max_new_tokens,
                **arguments,
            )
        ends = {config.eos_token_id, config.pad_token_id}
        # The start token of some is the pad.
        return [
            list(itertools.takewhile(lambda token: token not in ends, row))
            for row in outputs[:, 1:].tolist()
        ]

    def translate(self, lines: list[str], bulk: Bulk) -> list[str]:
        """See `Contender`."""
        sources = self.tokenizer(lines)["input_ids"]
        texts = [""] * len(lines)
        for batch in sorted_batches([len(source) for source in sources], bulk.max_batch_tokens):
            longest = len(sources[batch[0]])
            search = Search(
                bulk.num_beams,
                longest + bulk.max_tokens_over_source,
                length_penalty=bulk.length_penalty,
            )
            found = self.generate([sources[i] for i in batch], search)
            for i, text in zip(batch, self.decode(found), strict=True):
                texts[i] = text
        return texts

    def decode(self, outputs: list[list[int]]) -> list[str]:
        """Text of token ids."""
        texts: list[str] = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return texts


class OurContender(TransformersContender):
    """This package: `generate` of the model, `translate` for a file."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        precision: Literal["model", "int8"] = "model",
    ):
        super().__init__(model, tokenizer, length_penalty_formula="power")
        self.precision = precision

    def translate(self, lines: list[str], bulk: Bulk) -> list[str]:
        """See `Contender`."""
        decoding = DecodingSettings(
            num_beams=bulk.num_beams,
            length_penalty=bulk.length_penalty,
            length_penalty_formula="power",
            max_tokens_over_source=bulk.max_tokens_over_source,
        )
        found = translate(
            self.model,
            self.tokenizer,
            lines,
            decoding,
            max_batch_tokens=bulk.max_batch_tokens,
            max_source_tokens=min(bulk.max_batch_tokens, MAX_POSITIONS),
            precision=self.precision,
        )
        return [hypotheses[0].text for hypotheses in found]


class CTranslate2Contender:
    """CTranslate2. Its tokens are the ids as text."""

    def __init__(self, translator: Any, tokenizer: PreTrainedTokenizerBase):
        self.translator, self.tokenizer = translator, tokenizer

    def generate(self, sources: list[list[int]], search: Search) -> list[list[int]]:
        """See `Contender`."""
        return self._translate(sources, search, max_batch_size=0)

    def translate(self, lines: list[str], bulk: Bulk) -> list[str]:
        """See `Contender`."""
        sources: list[list[int]] = self.tokenizer(lines)["input_ids"]
        lengths = [len(source) for source in sources]
        if bulk.is_trained:
            batches = [list(range(len(sources)))]
        else:
            # It has one limit for a whole call, so that each length must be a call of its own.
            order = sorted(range(len(sources)), key=lambda i: -lengths[i])
            batches = [list(group) for _, group in itertools.groupby(order, lambda i: lengths[i])]
        outputs: list[list[int]] = [[]] * len(sources)
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            found = self._translate(
                [sources[i] for i in batch],
                Search(
                    bulk.num_beams,
                    longest + bulk.max_tokens_over_source,
                    length_penalty=bulk.length_penalty,
                ),
                max_batch_size=bulk.max_batch_tokens,
                batch_type="tokens",
            )
            for i, ids in zip(batch, found, strict=True):
                outputs[i] = ids
        texts: list[str] = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return texts

    def _translate(
        self, sources: list[list[int]], search: Search, **arguments: Any
    ) -> list[list[int]]:
        results = self.translator.translate_batch(
            [list(map(str, source)) for source in sources],
            beam_size=search.num_beams,
            length_penalty=search.length_penalty,
            max_decoding_length=search.max_new_tokens,
            min_decoding_length=search.max_new_tokens if search.is_forced else 1,
            **arguments,
        )
        return [list(map(int, result.hypotheses[0])) for result in results]


def sorted_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Indices of sentences of like length, longest first, within a budget of padded tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > max_batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


# --------------------------------------------------------------------------------- equal weights


def random_model(
    size: str, seed: int
) -> tuple[VanillaTransformerForConditionalGeneration, PreTrainedTokenizerBase]:
    """A model with the options that MarianMT has, down to its biases, and a tokenizer of words.

    Biases and gains are drawn, too, so that a copy that forgets one is noticed. An output layer
    tied to the embedding would have every sentence be one token over and over, and equal outputs
    would say little: gains of either sign behind the decoder, and sub-layers of it that add less,
    make sentences of several tokens that depend on their source.

    Args:
        size: Of `SIZES`.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    dimensions = SIZES[size]
    config = VanillaTransformerConfig(
        vocab_size=dimensions.vocab_size,
        d_model=dimensions.d_model,
        d_ff=dimensions.d_ff,
        num_heads=dimensions.num_heads,
        num_encoder_layers=dimensions.num_layers,
        num_decoder_layers=dimensions.num_layers,
        position_encoding="concatenated",
        layer_norm_eps=MARIAN_LAYER_NORM_EPS,
        attention_bias=True,
        output_bias=True,
        decoder_start_token_id=0,
    )
    model = VanillaTransformerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.02)
            elif name.endswith("layer_norm.weight"):
                parameter.normal_(1.0, 0.02)
            elif name.startswith("model.decoder") and name.endswith(
                ("o_proj.weight", "fc2.weight")
            ):
                parameter.mul_(0.5)
        model.model.decoder.layers[-1].ffn_layer_norm.weight.normal_()
    special = list(SPECIAL_TOKENS.values())
    words = [*special, *(f"w{i}" for i in range(len(special), config.vocab_size))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    return model, PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def random_lines(lengths: Iterable[int], vocab_size: int, seed: int) -> list[str]:
    """Lines of so many words of `random_model`."""
    generator = random.Random(seed)
    return [
        " ".join(f"w{generator.randrange(len(SPECIAL_TOKENS), vocab_size)}" for _ in range(length))
        for length in lengths
    ]


def news_lengths(count: int, seed: int) -> list[int]:
    """Tokens of sentences of news: 25, log-normal, 2 to 100."""
    generator = random.Random(seed)
    drawn = (generator.lognormvariate(math.log(22), 0.5) for _ in range(count))
    return [min(100, max(2, round(length))) for length in drawn]


def check_is_copyable(config: VanillaTransformerConfig) -> None:
    """Refuses a model that the peers cannot hold.

    Raises:
        ValueError: With the option that they do not have.
    """
    rules = {
        "layer_norm_position": (config.layer_norm_position, "post"),
        "d_k": (config.d_k, config.d_model // config.num_heads),
        "d_v": (config.d_v, config.d_model // config.num_heads),
        "num_segments": (config.num_segments, 0),
    }
    if config.position_encoding == "learned":
        raise ValueError(
            "position_encoding ('learned') is not copied into the peers; choose a --model with "
            "sinusoids"
        )
    for name, (value, held) in rules.items():
        if value != held:
            raise ValueError(
                f"{name} ({value!r}) must be {held!r} for MarianMT to hold the same weights; "
                "choose another --model"
            )
    if not isinstance(config.eos_token_id, int):
        raise ValueError(
            f"eos_token_id ({config.eos_token_id}) must be one id, which is all CTranslate2 is "
            "given here; choose another --model"
        )


def position_table(config: VanillaTransformerConfig) -> torch.Tensor:
    """Positions 0, 1, ... with the offset, `[MAX_POSITIONS, d]`."""
    positions = torch.arange(MAX_POSITIONS) + config.position_offset
    return sinusoidal_positions(positions, config.d_model, config.position_encoding)


def marian_copy(model: VanillaTransformerForConditionalGeneration) -> MarianMTModel:
    """MarianMT with the same weights.

    Raises:
        ValueError: It cannot hold them.
    """
    config = model.config
    check_is_copyable(config)
    assert config.d_ff is not None
    marian = MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            decoder_vocab_size=config.target_vocab_size,
            d_model=config.d_model,
            encoder_layers=config.num_encoder_layers,
            decoder_layers=config.num_decoder_layers,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.decoder_d_ff,
            activation_function=config.activation,
            max_position_embeddings=MAX_POSITIONS,
            scale_embedding=True,
            share_encoder_decoder_embeddings=config.share_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
        )
    ).eval()
    weights = marian_weights(model.state_dict())
    if config.output_bias:
        weights["final_logits_bias"] = weights.pop("lm_head.bias").unsqueeze(0)
    for name, tensor in marian.state_dict().items():
        if name.endswith("_proj.bias") and name not in weights:
            # Of all that Marian has, the paper's model lacks only these.
            weights[name] = torch.zeros_like(tensor)
    result = marian.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    left = [
        name
        for name in result.missing_keys
        if "embed_positions" not in name and name != "final_logits_bias"
    ]
    assert not left, left
    return adapt_marian(marian, config)


def adapt_marian(marian: MarianMTModel, config: VanillaTransformerConfig) -> MarianMTModel:
    """Puts into MarianMT what its checkpoints do not hold: table of positions, epsilon."""
    if config.position_encoding != "concatenated" or config.position_offset:
        for stack in (marian.model.encoder, marian.model.decoder):
            stack.embed_positions.weight.data.copy_(position_table(config))
    for module in marian.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps
    return marian


def find_ctranslate2() -> Any | None:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("ctranslate2")
    except ImportError:
        return None


def write_ctranslate2(model: VanillaTransformerForConditionalGeneration, folder: Path) -> None:
    """Writes the weights as a model of CTranslate2, in float32; it quantises when it loads.

    Raises:
        ValueError: It cannot hold them.
    """
    config = model.config
    check_is_copyable(config)
    specs = importlib.import_module("ctranslate2.specs")
    activations = {
        "relu": specs.Activation.RELU,
        "swish": specs.Activation.SWISH,
        "gelu": specs.Activation.GELU,
    }
    spec = specs.TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=False,
        activation=activations[config.activation],
    )
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}

    def set_linear(linear: Any, *names: str) -> None:
        linear.weight = torch.cat([weights[f"{name}.weight"] for name in names]).numpy()
        if f"{names[0]}.bias" in weights:
            linear.bias = torch.cat([weights[f"{name}.bias"] for name in names]).numpy()

    def set_norm(norm: Any, name: str) -> None:
        norm.gamma = weights[f"{name}.weight"].numpy()
        norm.beta = weights[f"{name}.bias"].numpy()

    for stack, embeddings in (
        ("encoder", spec.encoder.embeddings[0]),
        ("decoder", spec.decoder.embeddings),
    ):
        part = getattr(spec, stack)
        embeddings.weight = weights[f"model.{stack}.embed_tokens.weight"].numpy()
        part.scale_embeddings = math.sqrt(config.d_model)
        part.position_encodings.encodings = position_table(config).numpy()
        for i, layer in enumerate(part.layer):
            prefix = f"model.{stack}.layers.{i}"
            attention = [f"{prefix}.self_attn.{name}_proj" for name in "qkvo"]
            set_linear(layer.self_attention.linear[0], *attention[:3])
            set_linear(layer.self_attention.linear[1], attention[3])
            set_norm(layer.self_attention.layer_norm, f"{prefix}.self_attn_layer_norm")
            if stack == "decoder":
                attention = [f"{prefix}.cross_attn.{name}_proj" for name in "qkvo"]
                set_linear(layer.attention.linear[0], attention[0])
                set_linear(layer.attention.linear[1], *attention[1:3])
                set_linear(layer.attention.linear[2], attention[3])
                set_norm(layer.attention.layer_norm, f"{prefix}.cross_attn_layer_norm")
            set_linear(layer.ffn.linear_0, f"{prefix}.fc1")
            set_linear(layer.ffn.linear_1, f"{prefix}.fc2")
            set_norm(layer.ffn.layer_norm, f"{prefix}.ffn_layer_norm")
    set_linear(spec.decoder.projection, "lm_head")
    spec.register_source_vocabulary([str(i) for i in range(config.vocab_size)])
    spec.register_target_vocabulary([str(i) for i in range(config.target_vocab_size)])
    # No id is unknown, but it asks for one.
    spec.config.unk_token = str(config.pad_token_id)
    spec.config.bos_token = str(config.bos_token_id)
    spec.config.eos_token = str(config.eos_token_id)
    spec.config.decoder_start_token = str(config.decoder_start_token_id)
    spec.config.add_source_eos = False
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True)
    spec.save(str(folder))


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The same weights in the format of each contender, in one folder.

    What a fresh process needs to build a contender.
    """

    folder: Path
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1

    @classmethod
    def write(
        cls,
        model: VanillaTransformerForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        **settings: Any,
    ) -> "Checkpoints":
        """Copies the model into every peer that is here.

        Raises:
            ValueError: A peer cannot hold it.
        """
        model.save_pretrained(folder / "ours")
        tokenizer.save_pretrained(folder / "ours")
        marian_copy(model).save_pretrained(folder / "marian")
        if find_ctranslate2() is not None:
            write_ctranslate2(model, folder / "ctranslate2")
        return cls(folder, **settings)

    def load_ours(self) -> VanillaTransformerForConditionalGeneration:
        """Our model, in evaluation mode, on its device."""
        model = VanillaTransformerForConditionalGeneration.from_pretrained(
            self.folder / "ours", dtype=self.dtype
        )
        return cast(VanillaTransformerForConditionalGeneration, model.eval().to(self.device))

    def load(self, name: str, tokenizer: PreTrainedTokenizerBase) -> Contender:
        """A contender, ready to translate."""
        # Also in the processes that measure memory and loading.
        transformers_logging.disable_progress_bar()
        if name in (OURS, OURS_INT8):
            return OurContender(
                self.load_ours(), tokenizer, "int8" if name == OURS_INT8 else "model"
            )
        if name == MARIAN:
            marian = MarianMTModel.from_pretrained(self.folder / "marian", dtype=self.dtype)
            config = VanillaTransformerConfig.from_pretrained(self.folder / "ours")
            adapt_marian(marian, config).eval().to(self.device)
            return TransformersContender(marian, tokenizer)
        precision = "int8" if name.endswith(INT8) else str(self.dtype).removeprefix("torch.")
        translator = importlib.import_module("ctranslate2").Translator(
            str(self.folder / "ctranslate2"),
            device=self.device,
            compute_type=precision,
            inter_threads=1,
            intra_threads=self.threads,
        )
        return CTranslate2Contender(translator, tokenizer)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The one of all contenders."""
        return load_tokenizer(self.folder / "ours")


# -------------------------------------------------------------------------------- equal outputs


def check_outputs(
    contenders: Mapping[str, Contender],
    sources: list[list[int]],
    search: Search,
    least: Mapping[str, float],
) -> dict[str, float]:
    """Lets all contenders decode the same batch.

    Args:
        contenders: By name, ours among them.
        sources: The batch.
        search: How.
        least: For some contenders the share of sentences for which they must find our ids.

    Returns:
        For each contender the share of sentences with the same ids as ours.

    Raises:
        UnequalError: A contender found others for more.
    """
    expected = contenders[OURS].generate(sources, search)
    shares = {}
    for name, contender in contenders.items():
        found = expected if name == OURS else contender.generate(sources, search)
        differing = [i for i, ids in enumerate(found) if ids != expected[i]]
        shares[name] = 1 - len(differing) / len(sources)
        if shares[name] < least.get(name, 0):
            i = differing[0]
            raise UnequalError(
                f"{name} finds other outputs than {OURS} for {len(differing)} of {len(sources)} "
                f"sentences ({search.name}); sentence {i}: {found[i]}, not {expected[i]}. Its "
                "weights or its search are not the same, so that its time would mean nothing"
            )
    return shares


def largest_logit_difference(
    model: PreTrainedModel, peer: PreTrainedModel, sources: list[list[int]]
) -> float:
    """Of two models that read the same tokens, relative to the largest logit.

    The decoder reads what the encoder reads, the first source token at its second position.
    """
    rows = [torch.tensor(source) for source in sources]
    pad = model.config.pad_token_id
    batch = pad_sequence(rows, batch_first=True, padding_value=pad).to(model.device)
    start = torch.full_like(batch[:, :1], model.config.decoder_start_token_id)
    decoder_input_ids = torch.cat([start, batch[:, :-1]], dim=1)
    is_real = batch != pad
    with torch.inference_mode():
        expected, found = (
            each(
                input_ids=batch,
                attention_mask=is_real.long(),
                decoder_input_ids=decoder_input_ids,
            ).logits[is_real]
            for each in (model, peer)
        )
    return float((expected - found).abs().max() / expected.abs().max())
