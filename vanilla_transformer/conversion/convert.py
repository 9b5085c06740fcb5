"""From a source's files to one checkpoint of this package: read, convert, prove, write."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import jinja2
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..registration import add_remote_code
from ..tokenization import TARGET_TOKENIZER, TwoSidedTokenizer
from .catalogue import PublishedCheckpoint, find_published
from .families import FAMILIES
from .fingerprints import check_fingerprint
from .parity import TOLERANCE, Parity, compare
from .source import Checkpoint, Converted, Family, Tokenizers
from .weights import build_model

logger = logging.getLogger(__package__)

# A card's, by the language of the source.
_EXAMPLES = {"en": "A dog runs on the grass.", "de": "Ein Hund läuft über das Gras."}


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        family: Where the checkpoint is from.
        output: Directory of the model.
        parity: How far it is from its source.
        is_live: Whether `parity` was measured on this very checkpoint by the source's own code;
            else on a stored example of its family.
        remarks: What was left out or added.
    """

    family: Family
    output: Path
    parity: Parity
    is_live: bool
    remarks: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    family: str | None = None,
    report: Callable[[str], None] = logger.info,
) -> Conversion:
    """Converts a published checkpoint of this architecture, tokenizer included.

    The output loads with `AutoModelForSeq2SeqLM.from_pretrained`, with this package imported or
    with `trust_remote_code=True`, and needs nothing of its source any more. It is written only when
    all of it converted and agrees with the source.

    Args:
        source: A file or directory of one of the families, or the Hub id of one.
        output: Directory to write; must not be there yet, or be empty.
        family: Name of the source's family; by default it is recognised.
        report: Told of each step.

    Raises:
        ValueError: No such source, one of no family or of another architecture, a checkpoint that
            is not whole, or one whose conversion does not agree with it; `output` is in use.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is in use; give a directory that is not there yet, or empty")
    path = _fetch(source, family)
    chosen = _choose(path, family)
    report(f"{source}: {chosen.title}")
    try:
        checkpoint = chosen.read(path)
        converted = chosen.convert(checkpoint)
        tokenizers = chosen.tokenizers(checkpoint, converted)
        _check_tokenizers(tokenizers, converted)
        model = build_model(converted)
        size = sum(parameter.numel() for parameter in model.parameters())
        report(f"{len(converted.weights)} tensors, {size:,} parameters")
        parity, is_live = prove(chosen, checkpoint, model)
    except (ValueError, OSError, ImportError):
        raise
    # Files of others may say anything, such as a list where a number is due.
    except Exception as error:
        raise ValueError(
            f"{source} is no whole checkpoint of {chosen.title} ({error!r}); get it again, or "
            "report it if others can read it"
        ) from error
    report(f"{parity}")
    if not parity.holds:
        raise ValueError(
            f"the conversion of {source} does not agree with its source: {parity}; at most "
            f"{TOLERANCE} is rounding. Nothing was written. Please report the checkpoint"
        )
    remarks = (*converted.remarks, *tokenizers.remarks)
    result = Conversion(chosen, output, parity, is_live, remarks)
    published = find_published(str(source))
    _write(result, model, tokenizers, str(source), published)
    return result


def prove(
    family: Family, checkpoint: Checkpoint, model: VanillaTransformerForConditionalGeneration
) -> tuple[Parity, bool]:
    """Parity of the model with its source, and whether that was measured on this checkpoint.

    Where the source's code is not installed, the family's stored example is converted and compared
    with what that code once gave for it.
    """
    try:
        reference = family.reference(checkpoint)
    except ImportError as error:
        logger.info("%s", error)
        return check_fingerprint(family), False
    return compare(model, reference, reference.name), True


def _choose(path: Path, name: str | None) -> Family:
    names = ", ".join(family.name for family in FAMILIES)
    if name is not None:
        for family in FAMILIES:
            if family.name == name:
                return family
        raise ValueError(f"family ({name!r}) must be one of {names}")
    for family in FAMILIES:
        # What is not even of the form that is looked into is not of the family.
        with contextlib.suppress(TypeError, AttributeError, LookupError, RecursionError):
            if family.recognises(path):
                return family
    raise ValueError(
        f"{path} is of no family that is known here ({names}); if it is of one all the same, name "
        "it with --family"
    )


def _fetch(source: str | Path, name: str | None) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        for place in (path, *path.iterdir()) if path.is_dir() else (path,):
            # A pipe would be waited for, and a device read without end.
            if place.exists() and not (place.is_file() or place.is_dir()):
                raise ValueError(f"{place} is neither a file nor a directory; leave it out")
        return path.resolve()
    chosen = [family for family in FAMILIES if name in (None, family.name)]
    patterns = sorted({pattern for family in chosen for pattern in family.hub_patterns})
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source} is neither a file or directory nor a model that the Hub gave ({reason}); "
            "check the path, or the id and the network"
        ) from error


def _check_tokenizers(tokenizers: Tokenizers, converted: Converted) -> None:
    config = converted.config
    sizes = {"source": config.vocab_size, "target": config.target_vocab_size}
    for side, tokenizer in (("source", tokenizers.source), ("target", tokenizers.target)):
        if tokenizer is not None and len(tokenizer) > sizes[side]:
            raise ValueError(
                f"the {side} tokenizer knows {len(tokenizer)} tokens, the model {sizes[side]}; the "
                "vocabulary is of another checkpoint"
            )


def _write(
    result: Conversion,
    model: VanillaTransformerForConditionalGeneration,
    tokenizers: Tokenizers,
    source: str,
    published: PublishedCheckpoint | None,
) -> None:
    output = result.output
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".tmp-{os.getpid()}-{output.name}")
    try:
        model.save_pretrained(temporary)
        if tokenizers.source is not None and tokenizers.target is not None:
            both = TwoSidedTokenizer.join(tokenizers.source, tokenizers.target)
            both.save_pretrained(temporary)
        elif tokenizers.source is not None:
            tokenizers.source.save_pretrained(temporary)
        add_remote_code(temporary)
        (temporary / "README.md").write_text(
            _card(result, model, tokenizers, source, published), "utf-8"
        )
        if output.exists():
            output.rmdir()
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _card(
    result: Conversion,
    model: VanillaTransformerForConditionalGeneration,
    tokenizers: Tokenizers,
    source: str,
    published: PublishedCheckpoint | None,
) -> str:
    template = Path(__file__).with_name("card.md.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    return environment.from_string(template).render(
        result=result,
        config=model.config,
        parameters=model.num_parameters(),
        tokenizers=tokenizers,
        # A path of somebody's machine is nobody else's business.
        source=Path(source).name if Path(source).exists() else source,
        published=published,
        target_folder=TARGET_TOKENIZER,
        examples=_EXAMPLES,
    )
