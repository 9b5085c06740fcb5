"""Push a model to the Hub: looked through before anything is sent, then one commit or none."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_session,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..recipes.model_directory import check_weights, read_config
from ..registration import TRAVELLING, add_remote_code
from ..tokenization import load_tokenizer
from .model_card import CARD, write_card

logger = logging.getLogger(__package__)

_TOKENIZER = "tokenizer.json"
# Left in a card, each says that somebody has yet to write something. Angle brackets alone do not:
# `<pad>` and `</s>` are tokens.
_PLACEHOLDERS = re.compile(
    r"\[More Information Needed\]|\{\{|\}\}|\{%|\b(?:TODO|FIXME|TBD)\b|<(?:…|\.\.\.)>"
    r"|<(?:your|my|insert|fill)\b[^>\n]*>|<[A-Z][A-Z0-9]*(?:[_ -][A-Z0-9]+)+>",
    re.IGNORECASE,
)
# Pickles can carry code, and what else a run leaves beside its model is no part of it.
_LEFT_OUT = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_WAITS = (1.0, 4.0)
"""Seconds before a commit that the Hub failed to answer is tried again."""


@dataclass(frozen=True)
class Upload:
    """What a push would send.

    Attributes:
        files: Where the content of each path of the repository lies.
        architecture: Class of the model.
        remarks: What was left out or is missing.
    """

    files: dict[str, Path]
    architecture: str
    remarks: tuple[str, ...]


def push(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    message: str | None = None,
    report: Callable[[str], None] = logger.info,
) -> CommitInfo:
    """Pushes a model's directory to the Hub, in one commit.

    Everything is checked before anything is sent. The code of the model goes along, so that it
    loads with `trust_remote_code=True` where this package is not installed; `directory` itself is
    left as it is. A run without a card in its `model/` gets the one that is rendered from its
    results, with their files and the scores in `.eval_results/`. Weights of the repository that are
    none of the model's are deleted by the same commit: a model is never made of two.

    Args:
        directory: A model directory, or a run directory (its `model/` is taken).
        repo_id: Of the repository, `owner/name`; made if it is not there.
        private: Whether a new repository is to be private.
        revision: Branch to commit to, made if it is not there; or to propose the commit for.
        create_pr: Whether to open a pull request instead of committing to the branch.
        endpoint: Address of the Hub; by default `HF_ENDPOINT`, or huggingface.co.
        token: Of somebody who may write there; by default the one logged in with, or `HF_TOKEN`.
        message: Of the commit.
        report: Told of each step and remark.

    Raises:
        ValueError: The model is not whole, its card is not finished, there is no token or none
            that may write there, or the Hub cannot be reached or did not take it.
    """
    run = Path(directory).expanduser()
    model = _model_directory(run)
    needs_card = model != run and not (model / CARD).is_file()
    token = token or get_token()
    if not token:
        raise ValueError(
            "there is no token to push with; make one that may write at "
            "https://huggingface.co/settings/tokens, then `hf auth login` or set HF_TOKEN"
        )
    with tempfile.TemporaryDirectory() as staging:
        if needs_card:
            _write_card(run, Path(staging), repo_id)
            report(f"the card is rendered from {run / 'results.json'}")
        upload = collect_upload(model, Path(staging))
        for remark in upload.remarks:
            report(remark)
        size = sum(path.stat().st_size for path in upload.files.values())
        report(f"{upload.architecture}: {len(upload.files)} files, {size / 1e6:,.1f} MB")
        with _clear_errors(repo_id):
            hub = _Target(HfApi(endpoint, token), repo_id, revision, create_pr)
            if needs_card and hub.repo_id != repo_id:
                # Given without its owner, and the card tells where to load the model from.
                _write_card(run, Path(staging), hub.repo_id)
            hub.prepare(private)
            return hub.commit(upload, message or f"Push {upload.architecture}", report)


# ------------------------------------------------------------------------- what is to be uploaded


def collect_upload(directory: Path, staging: Path) -> Upload:
    """The files of a model, looked through.

    Args:
        directory: The model's own.
        staging: More files, such as a card, which come before those of `directory`; the code that
            the model lacks is put there.

    Raises:
        ValueError: The model is not whole or its card is not finished.
    """
    config = read_config(directory)
    architecture = (config.architectures or [""])[0]
    check_weights(directory, config, architecture)
    check_card(staging / CARD if (staging / CARD).is_file() else directory / CARD)
    remarks = _check_tokenizer(directory, config)
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        is_hidden = any(
            part.startswith((".", "__pycache__")) and part != ".eval_results" for part in name.parts
        )
        if not path.is_file() or is_hidden:
            continue
        if path.suffix in _LEFT_OUT or name.parts[0].startswith("checkpoint-"):
            left_out.append(str(name))
        else:
            files[name.as_posix()] = path
    if left_out:
        remarks.append(f"left out, as no part of the model: {', '.join(left_out)}")
    if _add_code(directory, staging):
        remarks.append("the model's code goes along, for trust_remote_code=True")
    files |= {
        path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()
    }
    return Upload(files, architecture, tuple(remarks))


def check_card(path: Path) -> None:
    """Looks whether a card is finished.

    Raises:
        ValueError: There is none, its metadata cannot be read, or a placeholder is left in it.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: a model is pushed with its card. That of a run is rendered if "
            "the run's directory is given; `vanilla-transformer convert` writes one"
        )
    text = path.read_text("utf-8")
    found = _PLACEHOLDERS.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(
            f"{path}, line {line}: {found[0]!r} is a placeholder; write what belongs there"
        )
    try:
        metadata = ModelCard(text).data.to_dict()
    # Errors of PyYAML, and whatever comes of metadata that are no mapping.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: its metadata cannot be read ({reason}); mend them") from error
    if not metadata.get("license"):
        raise ValueError(
            f"{path} says no license; begin it with metadata between two lines of `---`, among "
            "them `license: apache-2.0`, or what holds"
        )


