"""Masked language modelling as a run learns it (Devlin et al. 2019, 3.1, task 1).

Shapes: `B` blocks, `S` tokens of a block.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value
from torch import nn
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from .settings import TrainingSettings
from .task import Task, Validation
from .validation import validation_loss, whole_model

# What the loss leaves out.
_IGNORED = -100
# Of the tokens to guess: those that are masked, and those that another token replaces. The rest
# stays as it is.
_MASKED_SHARE, _REPLACED_SHARE = 0.8, 0.1
# Of a block that is shown.
_SHOWN_TOKENS = 40


def encode_blocks(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 256,
    num_proc: int | None = None,
) -> Dataset:
    """Cuts texts into blocks of tokens, each of which ends in `</s>` as whatever the model reads.

    Args:
        texts: With a column `text`; one without a token makes no block. No block holds more than
            one text.
        tokenizer: Of the model.
        max_length: Tokens of a block, `</s>` included.
        num_proc: Processes to encode with.

    Returns:
        A column `input_ids`, in the order of the texts.

    Raises:
        ValueError: No room for a token beside `</s>`, or a tokenizer without `</s>`.
    """
    if max_length < 2:
        raise ValueError(
            f"max_length ({max_length}) must be at least 2, a token and </s>; 256 is usual"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no </s> to end a block with; set its eos_token")
    return texts.map(
        _encode_batch,
        batched=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=texts.column_names,
        features=Features({"input_ids": List(Value("int32"))}),
        desc="encoding",
    )


def _encode_batch(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[list[int]]]:
    """Encode a batch of texts, each of which may make any number of blocks."""
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    room, end = max_length - 1, [tokenizer.eos_token_id]
    return {
        "input_ids": [
            [*ids[start : start + room], *end]
            for ids in tokenizer(batch["text"], **options)["input_ids"]
            for start in range(0, len(ids), room)
        ]
    }


class MaskedLanguageModelingTask(Task):
    """Guessing tokens from those around them, with the masks of BERT.

    Of each block a share of the tokens is to be guessed, at least one and never a special token: of
    these 80 % are replaced by `<mask>`, 10 % by any ordinary token, and 10 % stay. The masks are
    drawn anew in each epoch; in validation they are always the same.

    Args:
        tokenizer: Of the model.
        blocks: To validate on, as `encode_blocks` gives them.
        masked_share: Of the tokens, how many are to be guessed.

    Raises:
        ValueError: `masked_share` is no share, there is no block, or the tokenizer has no `<mask>`.
    """

    metrics = ("accuracy", "perplexity")
    item = "masked tokens"
    columns = ("input_ids",)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        blocks: Dataset,
        *,
        masked_share: float = 0.15,
    ):
        if not 0 < masked_share <= 1:
            raise ValueError(
                f"masked_share ({masked_share}) must be above 0 and at most 1; BERT's is 0.15"
            )
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no <mask>; set its mask_token")
        if not len(blocks):
            raise ValueError("there is no block of text to validate on; hold out more text")
        self.tokenizer, self.blocks, self.masked_share = tokenizer, blocks, masked_share
        self._is_special = np.zeros(len(tokenizer), dtype=bool)
        self._is_special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._is_special)
        self._collate = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=_IGNORED)

    def draw(
        self, batch: list[dict[str, Any]], random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """The blocks masked, with `labels`: the tokens to be guessed, and -100 elsewhere."""
        return [self._mask(np.asarray(block["input_ids"]), random) for block in batch]

    def _mask(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
        """A block [S] masked, and its labels [S]."""
        places = np.flatnonzero(~self._is_special[ids])
        count = min(len(places), max(1, round(self.masked_share * len(places))))
        chosen = random.choice(places, count, replace=False)
        labels = np.full_like(ids, _IGNORED)
        labels[chosen] = ids[chosen]
        lot = random.random(count)
        others = random.choice(self._ordinary, count)
        masked = ids.copy()
        masked[chosen] = np.where(
            lot < _MASKED_SHARE,
            self.tokenizer.mask_token_id,
            np.where(lot < _MASKED_SHARE + _REPLACED_SHARE, others, ids[chosen]),
        )
        return {"input_ids": masked.tolist(), "labels": labels.tolist()}

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Tokens to be guessed."""
        return sum(len(block["labels"]) - block["labels"].count(_IGNORED) for block in batch)

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """The block with nothing to be guessed."""
        return {**example, "labels": [_IGNORED] * len(example["input_ids"])}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, `[B, S]`."""
        return dict(self._collate(examples))

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Loss, and the tokens guessed right in percent, on as many blocks as the settings say."""
        count = min(len(self.blocks), settings.validation_examples or len(self.blocks))
        # Tokens guessed right, and all.
        sums = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
        with whole_model(accelerator, model) as inner:

            def counting(**piece: Any) -> Any:
                output = inner(**piece)
                # No model guesses -100.
                is_right = output.logits.argmax(dim=-1) == piece["labels"]
                sums.add_(torch.stack([is_right.sum(), (piece["labels"] != _IGNORED).sum()]))
                return output

            loss = validation_loss(accelerator, counting, self, self.blocks.select(range(count)))
            samples = [
                self._sample(inner, self.blocks[row])
                for row in range(min(count, settings.sample_predictions))
            ]
        right, guessed = accelerator.reduce(sums, "sum").tolist()
        scores = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "accuracy": 100 * right / guessed,
        }
        return Validation(scores, tuple(samples))

    @torch.no_grad()
    def _sample(self, model: Any, block: dict[str, Any]) -> tuple[str, str, str]:
        """The beginning of a block, masked, the tokens to be guessed and what the model guesses."""
        beginning = {"input_ids": block["input_ids"][:_SHOWN_TOKENS]}
        piece = self.collate(self.draw([beginning], np.random.default_rng(0)))
        inputs = {name: tensor.to(model.device) for name, tensor in piece.items()}
        labels = inputs.pop("labels")[0]
        guessed = model(**inputs).logits[0].argmax(dim=-1)
        is_chosen = labels != _IGNORED
        expected, found = (
            " / ".join(self.tokenizer.decode([token]).strip() for token in ids[is_chosen].tolist())
            for ids in (labels, guessed)
        )
        return self.tokenizer.decode(piece["input_ids"][0]), expected, found
