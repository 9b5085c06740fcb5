"""`generate` by the lean loop, where its arguments ask for nothing that the loop does not do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .preparation import network_of, obstacle, release
from .search import SearchSettings, search

# Fields of a generation configuration that the loop follows ...
_FOLLOWED = frozenset(
    {
        "bad_words_ids",
        "bos_token_id",
        "decoder_start_token_id",
        "early_stopping",
        "eos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "length_penalty_formula",
        "max_length",
        "max_new_tokens",
        "max_tokens_over_source",
        "min_length",
        "min_new_tokens",
        "num_beams",
        "num_return_sequences",
        "pad_token_id",
        "renormalize_logits",
        "suppress_tokens",
    }
)
# ... and those that change nothing without sampling, without an assistant, or in the outcome. All
# others, and those of later versions, must be unset.
_WITHOUT_EFFECT = frozenset(
    {
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "compile_config",
        "disable_compile",
        "epsilon_cutoff",
        "eta_cutoff",
        "min_p",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "target_lookbehind",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "transformers_version",
        "typical_p",
        "use_cache",
    }
)
# Arguments of `generate` that are no fields: the input, and what the search does not look at.
_ARGUMENTS = frozenset({"input_ids", "attention_mask", "labels"})


def lean_generate(
    model: VanillaTransformerForConditionalGeneration,
    inputs: torch.Tensor | None,
    generation_config: GenerationConfig | None,
    arguments: Mapping[str, Any],
) -> torch.Tensor | None:
    """What `model.generate` would return, or None where it is to find out by itself.

    None also wherever something is wrong, so that errors and warnings are those of `generate`.

    Args:
        model: Any.
        inputs: As for `generate`.
        generation_config: As for `generate`.
        arguments: All other arguments of `generate`.

    Returns:
        Token ids `[B * num_return_sequences, L]`, the start token included, padded.
    """
    ids, mask = inputs, arguments.get("attention_mask")
    if ids is None:
        ids = arguments.get("input_ids")
    elif arguments.get("input_ids") is not None:
        return None
    if type(ids) is not torch.Tensor or ids.ndim != 2 or ids.dtype != torch.long or not len(ids):
        return None
    if obstacle(model) is not None:
        # It may have gone to another device, or to be trained: its weights are needed no more.
        release(model)
        return None
    if ids.device != model.device:
        return None
    if mask is None:
        is_real = ids != model.config.pad_token_id
    elif type(mask) is torch.Tensor and mask.shape == ids.shape and mask.device == ids.device:
        is_real = mask.bool()
        if not torch.equal(is_real.to(mask.dtype), mask):
            return None
    else:
        return None
    lengths = is_real.sum(dim=1)
    if not bool(lengths.all()):
        return None
    settings = plan(model, generation_config, arguments, lengths, ids.shape[1])
    if settings is None:
        return None
    found = search(network_of(model), ids, is_real, settings)
    # Outside inference mode, so that the caller may do with them what he likes.
    sequences = found.sequences[:, :, : int(found.lengths.max())].flatten(0, 1).clone()
    return F.pad(sequences, (1, 0), value=settings.start_token_id)


def plan(
    model: VanillaTransformerForConditionalGeneration,
    generation_config: GenerationConfig | None,
    arguments: Mapping[str, Any],
    lengths: torch.Tensor,
    source_length: int,
) -> SearchSettings | None:
    """The search that `generate` would run, or None where the lean loop has none like it.

    Args:
        model: One without an `obstacle`.
        generation_config: As for `generate`.
        arguments: All arguments of `generate`; those of the source are not looked at.
        lengths: Real tokens of each source, `[B]`.
        source_length: Tokens of the longest, with padding.
    """
    model._complete_generation_config()
    configs = (generation_config, model.generation_config)
    given = {}
    for name, value in arguments.items():
        is_field = hasattr(model.generation_config, name)
        if value is None:
            # To take away what a configuration sets.
            if is_field and any(getattr(c, name, None) is not None for c in configs):
                return None
        elif is_field:
            given[name] = value
        elif name == "token_type_ids":
            # Segments mean nothing to a model without them.
            if model.config.num_segments:
                return None
        elif name not in _ARGUMENTS and not (name == "synced_gpus" and value is False):
            return None
    try:
        config, _ = model._prepare_generation_config(generation_config, **given)
    except (AttributeError, TypeError, ValueError):
        return None
    if not _is_plain(config):
        return None

    def was_set(name: str) -> bool:
        return name in given or any(getattr(c, name, None) is not None for c in configs)

    limits = None
    if was_set("max_new_tokens"):
        if was_set("max_length"):
            return None
        max_new_tokens = config.max_new_tokens
    elif was_set("max_length"):
        max_new_tokens = config.max_length - 1
    else:
        limits = lengths + config.max_tokens_over_source
        max_new_tokens = int(limits.max())
        if int(limits.min()) < 2:
            return None
    min_new_tokens = config.min_new_tokens
    if min_new_tokens is None:
        min_new_tokens = (config.min_length or 0) - 1
    elif was_set("min_length"):
        return None
    ends = _ids(config.eos_token_id)
    if not ends and limits is not None:
        limits = None
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    pad = config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else -1
    suppressed = {*_ids(config.suppress_tokens)}
    for words in config.bad_words_ids or []:
        # Longer ones forbid tokens now and then; an end is not forbidden this way.
        if len(words) != 1:
            return None
        suppressed |= {*words} - {*ends}
    forced = config.forced_eos_token_id
    settings = SearchSettings(
        num_beams=config.num_beams,
        num_hypotheses=config.num_return_sequences,
        max_new_tokens=max_new_tokens,
        limits=limits,
        min_new_tokens=max(0, min_new_tokens),
        length_penalty=config.length_penalty,
        length_penalty_formula=config.length_penalty_formula,
        early_stopping=config.early_stopping,
        start_token_id=start,
        eos_token_ids=ends,
        pad_token_id=pad,
        # As transformers has it: a pad of 0 counts as none.
        filler=(pad or ends[0]) if ends else -1,
        suppressed=tuple(sorted(suppressed)),
        is_end_forced=forced is not None,
        is_renormalized=bool(config.renormalize_logits),
    )
    size = model.config.target_vocab_size
    is_sound = (
        isinstance(start, int)
        and isinstance(pad, int)
        and 1 <= settings.num_hypotheses <= settings.num_beams
        and settings.max_new_tokens >= 2
        and settings.min_new_tokens <= settings.max_new_tokens
        and settings.length_penalty_formula in ("paper", "power")
        and settings.early_stopping in (False, True, "never")
        and all(0 <= i < size for i in (*ends, *suppressed, start))
        # Enough tokens that a beam need not look at what is impossible.
        and size - len(suppressed) - len(ends) >= settings.num_candidates
        and (forced is None or (ends == (forced,) and forced not in suppressed))
    )
    if not is_sound or _exceeds_positions(model, max(source_length, max_new_tokens)):
        return None
    return settings


def _is_plain(config: GenerationConfig) -> bool:
    defaults = config._get_default_generation_params()
    return all(
        name in _FOLLOWED
        or name in _WITHOUT_EFFECT
        or value is None
        or value is False
        or (name in defaults and value == defaults[name])
        for name, value in config.__dict__.items()
    )


def _ids(tokens: Any) -> tuple[int, ...]:
    """Of one, several, or no ids."""
    if tokens is None:
        return ()
    if isinstance(tokens, int):
        return (tokens,)
    return tuple(int(token) for token in tokens)


def _exceeds_positions(
    model: VanillaTransformerForConditionalGeneration, num_positions: int
) -> bool:
    """Whether a learned table has fewer rows; where they would be needed, `generate` says so."""
    config = model.config
    if config.position_encoding != "learned" or config.max_position_embeddings is None:
        return False
    return num_positions + config.position_offset > config.max_position_embeddings
