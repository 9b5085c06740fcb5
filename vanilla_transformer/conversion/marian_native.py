"""Marian's own `.npz` models, as OPUS-MT publishes them.

Names and equations are those of Marian 1.12 (`src/models/transformer.h`, `src/layers/output.cpp`,
`src/layers/embedding.cpp`). Matrices are stored `[in, out]`, vectors `[1, size]`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .pytorch_files import refuse_bomb
from .sentencepiece import marian_tokenizers, vocabulary_of
from .source import Checkpoint, Converted, Family, TensorReader, Tokenizers, refuse

_OPTIONS = "special:model.yml"

UNREACHABLE = -100.0
"""Output bias of rows that Marian does not have: e^-100 counts for nothing, and fits 16 bits."""

_ATTENTIONS = {"self_attn": "self", "cross_attn": "context"}

# Of an option: values that fit, those that 1.12 assumes where the option is not stored first.
_ALLOWED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("type", ("transformer",), "it is a model of another type"),
    (
        "transformer-decoder-autoreg",
        ("self-attention",),
        "its decoder is recurrent (SSRU, as Firefox and Bergamot have it) or averages",
    ),
    ("transformer-preprocess", ("", "d"), "norms of the queries before attention, not of the keys"),
    ("transformer-postprocess", ("dan", "an", "adn"), "not the sum and then the norm"),
    ("transformer-postprocess-emb", ("d", ""), "a norm of the embeddings"),
    ("transformer-postprocess-top", ("", "d"), "more after the last layer"),
    ("transformer-ffn-depth", (2,), "feed-forward sub-layers of other than two products"),
    ("transformer-decoder-ffn-depth", (0, 2), "feed-forward sub-layers of other than two products"),
    (
        "transformer-ffn-activation",
        ("swish", "relu"),
        "Marian's gelu is x sigmoid(1.702 x), or another activation",
    ),
    ("transformer-no-projection", (False,), "attention without its output projection"),
    ("transformer-no-bias", (False,), "linear layers without biases"),
    ("transformer-no-affine", (False,), "norms without scale and bias"),
    ("transformer-tied-layers", ([],), "layers that share their weights"),
    ("transformer-train-positions", (False,), "learned positions without scaled embeddings"),
    (
        "transformer-train-position-embeddings",
        (False,),
        "learned positions without scaled embeddings",
    ),
    ("transformer-disable-position-embeddings", (False,), "no positions"),
    ("transformer-attention-mask", ("default",), "linear attention biases (ALiBi)"),
    ("transformer-pool", (False,), "a decoder that does not attend to the source"),
    ("input-types", ([],), "inputs other than one sentence"),
    ("lemma-dim-emb", (0,), "factored vocabularies"),
    ("factors-dim-emb", (0,), "factored vocabularies"),
    ("ulr", (False,), "universal embeddings"),
    ("right-left", (False,), "translations written from their end"),
)


class MarianNativeFamily(Family):
    """An `.npz` file of Marian, or the directory of one with its `decoder.yml`."""

    name = "marian-npz"
    title = "Marian (.npz)"

    def recognises(self, path: Path) -> bool:
        """An `.npz` that Marian wrote, or a directory with such files."""
        return any(_is_marian(file) for file in _models(path))

    def read(self, path: Path) -> Checkpoint:
        """The arrays, the options that Marian stores among them, and those of `decoder.yml`.

        Raises:
            ValueError: There is more than one model or none, or a file is truncated.
        """
        decoder, folder = _decoder_options(path)
        named = [folder / Path(name).name for name in decoder.get("models", [])]
        files = [file for file in named if file.is_file()] if path.is_dir() else [path]
        files = files or [file for file in _models(path) if _is_marian(file)]
        if len(files) != 1:
            raise ValueError(
                f"{path} holds {len(files)} models of Marian ({', '.join(f.name for f in files)}); "
                "an ensemble is more than one model: give one of its .npz files"
            )
        refuse_bomb(files[0])
        try:
            with np.load(files[0], allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{files[0]} cannot be read ({error}): it is truncated or no .npz of plain arrays; "
                "get it again"
            ) from error
        if _OPTIONS in arrays:
            text = arrays.pop(_OPTIONS).tobytes().decode("utf-8").rstrip("\0")
        elif (beside := files[0].with_name(files[0].name + ".yml")).is_file():
            text = beside.read_text("utf-8")
        else:
            raise ValueError(
                f"{files[0]} has no {_OPTIONS}, nor is {beside.name} beside it; without its "
                "options the model is not known: get them from where the model is from"
            )
        tensors = {
            name: torch.from_numpy(array)
            for name, array in arrays.items()
            if array.dtype.kind == "f" and not name.startswith("special:")
        }
        options = {
            "model": _parse_yaml(text, files[0]),
            "decoder": decoder,
            "ids": _special_ids(folder, decoder),
        }
        return Checkpoint(tensors, options, files[0])

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks, and a row more whose embedding is zero.

        Marian's decoder starts from a vector of zeros; here, as in MarianMT, that is the embedding
        of a last token, which pads as well and is never chosen.
        """
        options = checkpoint.options["model"]
        _check(options)
        reader = TensorReader(checkpoint.tensors, str(checkpoint.path or "the checkpoint"))
        d_model, d_ff = options["dim-emb"], options["transformer-dim-ffn"]
        decoder_d_ff = options.get("transformer-decoder-dim-ffn") or d_ff
        sizes = options["dim-vocabs"]
        pad = max(sizes)
        rows = pad + 1
        shares_output, shares_inputs = _sharing(options)
        weights, has_bias = _take_embeddings(reader, options, rows)
        for side, width in (("encoder", d_ff), ("decoder", decoder_d_ff)):
            depth = options["enc-depth" if side == "encoder" else "dec-depth"]
            for number in range(depth):
                weights |= _take_layer(reader, side, number, d_model, width)
        reader.finish()
        ids = checkpoint.options["ids"]
        config = VanillaTransformerConfig(
            vocab_size=rows,
            decoder_vocab_size=None if shares_inputs else rows,
            d_model=d_model,
            d_ff=d_ff,
            decoder_d_ff=decoder_d_ff,
            num_heads=options["transformer-heads"],
            num_encoder_layers=options["enc-depth"],
            num_decoder_layers=options["dec-depth"],
            layer_norm_eps=1e-6,
            position_encoding="concatenated_inclusive",
            activation=options.get("transformer-ffn-activation", "swish"),
            attention_bias=True,
            tie_word_embeddings=shares_output,
            share_embeddings=shares_output and shares_inputs,
            output_bias=True,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=ids["eos"],
            decoder_start_token_id=pad,
        )
        assert has_bias or not weights["lm_head.bias"][: min(sizes)].any()
        return Converted(config, weights, _generation(checkpoint, pad))

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """Of the vocabularies that `decoder.yml` names, and `source.spm` and `target.spm`.

        Raises:
            ValueError: A file is damaged, or what reads SentencePiece models is not installed.
        """
        if checkpoint.path is None:
            return Tokenizers()
        folder = checkpoint.path.parent
        paths = _vocabularies(folder, checkpoint.options["decoder"])
        if not paths:
            return Tokenizers()
        models = [folder / name for name in ("source.spm", "target.spm")]
        if not all(model.is_file() for model in models):
            models = [path for path in paths if path.suffix == ".spm"]
        if len(models) != 2:
            return Tokenizers(
                remarks=["No tokenizer: its words were not cut by SentencePiece, or by none known."]
            )
        sizes = checkpoint.options["model"]["dim-vocabs"]
        source, target = (
            {token: id for token, id in vocabulary_of(path).items() if id < size}
            for path, size in zip(paths, sizes, strict=True)
        )
        pad = converted.config.pad_token_id
        assert pad is not None
        found = marian_tokenizers((models[0], models[1]), (source, target), pad)
        if (folder / "preprocess.sh").is_file():
            found.remarks.append(
                "What its preprocess.sh does before SentencePiece (punctuation in one form) is not "
                "part of the tokenizer."
            )
        return found

    def reference(self, checkpoint: Checkpoint) -> MarianEquations:
        """Marian's equations on its own tensors: its program is none that Python could ask."""
        return MarianEquations(checkpoint)


