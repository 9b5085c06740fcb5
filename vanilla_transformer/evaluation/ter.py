"""TER (Snover et al. 2006) as an Evaluate metric; sacreBLEU computes it as Tercom does."""

from __future__ import annotations

from typing import Any

import sacrebleu

from .sacrebleu_metric import SacreBleuMetric


class Ter(SacreBleuMetric):
    """Corpus translation edit rate in percent: lower is better, and it may exceed 100.

    Options and defaults are those of `sacrebleu.TER`, hence of its command line:
    `case_sensitive=False` (TER ignores case unless told not to), `normalized=False`,
    `no_punct=False`, `asian_support=False`.
    """

    scorer = sacrebleu.TER
    description_text = (
        "TER: edits (insertions, deletions, substitutions and shifts of word sequences) that turn "
        "a translation into its reference, per reference word."
    )
    citation_text = (
        "Snover et al., A Study of Translation Edit Rate with Targeted Human Annotation, AMTA 2006."
    )

    def parts(self, score: Any) -> dict[str, Any]:
        """Number of edits, and the references' length in words (mean over alternatives)."""
        return {"num_edits": score.num_edits, "ref_length": score.ref_length}
