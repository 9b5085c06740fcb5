"""Train and load the byte-pair encoding that both languages share (paper 5.1).

The tokenizer is a stock fast tokenizer of transformers: a saved directory loads with
`AutoTokenizer.from_pretrained` where this package is not installed. It works on bytes, so
there is no unknown character and `decode(encode(text))` gives every text back unchanged.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# The position in the list is the id, and the ids are for ever: checkpoints depend on them.
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
MINIMUM_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

# Unicode's punctuation, what ASCII has as punctuation and Unicode as symbols, and blanks.
_PUNCTUATION_AND_BLANKS = r"[\p{P}$+<=>^`|~\s]+"


# Of a model's directory, where the target side has a tokenizer of its own; the key stands in the
# tokenizer's configuration, so that nothing need be looked for on the Hub.
TARGET_TOKENIZER = "target_tokenizer"


class TwoSidedTokenizer(PreTrainedTokenizerFast):
    """Reads the source language; for `text_target`, and to decode, the target's tokenizer.

    For converted models with two vocabularies, or with one that each language is cut into in its
    own way. Saved, it is two stock tokenizers, the target's in the folder `target_tokenizer`.
    """

    target: PreTrainedTokenizerBase
    _tokenizer: Tokenizer

    @classmethod
    def join(
        cls, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
    ) -> "TwoSidedTokenizer":
        """One tokenizer of two stock ones."""
        joined = cls(tokenizer_object=source.backend_tokenizer, **source.init_kwargs)
        joined.target = target
        return joined

    def _switch_to_target_mode(self) -> None:
        self._source_backend, self._tokenizer = self._tokenizer, self.target.backend_tokenizer

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self.__dict__.pop("_source_backend", self._tokenizer)

    def _decode(self, token_ids: int | list[int], *args: Any, **kwargs: Any) -> str:
        return self.target._decode(token_ids, *args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """As two stock tokenizers."""
        files = super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory) / TARGET_TOKENIZER
        path = Path(save_directory) / "tokenizer_config.json"
        settings = json.loads(path.read_text("utf-8"))
        settings |= {"tokenizer_class": type(self.target).__name__, TARGET_TOKENIZER: True}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        return (*files, *self.target.save_pretrained(folder))


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 37_000,
    *,
    min_frequency: int = 2,
    lowercase: bool = False,
    strip_punctuation: bool = False,
    show_progress: bool = False,
) -> PreTrainedTokenizerBase:
    """Learn one byte-level BPE from the texts of both languages (paper 5.1: about 37,000 tokens).

    A single text is encoded as `A </s>`, a pair as `A </s> B </s>`. Text that happens to contain
    the letters of a special token, such as `</s>`, is ordinary text; to have a special token
    recognised in text (fill-mask does), set `tokenizer.split_special_tokens = False`.

    Args:
        texts: Sentences in both languages; read once, so a generator does.
        vocab_size: Size wanted, counting the 5 special tokens and the 256 bytes. Text too short
            to give that many merges makes a smaller vocabulary, which is logged as a warning.
        min_frequency: A pair seen less often is never merged.
        lowercase: Take capital letters for small ones: what is decoded then has none, while
            offsets still point into the text as it was given.
        strip_punctuation: Take punctuation and blanks, however many together, for one blank, and
            for nothing at the ends of a text: `T-shirt` is `T shirt`, and `...` is an empty text.
            What is decoded has no punctuation, and offsets point at the words alone.
        show_progress: Draw the progress bar of `tokenizers`.

    Returns:
        The tokenizer, with `input_ids` and `attention_mask` as its model inputs. The same texts
        give the same tokenizer, in whatever order they come.

    Raises:
        ValueError: If `vocab_size` has no room for the special tokens and the bytes, if
            `texts` is a single string, or if there is no text at all.
    """
    if vocab_size < MINIMUM_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {MINIMUM_VOCAB_SIZE}: "
            f"{len(SPECIAL_TOKENS)} special tokens and 256 bytes; try vocab_size=8000"
        )
    if isinstance(texts, str):
        raise ValueError(f"texts is the one string {texts[:30]!r}; give a list of sentences")
    backend = Tokenizer(models.BPE())
    steps: list[normalizers.Normalizer] = []
    if lowercase:
        steps.append(normalizers.Lowercase())
    if strip_punctuation:
        # A blank rather than nothing: "and/or" and "end.Then" are two words each.
        steps += [
            normalizers.Replace(Regex(_PUNCTUATION_AND_BLANKS), " "),
            normalizers.Strip(),
        ]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=show_progress,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(_counted(texts), trainer)

    eos = SPECIAL_TOKENS["eos_token"]
    backend.post_processor = processors.Sequence(
        [
            # Offsets point at the word, not at the space before it: an extracted answer is clean.
            processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
            processors.TemplateProcessing(
                single=f"$A {eos}",
                pair=f"$A {eos} $B {eos}",
                special_tokens=[(eos, backend.token_to_id(eos))],
            ),
        ]
    )
    if backend.get_vocab_size() < vocab_size:
        logger.warning(
            "the text gave a vocabulary of %d tokens, not %d: no further pair occurs %d times",
            backend.get_vocab_size(),
            vocab_size,
            min_frequency,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        # "</s>" written in a sentence must not end it.
        split_special_tokens=True,
    )


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or of a Hub repository.

    Returns:
        A stock tokenizer; a `TwoSidedTokenizer` where the target side has one of its own.

    Raises:
        ValueError: If there is no such directory or repository, or no whole tokenizer in it.
    """
    path = Path(path_or_id).expanduser()
    if not path.exists() and isinstance(path_or_id, Path):
        raise ValueError(f"{path}: no such directory; check the path")
    name = str(path) if path.exists() else str(path_or_id)
    try:
        # Nobody is asked in the middle of a pipe whether to run code: none is run.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if not tokenizer.init_kwargs.get(TARGET_TOKENIZER):
            return tokenizer
        target = AutoTokenizer.from_pretrained(
            name, subfolder=TARGET_TOKENIZER, trust_remote_code=False
        )
        return TwoSidedTokenizer.join(tokenizer, target)
    # What the tokenizers library raises of a broken file is a bare Exception.
    except Exception as error:
        if path.is_dir():
            raise ValueError(
                f"{path} holds no whole tokenizer; save the model's tokenizer there with "
                f"tokenizer.save_pretrained({str(path)!r})"
            ) from error
        raise ValueError(
            f"{path_or_id} is neither a directory nor a repository that the Hub gave; check the "
            "path or id, and the network"
        ) from error


def _counted(texts: Iterable[str]) -> Iterable[str]:
    """Pass the texts on, and refuse to train on none."""
    count = 0
    for count, text in enumerate(texts, start=1):  # noqa: B007
        yield text
    if count == 0:
        raise ValueError("there is no text to train a tokenizer on; give at least one sentence")