class MarianEquations:
    """Marian's transformer in its own names and layouts, in numpy and double precision.

    `tests/conversion/test_marian_native.py` compares it with Marian itself.
    """

    name = "Marian's equations in numpy"

    def __init__(self, checkpoint: Checkpoint):
        self.options = checkpoint.options["model"]
        self.tensors = {
            name: tensor.double().numpy() for name, tensor in checkpoint.tensors.items()
        }
        self.rows = max(self.options["dim-vocabs"]) + 1

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        return torch.from_numpy(self._encode(input_ids.numpy(), attention_mask.numpy())).float()

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of every target position; minus infinity for rows that Marian does not have."""
        mask = attention_mask.numpy()
        states = self._encode(input_ids.numpy(), mask)
        x = self._embed("decoder", decoder_input_ids.numpy())
        source = np.where(mask[:, None, None, :], 0.0, -99999999.0)
        length = x.shape[1]
        past = np.where(np.tril(np.ones((length, length))), 0.0, -99999999.0)
        for layer in range(1, self.options["dec-depth"] + 1):
            x = self._attend(f"decoder_l{layer}_self", x, x, past)
            x = self._attend(f"decoder_l{layer}_context", x, states, source)
            x = self._feed_forward(f"decoder_l{layer}_ffn", x)
        name = "decoder_ff_logit_out"
        if f"{name}_W" in self.tensors:
            output = self.tensors[f"{name}_W"]
        elif f"{name}_Wt" in self.tensors:
            output = self.tensors[f"{name}_Wt"].T
        else:
            output = self._embedding("decoder").T
        scores = np.full((*x.shape[:2], self.rows), -np.inf)
        scores[..., : output.shape[1]] = x @ output + self.tensors.get(f"{name}_b", 0.0)
        return torch.from_numpy(scores)

    def _encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        x = self._embed("encoder", ids)
        log_mask = np.where(mask[:, None, None, :], 0.0, -99999999.0)
        for layer in range(1, self.options["enc-depth"] + 1):
            x = self._attend(f"encoder_l{layer}_self", x, x, log_mask)
            x = self._feed_forward(f"encoder_l{layer}_ffn", x)
        return x

    def _embedding(self, side: str) -> np.ndarray:
        return self.tensors["Wemb" if "Wemb" in self.tensors else f"{side}_Wemb"]

    def _embed(self, side: str, ids: np.ndarray) -> np.ndarray:
        matrix = self._embedding(side)
        size, d = matrix.shape
        embedded = np.where((ids < size)[..., None], matrix[np.minimum(ids, size - 1)], 0.0)
        scales = d // 2
        rates = np.exp(np.arange(scales) * -(np.log(10000.0) / (scales - 1)))
        angles = np.arange(ids.shape[1])[:, None] * rates
        return np.sqrt(d) * embedded + np.concatenate((np.sin(angles), np.cos(angles)), axis=-1)

    def _attend(self, prefix: str, x: np.ndarray, keys: np.ndarray, mask: np.ndarray) -> np.ndarray:
        tensors, heads = self.tensors, self.options["transformer-heads"]

        def project(part: str, inputs: np.ndarray) -> np.ndarray:
            outputs = inputs @ tensors[f"{prefix}_W{part}"] + tensors[f"{prefix}_b{part}"]
            return outputs.reshape(*inputs.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        q, k, v = (
            project(part, inputs) for part, inputs in zip("qkv", (x, keys, keys), strict=True)
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(k.shape[-1]) + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        joined = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        output = joined @ tensors[f"{prefix}_Wo"] + tensors[f"{prefix}_bo"]
        return self._norm(f"{prefix}_Wo", output + x)

    def _feed_forward(self, prefix: str, x: np.ndarray) -> np.ndarray:
        inner = x @ self.tensors[f"{prefix}_W1"] + self.tensors[f"{prefix}_b1"]
        if self.options.get("transformer-ffn-activation", "swish") == "swish":
            inner = inner / (1 + np.exp(-inner))
        else:
            inner = np.maximum(inner, 0)
        output = inner @ self.tensors[f"{prefix}_W2"] + self.tensors[f"{prefix}_b2"]
        return self._norm(f"{prefix}_ffn", output + x)

    def _norm(self, prefix: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        scale, bias = (self.tensors[f"{prefix}_ln_{part}"] for part in ("scale", "bias"))
        return scale * centred / deviation + bias


def _check(options: Mapping[str, Any]) -> None:
    """Refuses what is another architecture.

    Raises:
        ValueError: The first such option, with value, reason and remedy.
    """
    for name, allowed, reason in _ALLOWED:
        value = options.get(name, allowed[0])
        if value not in allowed:
            raise refuse(name, value, reason, "give a checkpoint that was trained without it")


def _sharing(options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the output layer is the target embedding, and whether source and target share one."""
    shares_all = options.get("tied-embeddings-all", False)
    shares_output = shares_all or options.get("tied-embeddings", False)
    return shares_output, shares_all or options.get("tied-embeddings-src", False)


