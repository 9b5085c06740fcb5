"""BLEU (Papineni et al. 2002) as an Evaluate metric; sacreBLEU (Post 2018) computes it."""

from __future__ import annotations

from typing import Any, ClassVar

import sacrebleu

from .sacrebleu_metric import SacreBleuMetric


class Bleu(SacreBleuMetric):
    """Corpus BLEU, 0 to 100.

    Options and defaults are those of `sacrebleu.BLEU`, hence of its command line: `tokenize="13a"`,
    `lowercase=False`, `smooth_method="exp"`, `smooth_value`, `max_ngram_order=4`,
    `effective_order=False`. Text that is tokenised already wants `tokenize="none"`.
    """

    scorer = sacrebleu.BLEU
    choices: ClassVar = {
        "tokenize": sacrebleu.BLEU.TOKENIZERS,
        "smooth_method": sacrebleu.BLEU.SMOOTH_DEFAULTS.keys(),
    }
    description_text = (
        "BLEU: geometric mean of the n-gram precisions of a translation against its references, "
        "times a penalty for brevity."
    )
    citation_text = (
        "Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, "
        "ACL 2002. Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018."
    )

    def parts(self, score: Any) -> dict[str, Any]:
        """Matches, totals and precisions (%) per order, brevity penalty, lengths in tokens."""
        return {
            "counts": list(score.counts),
            "totals": list(score.totals),
            "precisions": list(score.precisions),
            "bp": score.bp,
            "sys_len": score.sys_len,
            "ref_len": score.ref_len,
        }
