"""Moses' rules as replacements, against sacremoses on random words."""

import random

import pytest
from tokenizers import Regex, normalizers

from vanilla_transformer.conversion import moses

sacremoses = pytest.importorskip("sacremoses", reason="sacremoses, of the extra conversion")

# fmt: off
WORDS = [
    "`", "``", "''", "'", '"', "|", "&#124;", "&bar;", "„", "“", "”", "‚", "‘", "a", "s", 's"',
    "word", ".", ",", "!", ")", "(", "[", "]", "&#91;", "&quot;", "&apos;", "'s", "n't", "@-@",
    "-", "%", "$", "1", "«", "»", "&amp;", "&amp;quot;", "日", "本",
]
# fmt: on


@pytest.mark.parametrize("language", ["en", "de", "fr", "ru"])
def test_random_words_are_put_together_as_sacremoses_does(language: str) -> None:
    replacements = [normalizers.Replace(Regex(rule), to) for rule, to in moses.text(language)]
    ours = normalizers.Sequence(replacements)
    theirs = sacremoses.MosesDetokenizer(language)
    numbers = random.Random(0)
    lines = [numbers.choices(WORDS, k=1 + number % 8) for number in range(2000)]
    pairs = [(ours.normalize_str(" ".join(line)), theirs.detokenize(line)) for line in lines]
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
