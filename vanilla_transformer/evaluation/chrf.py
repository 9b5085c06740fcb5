"""chrF (Popović 2015) and chrF++ (2017) as an Evaluate metric; sacreBLEU computes it."""

from __future__ import annotations

from typing import Any

import sacrebleu

from .sacrebleu_metric import SacreBleuMetric


class Chrf(SacreBleuMetric):
    """Corpus chrF, 0 to 100; with `word_order=2` it is chrF++.

    Options and defaults are those of `sacrebleu.CHRF`, hence of its command line: `char_order=6`,
    `word_order=0`, `beta=2`, `lowercase=False`, `whitespace=False`, `eps_smoothing=False`.
    """

    scorer = sacrebleu.CHRF
    description_text = (
        "chrF: F-score of the character n-grams, and with word_order of the word n-grams, that a "
        "translation shares with its references."
    )
    citation_text = (
        "Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015. "
        "Popović, chrF++: words helping character n-grams, WMT 2017."
    )

    def parts(self, score: Any) -> dict[str, Any]:
        """The longest character and word n-grams counted, and the weight of recall."""
        return {
            "char_order": score.char_order,
            "word_order": score.word_order,
            "beta": score.beta,
        }
