"""Pipelines for what transformers 5 has none for any more: translation and question answering.

With this package imported they are `pipeline("vanilla-translation", ...)` and
`pipeline("vanilla-question-answering", ...)`: transformers refuses the plain names, unless a
model's own configuration has them. Models saved with their code do, so that
`pipeline("translation", model=..., trust_remote_code=True)` works where the package is missing:
this file travels with the model.

Shapes: `B` sentences, `W` windows over a context, `S` tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, Pipeline

_WINDOW = 4096
"""Texts read ahead, to be sorted by length."""


class TranslationPipeline(Pipeline):
    """Text to text by `generate`, in batches of texts of like length.

    ```python
    translate = pipeline("vanilla-translation", model=directory_or_id)
    translate("A sentence.")  # [{"translation_text": "..."}]
    translate(["One.", "Two."], num_beams=4, max_batch_tokens=8192)
    ```

    Any parameter of `generate` can be given, here or where the pipeline is made; without, those of
    the model's generation config hold.
    """

    _load_tokenizer = True
    _pipeline_calls_generate = True

    def _sanitize_parameters(
        self, max_batch_tokens: int | None = None, **generation: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if max_batch_tokens is not None:
            if max_batch_tokens < 1:
                raise ValueError(f"max_batch_tokens ({max_batch_tokens}) must be at least 1")
            self.max_batch_tokens = max_batch_tokens
        return {}, generation, {}

    max_batch_tokens = 4096
    """Bound on texts times tokens of the longest in a batch; a longer text has one to itself."""

    def __call__(
        self, texts: str | Iterable[str], *, max_batch_tokens: int | None = None, **generation: Any
    ) -> Any:
        """Translates.

        Args:
            texts: One, a list, or an iterable of any length, which is read `4096` at a time.
            max_batch_tokens: Bound on texts times tokens of the longest in a batch.
            **generation: Parameters of `generate`.

        Returns:
            For one text a list of `{"translation_text": ...}`, one for each sequence asked for. For
            a list, of each text the same, or with one sequence each the dictionaries themselves. An
            iterator of them for another iterable.

        Raises:
            ValueError: A text that is none.
        """
        self._sanitize_parameters(max_batch_tokens)
        forward = {**self._forward_params, **generation}
        if isinstance(texts, str):
            found = next(self._translate(iter([texts]), forward))
            return found if isinstance(found, list) else [found]
        translations = self._translate(iter(texts), forward)
        return list(translations) if isinstance(texts, (list, tuple)) else translations

    def _translate(self, texts: Iterator[str], forward: dict[str, Any]) -> Iterator[Any]:
        while block := list(itertools.islice(texts, _WINDOW)):
            for text in block:
                if not isinstance(text, str):
                    raise ValueError(f"{text!r} is not a text; give strings")
            encoded = self.tokenizer([text.strip() for text in block], verbose=False)["input_ids"]
            results: list[Any] = [None] * len(block)
            for batch in _batches([len(ids) for ids in encoded], self.max_batch_tokens):
                inputs = self.preprocess([encoded[i] for i in batch])
                outputs = self.postprocess(self.forward(inputs, **forward))
                for i, found in zip(batch, outputs, strict=True):
                    # Nothing is nothing in any language, whatever the model makes of it.
                    results[i] = (
                        found if block[i].strip() else [{"translation_text": ""}] * len(found)
                    )
            for found in results:
                yield found[0] if len(found) == 1 else found

    def preprocess(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Ids of each text to `input_ids` and `attention_mask`, `[B, S]`."""
        return dict(self.tokenizer.pad({"input_ids": ids}, return_tensors="pt"))

    def _forward(self, inputs: dict[str, torch.Tensor], **generation: Any) -> dict[str, Any]:
        count = len(inputs["input_ids"])
        sequences = self.model.generate(**inputs, **self._prepare_generate_kwargs(generation))
        return {"sequences": sequences.view(count, -1, sequences.shape[-1])}

    def postprocess(self, outputs: dict[str, torch.Tensor]) -> list[list[dict[str, str]]]:
        """`[B, n, T]` to n translations of each text."""
        tokenizer = self._target_tokenizer()
        return [
            [
                {"translation_text": text}
                for text in tokenizer.batch_decode(rows, skip_special_tokens=True)
            ]
            for rows in outputs["sequences"]
        ]

    def _target_tokenizer(self) -> Any:
        """What decodes: the target side may have a tokenizer of its own."""
        has_own = self.tokenizer.init_kwargs.get("target_tokenizer")
        if not has_own or hasattr(self.tokenizer, "target"):
            return self.tokenizer
        if not hasattr(self, "_target"):
            self._target = AutoTokenizer.from_pretrained(
                self.tokenizer.name_or_path,
                subfolder="target_tokenizer",
                revision=getattr(self.model.config, "_commit_hash", None) or "main",
            )
        return self._target


