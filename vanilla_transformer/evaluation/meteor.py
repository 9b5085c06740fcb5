"""METEOR (Banerjee and Lavie 2005) as an Evaluate metric; NLTK computes it.

Synonyms come from WordNet, whose files NLTK does not bring along. Without them the score is another
one, often by several points: the result says which it is. Nothing is ever downloaded.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .sacrebleu_metric import SacreBleuMetric

# Where Debian's and Ubuntu's package wordnet-base puts the files.
SYSTEM_WORDNET = Path("/usr/share/wordnet")

logger = logging.getLogger(__name__)


class MeteorScore(NamedTuple):
    """A corpus score in percent, those of its sentences, and the release of WordNet, if any."""

    score: float
    scores: list[float]
    wordnet: str | None


class MeteorScorer:
    """NLTK's METEOR with the methods of a sacreBLEU metric.

    The score of a corpus is the mean over its sentences, each by its best reference, as in
    Evaluate's own `meteor`. Words are split by NLTK's tokenizer for words, which needs no data.

    Raises:
        ValueError: NLTK is not installed, or `wordnet` names a folder without WordNet.
    """

    def __init__(
        self, wordnet: str = "auto", alpha: float = 0.9, beta: float = 3.0, gamma: float = 0.5
    ) -> None:
        """Find the synonyms."""
        try:
            import nltk
        except ImportError as error:
            raise ValueError(
                "METEOR needs NLTK; install it with pip install 'vanilla_transformer[meteor]'"
            ) from error
        self.nltk_version = nltk.__version__
        self.weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
        self.synonyms = find_wordnet(wordnet)
        self.wordnet: str | None = self.synonyms.get_version() if self.synonyms else None

    def corpus_score(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str | None]]
    ) -> MeteorScore:
        """Mean over the sentences; `references` holds one stream for each, None where it ends."""
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.translate.meteor_score import meteor_score

        split = NLTKWordTokenizer().tokenize
        scores = [
            100
            * meteor_score(
                [split(one) for one in alternatives if one is not None],
                split(hypothesis),
                wordnet=self.synonyms or NoSynonyms(),
                **self.weights,
            )
            for hypothesis, alternatives in zip(
                hypotheses, zip(*references, strict=True), strict=True
            )
        ]
        return MeteorScore(sum(scores) / len(scores), scores, self.wordnet)

    def get_signature(self) -> str:
        """All that the figure depends on, in sacreBLEU's manner."""
        weights = "|".join(f"{name}:{value:g}" for name, value in self.weights.items())
        return (
            f"case:lc|tok:nltk|stem:porter|wordnet:{self.wordnet or 'none'}|{weights}"
            f"|nltk:{self.nltk_version}"
        )


class NoSynonyms:
    """A WordNet in which no word stands."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


def find_wordnet(wordnet: str) -> Any:
    """NLTK's reader of WordNet, or None.

    Args:
        wordnet: As `Meteor` takes it.

    Raises:
        ValueError: A folder without WordNet's files.
    """
    import nltk

    if wordnet == "none":
        return None
    if wordnet != "auto":
        if not (Path(wordnet) / "data.noun").exists():
            raise ValueError(
                f"wordnet ({wordnet!r}) must be 'auto', 'none' or a folder with WordNet's files, "
                "data.noun among them"
            )
        return _read_wordnet(Path(wordnet))
    try:
        nltk.corpus.wordnet.ensure_loaded()
        return nltk.corpus.wordnet
    except LookupError:
        pass
    if (SYSTEM_WORDNET / "data.noun").exists():
        return _read_wordnet(SYSTEM_WORDNET)
    logger.warning(
        "WordNet is not there, so METEOR counts no synonyms and is not comparable with scores that "
        "do; python -m nltk.downloader wordnet, or apt install wordnet-base, brings it"
    )
    return None


@functools.cache
def _read_wordnet(folder: Path) -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class FolderReader(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            # The names of the lexicographers' files, which METEOR never asks for: Debian leaves
            # them out, and NLTK cannot do without a list of 45.
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d} unknown 0\n" for number in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            # To the release that the WordNets of other languages go by: they are not used.
            return None

    # NLTK reads in no other folders than these.
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    with warnings.catch_warnings():
        # That the WordNets of other languages are not there.
        warnings.simplefilter("ignore")
        return FolderReader(str(folder), None)


class Meteor(SacreBleuMetric):
    """Mean METEOR of the sentences, 0 to 100, for translations into English.

    Options: `wordnet="auto"` looks for WordNet where NLTK keeps its data and in
    /usr/share/wordnet, and does without, warning, where it is in neither; `"none"` does without;
    anything else is a folder with its files. `alpha=0.9`, `beta=3`, `gamma=0.5` are NLTK's, from
    Lavie and Agarwal (2007). Stems are Porter's for English, and it is stems whose synonyms NLTK
    looks up: it finds none for "automobil". Meteor 1.5, the program in Java, has paraphrases and
    other weights: its figures are not these.
    """

    scorer = MeteorScorer
    homepage = "https://www.nltk.org/api/nltk.translate.meteor_score.html"
    description_text = (
        "METEOR: words of a translation aligned with those of its reference, by form, stem and "
        "WordNet synonym; F-score of the aligned words times a penalty for their disorder."
    )
    citation_text = (
        "Banerjee and Lavie, METEOR: An Automatic Metric for MT Evaluation with Improved "
        "Correlation with Human Judgments, 2005. Lavie and Agarwal, WMT 2007."
    )

    def parts(self, score: Any) -> dict[str, Any]:
        """The sentences' scores, and the release of WordNet; None without synonyms."""
        return {"scores": score.scores, "wordnet": score.wordnet}
