"""Configuration of the Transformer of "Attention Is All You Need" (Vaswani et al. 2017).

This file travels to the Hub with every model: it imports nothing but transformers.
"""

import copy
import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Arguments that are no fields, yet that `PreTrainedConfig` or the Hub put into a config on purpose.
_FRAMEWORK_ARGUMENTS = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "tie_last_hidden_states",
        "torch_dtype",
    }
)

# Table 3 of the paper, each row as what it changes in the base model, and "big". Steps, perplexity
# and BLEU belong to training, not to the architecture.
PAPER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "base": {},
    "big": {"d_model": 1024, "d_ff": 4096, "num_heads": 16, "dropout": 0.3},
    "A-h1": {"num_heads": 1, "d_k": 512, "d_v": 512},
    "A-h4": {"num_heads": 4, "d_k": 128, "d_v": 128},
    "A-h16": {"num_heads": 16, "d_k": 32, "d_v": 32},
    "A-h32": {"num_heads": 32, "d_k": 16, "d_v": 16},
    "B-dk16": {"d_k": 16},
    "B-dk32": {"d_k": 32},
    "C-N2": {"num_encoder_layers": 2, "num_decoder_layers": 2},
    "C-N4": {"num_encoder_layers": 4, "num_decoder_layers": 4},
    "C-N8": {"num_encoder_layers": 8, "num_decoder_layers": 8},
    "C-d256": {"d_model": 256, "d_k": 32, "d_v": 32},
    "C-d1024": {"d_model": 1024, "d_k": 128, "d_v": 128},
    "C-ff1024": {"d_ff": 1024},
    "C-ff4096": {"d_ff": 4096},
    "D-drop0.0": {"dropout": 0.0},
    "D-drop0.2": {"dropout": 0.2},
    "D-ls0.0": {"label_smoothing": 0.0},
    "D-ls0.2": {"label_smoothing": 0.2},
    "E": {"position_encoding": "learned", "max_position_embeddings": 1024},
}


