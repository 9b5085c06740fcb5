"""Decoding: the paper's settings, bulk translation, and the lean loop that both run on."""

from .lean import lean_generate
from .preparation import release
from .settings import PAPER_DECODING, DecodingSettings
from .translation import Hypothesis, TranslationReport, translate

__all__ = [
    "PAPER_DECODING",
    "DecodingSettings",
    "Hypothesis",
    "TranslationReport",
    "lean_generate",
    "release",
    "translate",
]