def _model_directory(path: Path) -> Path:
    for directory in (path, path / "model"):
        if (directory / "config.json").is_file():
            return directory
    raise ValueError(
        f"{path} holds no model: neither config.json nor model/config.json is there; give the "
        "directory of a model or of a finished run"
    )


def _write_card(run: Path, staging: Path, repo_id: str) -> None:
    try:
        write_card(run, staging, repo_id)
    # Results that somebody has edited fail in any way.
    except Exception as error:
        raise ValueError(
            f"the card of {run} cannot be rendered ({error}); write one yourself, as "
            f"{run / 'model' / CARD}"
        ) from error


def _check_tokenizer(directory: Path, config: VanillaTransformerConfig) -> list[str]:
    """Remarks; a tokenizer may be missing, but not be broken or another model's."""
    if not (directory / _TOKENIZER).is_file():
        return [f"there is no {_TOKENIZER}: whoever loads the model must know its tokenizer"]
    tokenizer = load_tokenizer(directory)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {len(tokenizer):,} tokens, the model's vocab_size is "
            f"{config.vocab_size:,}; save the tokenizer that the model was trained with"
        )
    return []


def _add_code(directory: Path, staging: Path) -> bool:
    """Puts the code and a `config.json` that names it into `staging`, unless all are there."""
    own, staged = directory / "config.json", staging / "config.json"
    staged.write_bytes(own.read_bytes())
    add_remote_code(staging)
    names = [Path(str(module.__file__)).name for module in TRAVELLING]
    is_same = json.loads(own.read_text("utf-8")) == json.loads(staged.read_text("utf-8"))
    if not is_same or not all((directory / name).is_file() for name in names):
        return True
    for name in ("config.json", *names):
        (staging / name).unlink()
    return False


# ------------------------------------------------------------------------------------ to the Hub