def _batches(lengths: list[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of texts, longest first, in lists of at most `max_batch_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, max_batch_tokens // max(1, lengths[order[0]]))
        yield order[:count]
        del order[:count]


class QuestionAnsweringPipeline(Pipeline):
    """The piece of a context that answers a question.

    ```python
    answer = pipeline("vanilla-question-answering", model=directory_or_id)
    answer(question="Who sleeps?", context="The dog sleeps.")
    # {"score": 0.98, "start": 0, "end": 7, "answer": "The dog"}
    ```

    A context too long for one window is read in several that overlap. Start and end are searched
    together over all windows.
    """

    _load_tokenizer = True

    _options = {
        "top_k": 1,
        "max_seq_len": 384,
        "doc_stride": 128,
        "max_question_len": 64,
        "max_answer_len": 30,
        "handle_impossible_answer": False,
    }

    def _sanitize_parameters(
        self, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(set(options) - set(self._options))
        if unknown:
            known = ", ".join(self._options)
            raise ValueError(f"question answering has no option {unknown[0]!r}; it has {known}")
        for name, value in options.items():
            least = 0 if name in ("doc_stride", "handle_impossible_answer") else 1
            if value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}")
        after = ("top_k", "max_answer_len", "handle_impossible_answer")
        before = {name: value for name, value in options.items() if name not in after}
        return before, {}, {name: value for name, value in options.items() if name in after}

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Any:
        """Answers.

        Args:
            inputs: `{"question": ..., "context": ...}`, or a list of them.
            question: Instead of `inputs`: a text, or a list of them.
            context: As many, or one for all.
            **options: `top_k` answers of each; windows of `max_seq_len` tokens that share
                `doc_stride` of the context, with the first `max_question_len` of the question;
                answers of up to `max_answer_len` tokens; `handle_impossible_answer`: whether "" is
                an answer, for models that were trained on questions without one.

        Returns:
            `{"score", "start", "end", "answer"}` for one question, a list of them with `top_k`
            above 1; a list of those for a list. `score` is the probability among all pieces (and
            no answer, where that is one), `start` and `end` are characters of the context.

        Raises:
            ValueError: No question, an empty context, lists that do not go together, options
                that leave no room.
        """
        if inputs is None:
            inputs = _questions(question, context)
        elif question is not None or context is not None:
            raise ValueError("give question and context either by name or in a dictionary")
        is_one = isinstance(inputs, Mapping)
        before, _, after = self._sanitize_parameters(**options)
        before = {**self._preprocess_params, **before}
        after = {**self._postprocess_params, **after}
        answers = [
            self.run_single(example, before, {}, after)
            for example in ([inputs] if is_one else inputs)
        ]
        return answers[0] if is_one else answers

    def preprocess(self, example: Mapping[str, str], **options: Any) -> dict[str, Any]:
        """Windows over the context: `[W, S]`."""
        settings = {**self._options, **options}
        for name in ("question", "context"):
            value = example.get(name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} ({value!r}) must be a text that is not empty")
        question = self.tokenizer(
            example["question"].strip(),
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        offsets = question["offset_mapping"][: settings["max_question_len"]]
        room = (
            settings["max_seq_len"] - len(offsets) - self.tokenizer.num_special_tokens_to_add(True)
        )
        if room <= settings["doc_stride"]:
            raise ValueError(
                f"max_seq_len ({settings['max_seq_len']}) leaves {room} tokens of context beside "
                f"the question; that must be more than doc_stride ({settings['doc_stride']})"
            )
        windows = self.tokenizer(
            example["question"].strip()[: offsets[-1][1]],
            example["context"],
            truncation="only_second",
            max_length=settings["max_seq_len"],
            stride=settings["doc_stride"],
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        padded = self.tokenizer.pad(
            {name: windows[name] for name in self.tokenizer.model_input_names}, return_tensors="pt"
        )
        # Characters that each token stands for; none outside the context.
        spans = torch.full((*padded["input_ids"].shape, 2), -1)
        for i, found in enumerate(windows["offset_mapping"]):
            sides = windows.sequence_ids(i)
            # The tokenizer pads where it is set to.
            first = padded["attention_mask"][i].argmax()
            for j, (offset, side) in enumerate(zip(found, sides, strict=True)):
                if side == 1:
                    spans[i, first + j] = torch.tensor(offset)
        return {"inputs": dict(padded), "spans": spans, "context": example["context"]}

    def _forward(self, example: dict[str, Any]) -> dict[str, Any]:
        output = self.model(**example["inputs"])
        return {
            "start_logits": output.start_logits.float(),
            "end_logits": output.end_logits.float(),
            "spans": example["spans"],
            "context": example["context"],
        }

    def postprocess(self, outputs: dict[str, Any], **options: Any) -> Any:
        """Logits to the likeliest pieces of the context."""
        settings = {**self._options, **options}
        starts, ends, spans = outputs["start_logits"], outputs["end_logits"], outputs["spans"]
        # A token without characters, such as a blank of its own, is no piece of text.
        is_text = spans[..., 1] > spans[..., 0]
        low = torch.finfo(torch.float32).min
        # By window, first and last token: [W, S, S].
        scores = starts.masked_fill(~is_text, -torch.inf)[:, :, None] + ends.masked_fill(
            ~is_text, -torch.inf
        ).unsqueeze(1)
        allowed = torch.ones(scores.shape[1:], dtype=torch.bool).triu()
        allowed &= allowed.new_ones(scores.shape[1:]).tril(settings["max_answer_len"] - 1)
        scores = scores.masked_fill(~allowed, -torch.inf).flatten()
        # The window that is surest of an answer decides whether there is one.
        null = (starts[:, 0] + ends[:, 0]).min().clamp_min(low)
        has_null = settings["handle_impossible_answer"]
        everything = torch.cat((scores, null[None])) if has_null else scores
        total = everything.logsumexp(0)
        best: dict[str, dict[str, Any]] = {}
        size = starts.shape[1]
        values, places = scores.sort(descending=True, stable=True)
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if len(best) == settings["top_k"] or not math.isfinite(value):
                break
            window, rest = divmod(place, size * size)
            begin, end = (int(spans[window, divmod(rest, size)[i], i]) for i in (0, 1))
            piece = outputs["context"][begin:end]
            text = piece.strip()
            begin += len(piece) - len(piece.lstrip())
            # The same text may be found in two windows, or twice in the context.
            if text and text not in best:
                best[text] = {
                    "score": math.exp(value - float(total)),
                    "start": begin,
                    "end": begin + len(text),
                    "answer": text,
                }
        answers = list(best.values())
        if has_null:
            none = {"score": math.exp(float(null - total)), "start": 0, "end": 0, "answer": ""}
            answers = sorted([*answers, none], key=lambda answer: -answer["score"])
        answers = answers[: settings["top_k"]]
        return answers if settings["top_k"] > 1 else answers[0]


def _questions(question: Any, context: Any) -> dict[str, str] | list[dict[str, str]]:
    """Question and context as given by name, in dictionaries."""
    if question is None or context is None:
        raise ValueError("give a question and a context, by name or in a dictionary")
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise ValueError(
            f"{len(questions)} questions do not go with {len(contexts)} contexts; give as many of "
            "one as of the other, or one context"
        )
    return [
        {"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)
    ]
