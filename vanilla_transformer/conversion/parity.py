"""How far a converted model is from its source: both run on the same random sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .source import Reference

TOLERANCE = 1e-4
"""What a conversion must reach to be written: absolute, on float32 log-probabilities.

Logits of trained models run to some tens, where float32 itself resolves about 1e-5.
"""


@dataclass(frozen=True)
class Example:
    """Sentences and what a source's code gave for them.

    Attributes:
        input_ids: `[B, S]`, right-padded.
        attention_mask: `[B, S]`.
        decoder_input_ids: `[B, T]`, without padding.
        states: `[B, S, d]`, encoder states; those of padding are not compared.
        logits: `[B, T, V]`, unnormalised or log-probabilities.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    decoder_input_ids: torch.Tensor
    states: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences from the source, and agreement of what is chosen.

    Attributes:
        reference: The code that ran the source.
        sentences: How many were compared.
        encoder: Difference of encoder states at real tokens.
        log_probabilities: Difference of log softmax over the vocabulary, at every target position.
            Logits that a source shifts by a constant, or normalises, compare all the same.
        same_choices: Share of target positions whose likeliest token is the same.
    """

    reference: str
    sentences: int
    encoder: float
    log_probabilities: float
    same_choices: float

    @property
    def holds(self) -> bool:
        """Whether the two are one model up to rounding; no number at all is no agreement."""
        return self.log_probabilities <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.reference} against this package on {self.sentences} random sentences, float32: "
            f"encoder states differ by at most {self.encoder:.1e}, log-probabilities by "
            f"{self.log_probabilities:.1e}; the likeliest token is the same in "
            f"{100 * self.same_choices:.2f}% of the positions"
        )


def compare(
    model: VanillaTransformerForConditionalGeneration, reference: Reference, name: str
) -> Parity:
    """Runs a converted model beside its source, whose code `name` names."""
    return compare_examples(model, run_reference(reference, random_batches(model)), name)


@torch.inference_mode()
def compare_examples(
    model: VanillaTransformerForConditionalGeneration, examples: Iterable[Example], name: str
) -> Parity:
    """Runs a converted model on sentences for which the source's results are known."""
    model.eval()
    worst_state = worst_score = 0.0
    same = positions = sentences = 0
    for example in examples:
        ours = model(
            input_ids=example.input_ids,
            attention_mask=example.attention_mask,
            decoder_input_ids=example.decoder_input_ids,
        )
        is_real = example.attention_mask.bool()
        states = (ours.encoder_last_hidden_state - example.states)[is_real]
        expected = example.logits.double().log_softmax(dim=-1)
        found = ours.logits.double().log_softmax(dim=-1)
        # Some sources rule tokens out, such as padding, with logits of minus infinity.
        is_possible = expected > -1e4
        scores = (found - expected)[is_possible]
        # `max` of tensors keeps a NaN, that of Python may drop it.
        worst_state = torch.stack((torch.tensor(worst_state), states.abs().max())).max().item()
        worst_score = torch.stack((scores.new_tensor(worst_score), scores.abs().max())).max().item()
        chosen = found.masked_fill(~is_possible, -torch.inf).argmax(dim=-1)
        same += int((chosen == expected.argmax(dim=-1)).sum())
        positions += chosen.numel()
        sentences += len(chosen)
    return Parity(name, sentences, worst_state, worst_score, same / max(positions, 1))


@torch.inference_mode()
def run_reference(
    reference: Reference, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> Iterator[Example]:
    """What a source's code gives for batches of ids, mask and decoder ids."""
    for ids, mask, decoder_ids in batches:
        yield Example(
            ids,
            mask,
            decoder_ids,
            reference.encode(ids, mask).float(),
            reference.logits(ids, mask, decoder_ids).float(),
        )


def random_batches(
    model: VanillaTransformerForConditionalGeneration,
    lengths: Iterable[int] = (3, 9, 20, 40),
    sentences: int = 4,
    seed: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, mask and decoder ids; the first sentence of each batch has its whole length."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    special = {config.pad_token_id, config.decoder_start_token_id}
    sources = torch.tensor([i for i in range(config.vocab_size) if i not in special])
    targets = torch.tensor([i for i in range(config.target_vocab_size) if i not in special])
    for longest in lengths:
        counts = torch.randint(1, longest + 1, (sentences,), generator=generator)
        counts[0] = longest
        mask = torch.arange(longest) < counts[:, None]
        drawn = torch.randint(len(sources), (sentences, longest), generator=generator)
        ids = torch.where(mask, sources[drawn], config.pad_token_id)
        drawn = torch.randint(len(targets), (sentences, longest), generator=generator)
        start = torch.full((sentences, 1), config.decoder_start_token_id)
        yield ids, mask.long(), torch.cat((start, targets[drawn]), dim=1)