class _Target:
    """Where a push goes to."""

    def __init__(self, api: HfApi, repo_id: str, revision: str | None, create_pr: bool) -> None:
        self.api = api
        user = api.whoami()
        self.repo_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        self.revision = revision
        self.create_pr = create_pr
        access = user.get("auth", {}).get("accessToken") or {}
        if access.get("role") == "read":
            raise ValueError(
                f"the token of {user['name']} may only read; make one that may write at "
                "https://huggingface.co/settings/tokens"
            )

    def prepare(self, private: bool) -> None:
        """Makes the repository and the branch where they are not there yet."""
        if not (self.create_pr and self.api.repo_exists(self.repo_id)):
            # Of an existing one, what it is stays as it is.
            self.api.create_repo(self.repo_id, private=private or None, exist_ok=True)
        if private and not self.api.model_info(self.repo_id).private:
            raise ValueError(
                f"{self.repo_id} is there and public: a push cannot make it private, so nothing "
                "was sent. Change it in its settings first, or push to another name"
            )
        if self.revision and not self.create_pr and not self.revision.startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

    def commit(self, upload: Upload, message: str, report: Callable[[str], None]) -> CommitInfo:
        """Sends the files and then commits them, all at once.

        `HfApi.upload_folder` would not do: it makes several commits of many files.
        """
        head = self.api.model_info(self.repo_id, revision=self.revision).sha
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, path) for name, path in upload.files.items()
        ]
        there = self.api.list_repo_files(self.repo_id, revision=head)
        stale = [name for name in there if _is_weights(name) and name not in upload.files]
        operations += [CommitOperationDelete(name) for name in stale]
        for attempt, wait in enumerate((*_WAITS, None)):
            try:
                return self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    revision=self.revision,
                    create_pr=self.create_pr,
                    # Of two pushes at once one is refused, instead of their mixture made.
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                status = error.response.status_code
                if attempt and status == 412 and (landed := self.find_landed(head, message)):
                    return landed
                # A pull request would be opened a second time.
                if status < 500 or wait is None or self.create_pr:
                    raise
                report(f"the Hub failed ({status}); trying again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError

    def find_landed(self, head: str | None, message: str) -> CommitInfo | None:
        """The commit after `head`, if it is this one and only the Hub's answer was lost."""
        last, before = self.api.list_repo_commits(self.repo_id, revision=self.revision)[:2]
        if (before.commit_id, last.title) != (head, message):
            return None
        url = f"{self.api.endpoint}/{self.repo_id}/commit/{last.commit_id}"
        return CommitInfo(url, message, "", last.commit_id, _endpoint=self.api.endpoint)


def _is_weights(name: str) -> bool:
    """Whether `from_pretrained` would look into the file of a repository."""
    return "/" not in name and name.endswith((".safetensors", ".safetensors.index.json", ".bin"))


@contextmanager
def _clear_errors(repo_id: str) -> Iterator[None]:
    """Says in this package's words what went wrong between here and the Hub.

    Raises:
        ValueError: In place of any error of the client.
    """
    again = "The repository shows nothing of it; run the push again, it goes on where it was"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = " ".join(str(error.server_message or error).split())
        said: dict[int, str] = {
            401: "the Hub does not know the token; make one at https://huggingface.co/settings/"
            "tokens, then `hf auth login` or set HF_TOKEN",
            403: f"the token may not write to {repo_id}; take one of its owner, push to a "
            "repository of your own, or propose the change with --create-pr",
            404: f"{repo_id}, or that revision of it, is not on the Hub ({reason}); check the name",
            412: f"{repo_id} has changed during the push, by somebody else; nothing was committed. "
            "Look at it, then push again",
        }
        text = said.get(status, f"the Hub refused the push to {repo_id} ({status}: {reason})")
        raise ValueError(f"{text}. {again}" if status >= 500 else text) from error
    except HFValidationError as error:
        raise ValueError(f"repository ({repo_id!r}) must be OWNER/NAME: {error}") from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to push") from error
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the push to {repo_id} broke off ({_first_line(error)}). {again}") from (
            error
        )
    except Exception as error:
        if not isinstance(error, _transport_error()):
            raise
        raise ValueError(
            f"the Hub cannot be reached or hung up ({_first_line(error)}); check the network and "
            f"HF_ENDPOINT or --hub-endpoint. {again}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _transport_error() -> Any:
    """Base of the errors of the client's HTTP library: httpx, or httpx2 from its version 2 on."""
    library = __import__(type(get_session()).__module__.split(".")[0])
    return library.TransportError