@strict
class VanillaTransformerConfig(PreTrainedConfig):
    r"""Dimensions and variants of the model. The defaults are the paper's base model (Table 3).

    Fields carry the paper's names; the Hugging Face names (`hidden_size`, `intermediate_size`,
    `num_attention_heads`, `num_hidden_layers`, `encoder_layers`, ...) read and construct too.

    Args:
        vocab_size: Rows of the source embedding, and of the target one unless
            `decoder_vocab_size` is given. The paper's English-German byte-pair encoding has
            about 37,000 (section 5.1).
        d_model: Width of every sub-layer's output (3.1).
        d_ff: Width inside the feed-forward sub-layers (3.3); the encoder's alone where
            `decoder_d_ff` is given.
        num_heads: h, the attention heads of every layer (3.2.2).
        num_encoder_layers: N of the encoder (3.1).
        num_decoder_layers: N of the decoder. Deep encoders with shallow decoders
            (allenai/wmt16-en-de-12-1) set it apart.
        d_k: Width of a head's queries and keys. `None`: `d_model / num_heads`.
        d_v: Width of a head's values. `None`: `d_model / num_heads`.
        decoder_d_ff: d_ff of the decoder. `None`: `d_ff`.
        dropout: P_drop, on each sub-layer's output before it is added to the residual, and on the
            sums of embeddings and positions (5.4).
        label_smoothing: epsilon_ls (5.4), used in training mode only: the evaluation loss is a
            plain negative log-likelihood.
        layer_norm_position: `"post"` normalises after the residual sum (the paper, 3.1);
            `"pre"` normalises each sub-layer's input and the output of each stack
            (Tensor2Tensor v2).
        final_layer_norm: Whether each stack ends with a norm of its own. `None`: with
            `layer_norm_position="pre"` alone. `torch.nn.Transformer` always has them, so with
            `"post"` one on top of the last layer's.
        layer_norm_eps: The paper gives none; 1e-6 is that of its authors' Tensor2Tensor.
            transformers' Marian and FSMT, and fairseq, have 1e-5.
        position_encoding: How position p and the pair of dimensions i become numbers:
            `"interleaved"`: sin and cos in turn, frequency 10000^(-2i/d_model) (3.5; OpenNMT);
            `"concatenated"`: all sines, then all cosines, same frequencies (MarianMT in
            transformers, Sockeye);
            `"concatenated_inclusive"`: all sines, then all cosines, frequencies
            10000^(-i/(d_model/2 - 1)), whose last is exactly 1/10000 (Tensor2Tensor, fairseq, FSMT,
            Marian itself);
            `"learned"`: a trained table (Table 3, row E), which needs `max_position_embeddings`.
        max_position_embeddings: Rows of the learned table. Sinusoids have no last position.
        position_offset: Number of the first position. fairseq and FSMT count from
            `pad_token_id + 1`, the paper from 0.
        activation: Between the two feed-forward products: `"relu"` (3.3), `"swish"` (OPUS-MT)
            or `"gelu"`.
        attention_bias: Whether W^Q, W^K, W^V and W^O come with biases. The paper's (3.2.2) and
            Tensor2Tensor's do not; Marian's, fairseq's and torch's do.
        tie_word_embeddings: Whether the output layer is the target embedding (3.4).
        share_embeddings: Whether source and target use one embedding matrix (3.4). `None`: yes
            where the output layer is tied and there is one vocabulary.
        decoder_vocab_size: Size of a target vocabulary of its own (facebook/wmt19-en-ru).
        output_bias: Whether the output layer has a bias (`final_logits_bias` in Marian).
        num_segments: Rows of a learned embedding of `token_type_ids`, added to the encoder's input.
            The paper has none (0). With 2 the first text of a pair is told from the second; the
            rows start at zero, so that a translation checkpoint starts as it was.
        has_no_answer: Whether the question answering head may say that the context holds no
            answer (SQuAD v2.0).
        no_answer_threshold: A question is left unanswered where the logits of "no answer" exceed
            those of the best span by more than this; fitted on validation data. None always
            answers.
        pooling: What the sequence classifier reads: `"mean"` or `"max"` over the real tokens of
            the encoder, or `"decoder"`: the state of one decoder step that attends to them.
        pad_token_id, bos_token_id, eos_token_id: Ids in the vocabularies.
        decoder_start_token_id: What the decoder reads first. fairseq starts with `</s>`, Marian
            with a pad whose embedding is zero.
        use_cache: Whether decoding keeps keys and values.

    Raises:
        ValueError: A value that cannot work, with the rule and a remedy.
        huggingface_hub.errors.StrictDataclassFieldValidationError: A value of the wrong type.

    Example:

    ```python
    >>> from vanilla_transformer import VanillaTransformerConfig
    >>> VanillaTransformerConfig().d_k
    64
    >>> VanillaTransformerConfig(hidden_size=1024, num_attention_heads=16).d_model
    1024
    ```
    """

    model_type = "vanilla_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "encoder_ffn_dim": "d_ff",
        "decoder_ffn_dim": "decoder_d_ff",
        "num_attention_heads": "num_heads",
        "encoder_attention_heads": "num_heads",
        "decoder_attention_heads": "num_heads",
        "num_hidden_layers": "num_encoder_layers",
        "encoder_layers": "num_encoder_layers",
        "decoder_layers": "num_decoder_layers",
        "head_dim": "d_k",
        "hidden_dropout_prob": "dropout",
        "activation_function": "activation",
        "hidden_act": "activation",
    }
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.cross_attn.q_proj": "colwise",
        "layers.*.cross_attn.k_proj": "colwise",
        "layers.*.cross_attn.v_proj": "colwise",
        "layers.*.cross_attn.o_proj": "rowwise",
        "layers.*.fc1": "colwise",
        "layers.*.fc2": "rowwise",
    }

    vocab_size: int = 37_000
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    d_k: int | None = None
    d_v: int | None = None
    decoder_d_ff: int | None = None
    dropout: float | int = 0.1
    label_smoothing: float | int = 0.1
    layer_norm_position: Literal["post", "pre"] = "post"
    final_layer_norm: bool | None = None
    layer_norm_eps: float = 1e-6
    position_encoding: Literal[
        "interleaved", "concatenated", "concatenated_inclusive", "learned"
    ] = "interleaved"
    max_position_embeddings: int | None = None
    position_offset: int = 0
    activation: Literal["relu", "swish", "gelu"] = "relu"
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    share_embeddings: bool | None = None
    decoder_vocab_size: int | None = None
    output_bias: bool = False
    num_segments: int = 0
    has_no_answer: bool = False
    no_answer_threshold: float | None = None
    pooling: Literal["mean", "max", "decoder"] = "mean"
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1
    use_cache: bool = True
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # The other names first: what is derived below must see their values.
        chosen: dict[str, str] = {}
        for name in sorted(name for name in kwargs if name in self.attribute_map):
            field, value = self.attribute_map[name], kwargs.pop(name)
            if field in chosen and getattr(self, field) != value:
                raise ValueError(
                    f"{chosen[field]}={getattr(self, field)!r} and {name}={value!r} are one field "
                    f"here, {field}, and cannot differ; give {field} alone"
                )
            chosen[field] = name
            setattr(self, field, value)
        self._report_unknown_arguments(kwargs)
        if self.num_heads > 0:
            for name in ("d_k", "d_v"):
                if getattr(self, name) is None:
                    if self.d_model % self.num_heads:
                        nearest = max(1, round(self.d_model / self.num_heads)) * self.num_heads
                        raise ValueError(
                            f"d_model ({self.d_model}) must be divisible by num_heads "
                            f"({self.num_heads}) where {name} is not given; "
                            f"try d_model={nearest} or set {name}"
                        )
                    setattr(self, name, self.d_model // self.num_heads)
        if self.final_layer_norm is None:
            self.final_layer_norm = self.layer_norm_position == "pre"
        if self.decoder_d_ff is None:
            self.decoder_d_ff = self.d_ff
        if self.share_embeddings is None:
            self.share_embeddings = self.tie_word_embeddings and self.decoder_vocab_size is None
        super().__post_init__(**kwargs)
        # `@strict` checks again, but what it raises then is no ValueError.
        self.validate_architecture()

    @classmethod
    def from_paper(cls, name: str = "base", **overrides: Any) -> "VanillaTransformerConfig":
        """The architecture of a row of the paper's Table 3: a key of `PAPER_ARCHITECTURES`.

        Row E does not say how many positions it trained; 1,024 stand here.

        Raises:
            ValueError: `name` is no row of the table.
        """
        if name not in PAPER_ARCHITECTURES:
            raise ValueError(
                f"{name!r} is no architecture of the paper; choose from "
                f"{', '.join(PAPER_ARCHITECTURES)}"
            )
        return cls(**{**PAPER_ARCHITECTURES[name], **overrides})

    @classmethod
    def _report_unknown_arguments(cls, kwargs: dict[str, Any]) -> None:
        # `PreTrainedConfig` keeps whatever it is given, so a typing error would build another
        # model in silence. A warning, not an error: a later version's config must still load.
        fields = set(cls.__dataclass_fields__)
        known = fields | set(cls.attribute_map) | _FRAMEWORK_ARGUMENTS
        generation = set(GenerationConfig().to_dict()) - known
        for name in sorted(set(kwargs) - known):
            if name in generation:
                logger.warning(
                    f"{name}={kwargs[name]!r} is a generation parameter and is ignored here: set "
                    f"it in model.generation_config or pass it to generate()."
                )
                continue
            nearest = difflib.get_close_matches(name, fields | set(cls.attribute_map), n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            logger.warning(
                f"{cls.__name__} knows no argument {name}={kwargs[name]!r}; it has no effect.{hint}"
            )

    def validate_architecture(self) -> None:
        """Refuses what cannot work; called at construction and by `@strict` at every saving.

        Raises:
            ValueError: With the value, the rule and a remedy.
        """
        for name in [
            "vocab_size",
            "d_model",
            "d_ff",
            "num_heads",
            "num_encoder_layers",
            "num_decoder_layers",
            "d_k",
            "d_v",
            "decoder_d_ff",
            "decoder_vocab_size",
            "max_position_embeddings",
        ]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if self.position_encoding != "learned" and self.d_model % 2:
            raise ValueError(
                f"d_model ({self.d_model}) must be even for sinusoidal positions, a sine and a "
                f"cosine for each frequency; try d_model={self.d_model + 1}"
            )
        if self.position_encoding == "concatenated_inclusive" and self.d_model < 4:
            raise ValueError(
                f"d_model ({self.d_model}) must be at least 4 for "
                "position_encoding='concatenated_inclusive', which needs two frequencies"
            )
        if self.position_encoding == "learned" and self.max_position_embeddings is None:
            raise ValueError(
                "position_encoding='learned' needs max_position_embeddings, the rows of its "
                "table; try max_position_embeddings=1024"
            )
        if self.position_offset < 0:
            raise ValueError(f"position_offset ({self.position_offset}) must be at least 0")
        if self.num_segments < 0 or self.num_segments == 1:
            raise ValueError(
                f"num_segments ({self.num_segments}) must be 0, for none, or at least 2: one "
                "segment tells nothing apart; try num_segments=2"
            )
        for name in ("dropout", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} ({value}) must lie in [0, 1); 0 switches it off")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps ({self.layer_norm_eps}) must be above 0; try 1e-6")
        if self.share_embeddings and not self.tie_word_embeddings:
            raise ValueError(
                "share_embeddings=True needs tie_word_embeddings=True: published checkpoints share "
                "all three matrices, the decoder's two, or none; leave share_embeddings unset"
            )
        if self.share_embeddings and self.decoder_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"share_embeddings=True needs one vocabulary, yet vocab_size ({self.vocab_size}) "
                f"and decoder_vocab_size ({self.decoder_vocab_size}) differ; "
                "set share_embeddings=False"
            )
        target_size = self.target_vocab_size
        limits = {
            "pad_token_id": min(self.vocab_size, target_size),
            "bos_token_id": target_size,
            "eos_token_id": target_size,
            "decoder_start_token_id": target_size,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < limit:
                    raise ValueError(
                        f"{name} ({token_id}) must lie in the vocabulary, 0 to {limit - 1}"
                    )

    @property
    def target_vocab_size(self) -> int:
        """Rows of the target embedding and of the output layer."""
        return self.vocab_size if self.decoder_vocab_size is None else self.decoder_vocab_size

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> "VanillaTransformerConfig":
        """The config itself or, for `decoder=True`, a copy that reads as the decoder's.

        Caches are sized by it: `num_hidden_layers` must then be the decoder's depth, which the
        encoder's need not equal.
        """
        if not decoder or encoder:
            return self
        config = copy.deepcopy(self)
        config.num_encoder_layers = self.num_decoder_layers
        config.vocab_size = self.target_vocab_size
        return config


__all__ = ["PAPER_ARCHITECTURES", "VanillaTransformerConfig"]