def _take_embeddings(
    reader: TensorReader, options: Mapping[str, Any], rows: int
) -> tuple[dict[str, torch.Tensor], bool]:
    """Matrices and the output's bias with all `rows`, and whether Marian has such a bias."""
    d_model, (source, target) = options["dim-emb"], options["dim-vocabs"]
    shares_output, shares_inputs = _sharing(options)
    if shares_inputs and source != target:
        raise ValueError(
            f"this checkpoint's dim-vocabs {[source, target]} differ, and yet one matrix serves "
            "both sides (tied-embeddings-all, tied-embeddings-src); get it again"
        )

    def add_rows(matrix: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        added = matrix.new_full((rows - len(matrix), *matrix.shape[1:]), value)
        return torch.cat((matrix, added))

    weights = {}
    name = "model.{}.embed_tokens.weight"
    if shares_inputs:
        matrix = add_rows(reader.take("Wemb", (source, d_model)))
        weights[name.format("encoder")] = matrix
        if not shares_output:
            weights[name.format("decoder")] = matrix.clone()
    else:
        for side, size in (("encoder", source), ("decoder", target)):
            matrix = reader.take(f"{side}_Wemb", (size, d_model))
            weights[name.format(side)] = add_rows(matrix)
    out = "decoder_ff_logit_out"
    if not shares_output:
        # Before 1.9 it was stored like other matrices.
        if f"{out}_W" in reader:
            matrix = reader.take(f"{out}_W", (d_model, target)).T.contiguous()
        else:
            matrix = reader.take(f"{out}_Wt", (target, d_model))
        weights["lm_head.weight"] = add_rows(matrix)
    has_bias = not options.get("output-omit-bias", False)
    bias = reader.take(f"{out}_b", (1, target)).squeeze(0) if has_bias else torch.zeros(target)
    weights["lm_head.bias"] = add_rows(bias, UNREACHABLE)
    return weights, has_bias


def _take_layer(
    reader: TensorReader, side: str, number: int, d_model: int, d_ff: int
) -> dict[str, torch.Tensor]:
    ours, theirs = f"model.{side}.layers.{number}", f"{side}_l{number + 1}"
    weights = {}

    def take_linear(name: str, matrix: str, bias: str, shape: tuple[int, int]) -> None:
        weights[f"{ours}.{name}.weight"] = reader.take(matrix, shape).T.contiguous()
        weights[f"{ours}.{name}.bias"] = reader.take(bias, (1, shape[1])).squeeze(0)

    def take_norm(name: str, prefix: str) -> None:
        for part, stored in (("weight", "scale"), ("bias", "bias")):
            found = reader.take(f"{prefix}_ln_{stored}", (1, d_model))
            weights[f"{ours}.{name}_layer_norm.{part}"] = found.squeeze(0)

    for attention, kind in _ATTENTIONS.items():
        if side == "encoder" and kind == "context":
            continue
        prefix = f"{theirs}_{kind}"
        for part in "qkvo":
            matrix, bias = f"{prefix}_W{part}", f"{prefix}_b{part}"
            take_linear(f"{attention}.{part}_proj", matrix, bias, (d_model, d_model))
        take_norm(attention, f"{prefix}_Wo")
    prefix = f"{theirs}_ffn"
    take_linear("fc1", f"{prefix}_W1", f"{prefix}_b1", (d_model, d_ff))
    take_linear("fc2", f"{prefix}_W2", f"{prefix}_b2", (d_ff, d_model))
    take_norm("ffn", f"{prefix}_ffn")
    return weights


def _generation(checkpoint: Checkpoint, pad: int) -> dict[str, Any]:
    """What `decoder.yml` says, else what `marian-decoder` does (`src/common/config_parser.cpp`)."""
    decoder = checkpoint.options["decoder"]
    never = [pad]
    if not decoder.get("allow-unk", False):
        never.append(checkpoint.options["ids"]["unk"])
    # Given without a number, `normalize` is 1.
    normalize = decoder.get("normalize", 0)
    return {
        "num_beams": decoder.get("beam-size", 12),
        "length_penalty": 1.0 if normalize in (None, "") else float(normalize),
        "length_penalty_formula": "power",
        "bad_words_ids": [[id] for id in never],
    }


def _models(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.npz"))
    return [path] if path.suffix == ".npz" else []


def _is_marian(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        # Truncated: the names stand at the end.
        return "encoder_l1_" in path.read_bytes()[: 1 << 23].decode("latin-1")
    # The optimizer's state is beside the model after training.
    return _OPTIONS in names or "decoder_ff_logit_out_b" in names


def _decoder_options(path: Path) -> tuple[dict[str, Any], Path]:
    """Of `decoder.yml`, or of what Marian writes beside a model; and the folder."""
    folder = path if path.is_dir() else path.parent
    named = [] if path.is_dir() else [folder / f"{path.name}.decoder.yml"]
    for file in (*named, folder / "decoder.yml", *sorted(folder.glob("*.npz.decoder.yml"))):
        if file.is_file():
            return _parse_yaml(file.read_text("utf-8"), file), folder
    return {}, folder


def _vocabularies(folder: Path, decoder: Mapping[str, Any]) -> list[Path]:
    paths = [folder / Path(name).name for name in decoder.get("vocabs", [])]
    return paths if len(paths) == 2 and all(path.is_file() for path in paths) else []


def _special_ids(folder: Path, decoder: Mapping[str, Any]) -> dict[str, int]:
    """Of the target vocabulary; Marian's own where there is none."""
    ids = {"eos": 0, "unk": 1}
    paths = _vocabularies(folder, decoder)
    if paths:
        vocabulary = vocabulary_of(paths[1])
        ids = {name: vocabulary.get(t, ids[name]) for name, t in _SPECIAL.items()}
    return ids


_SPECIAL = {"eos": "</s>", "unk": "<unk>"}


def _parse_yaml(text: str, place: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the options of {place} are no YAML ({error}); get it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"the options of {place} are no YAML mapping; get it again")
    return found
