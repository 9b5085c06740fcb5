"""The paper's decoding (6.1) as settings."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import GenerationConfig


@dataclass(frozen=True)
class DecodingSettings:
    """How to search for a translation. The defaults are the paper's (6.1).

    Attributes:
        num_beams: Hypotheses kept at each step; 1 is greedy search.
        length_penalty: alpha.
        length_penalty_formula: `"paper"`, ((5 + n) / 6)^alpha, or `"power"`, n^alpha.
        max_tokens_over_source: Tokens an output may have beyond those of its source.
        num_hypotheses: Translations returned for each sentence, best first (n-best).
        do_sample: Draw tokens at random instead of searching for the likeliest.
        temperature: Divides the logits before sampling.
        top_k: Sample among this many likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens of this total probability.

    Raises:
        ValueError: Settings that contradict each other.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    length_penalty_formula: Literal["paper", "power"] = "paper"
    max_tokens_over_source: int = 50
    num_hypotheses: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.num_hypotheses < 1:
            raise ValueError(
                f"num_beams ({self.num_beams}) and num_hypotheses ({self.num_hypotheses}) must be "
                "at least 1"
            )
        is_plain_sampling = self.do_sample and self.num_beams == 1
        if self.num_hypotheses > self.num_beams and not is_plain_sampling:
            raise ValueError(
                f"num_hypotheses ({self.num_hypotheses}) cannot exceed num_beams "
                f"({self.num_beams}): a beam ends with that many; "
                f"try num_beams={self.num_hypotheses}, or sampling with num_beams=1"
            )
        if self.length_penalty_formula not in ("paper", "power"):
            raise ValueError(
                f"length_penalty_formula ({self.length_penalty_formula!r}) must be 'paper', "
                "((5 + n) / 6)^alpha, or 'power', n^alpha"
            )
        if self.max_tokens_over_source < 1:
            raise ValueError(
                f"max_tokens_over_source ({self.max_tokens_over_source}) must be at least 1, "
                "room for the end of the sentence"
            )
        if self.do_sample and not (
            self.temperature > 0 and 0 < self.top_p <= 1 and self.top_k >= 0
        ):
            raise ValueError(
                f"sampling needs temperature > 0, 0 < top_p <= 1 and top_k >= 0, not "
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}"
            )

    @classmethod
    def of_model(cls, config: GenerationConfig) -> "DecodingSettings":
        """How a model is meant to search, by its own generation config; the paper's if it says nil.

        What it has beyond these settings, such as tokens it suppresses, holds in any case.
        """
        if config.num_beams is None:
            return PAPER_DECODING
        alpha = config.length_penalty
        return cls(
            num_beams=config.num_beams,
            length_penalty=1.0 if alpha is None else alpha,
            length_penalty_formula=getattr(config, "length_penalty_formula", "paper"),
            max_tokens_over_source=getattr(config, "max_tokens_over_source", 50),
        )

    def generation_arguments(self) -> dict[str, Any]:
        """These settings as arguments of `generate` or fields of a `GenerationConfig`."""
        arguments: dict[str, Any] = {
            "num_beams": self.num_beams,
            "max_tokens_over_source": self.max_tokens_over_source,
            "num_return_sequences": self.num_hypotheses,
            "do_sample": self.do_sample,
        }
        if self.num_beams > 1:
            arguments["length_penalty"] = self.length_penalty
            arguments["length_penalty_formula"] = self.length_penalty_formula
        if self.do_sample:
            arguments |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return arguments


PAPER_DECODING = DecodingSettings()
