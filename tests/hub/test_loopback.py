"""The loopback Hub against huggingface_hub's own client: every call that the tests stand on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ADA, BOB, READER
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback import Fault, LoopbackHub

pytestmark = pytest.mark.usefixtures("online")
CARD = b"---\nlicense: apache-2.0\n---\n# A card\n"


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=ADA)


@pytest.fixture
def repo(api: HfApi) -> str:
    """A repository of one commit with files small and large, in a folder too."""
    return str(api.create_repo("ada/model").repo_id)


def add(api: HfApi, repo: str, files: dict[str, bytes], **arguments: Any) -> Any:
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo, operations, commit_message="add", **arguments)


def test_who_is_who(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == "ada"
    assert api.whoami()["orgs"][0]["name"] == "lab"
    assert api.whoami(token=READER)["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")


def test_repositories_are_made_moved_and_deleted(hub: LoopbackHub, api: HfApi) -> None:
    url = api.create_repo("model", private=True)
    assert (url.repo_id, url.repo_type) == ("ada/model", "model")
    assert api.create_repo("ada/model", exist_ok=True).repo_id == "ada/model"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("ada/model")
    data = api.create_repo("lab/data", repo_type="dataset")
    assert data == f"{hub.endpoint}/datasets/lab/data"
    assert api.dataset_info("lab/data").private is False
    # A private one is not there for others.
    assert api.model_info("ada/model").private
    for token in (BOB, False):
        assert not api.repo_exists("ada/model", token=token)
    api.update_repo_settings("ada/model", private=False)
    assert api.repo_exists("ada/model", token=BOB)
    api.move_repo("ada/model", "lab/model")
    assert not api.repo_exists("ada/model")
    api.auth_check("lab/model", write=True)
    api.delete_repo("lab/model")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("lab/model")
    api.delete_repo("lab/model", missing_ok=True)


@pytest.mark.parametrize("token", [BOB, READER], ids=["somebody else", "read"])
def test_who_may_not_write(hub: LoopbackHub, api: HfApi, repo: str, token: str) -> None:
    other = HfApi(endpoint=hub.endpoint, token=token)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        add(other, repo, {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        other.create_repo("lab/new")
    assert list(hub.head(repo).files) == [".gitattributes"]


def test_metadata_of_a_card_are_checked_first(hub: LoopbackHub, api: HfApi, repo: str) -> None:
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        add(api, repo, {"README.md": b"---\n- a list\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        add(api, repo, {"README.md": b"# Nothing said\n"})
    add(api, repo, {"README.md": CARD})
    assert api.model_info(repo).card_data.license == "apache-2.0"


def test_files_come_back(api: HfApi, repo: str, transfer: str, hub: LoopbackHub) -> None:
    weights = os.urandom((2 << 20) + 1)
    files = {"weights.safetensors": weights, "folder/a.txt": b"a", "empty.bin": b""}
    made = add(api, repo, files)
    assert made.oid == hub.head(repo).oid
    for name, content in files.items():
        assert Path(hf_hub_download(repo, name)).read_bytes() == content
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    assert set(entries) == {*files, ".gitattributes", "folder"}
    large = entries["weights.safetensors"]
    assert large.lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert (large.xet_hash is not None) == (transfer == "xet")
    is_put = any(request.startswith("PUT") for request in hub.requests)
    assert is_put == (transfer == "lfs")
    # The second time it is there already.
    hub.requests.clear()
    add(api, repo, {"copy.safetensors": weights})
    assert not any(request.startswith("PUT") for request in hub.requests)
    directory = Path(snapshot_download(repo, revision=made.oid))
    assert directory.name == made.oid
    assert (directory / "folder/a.txt").read_bytes() == b"a"


def test_information_of_one_commit(api: HfApi, repo: str) -> None:
    first = add(api, repo, {"a.txt": b"a", "folder/b.txt": b"bb", "folder/deep/c.bin": b"c"})
    second = add(api, repo, {"a.txt": b"other"})
    info = api.model_info(repo, revision=first.oid[:9], files_metadata=True)
    assert info.sha == first.oid
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert (sizes["a.txt"], sizes["folder/b.txt"]) == (1, 2)
    assert api.model_info(repo).sha == second.oid
    paths = api.get_paths_info(repo, ["a.txt", "folder", "nothing"], revision=first.oid)
    assert [path.path for path in paths] == ["a.txt", "folder"]
    inside = api.list_repo_tree(repo, "folder", expand=True)
    assert [entry.path for entry in inside] == ["folder/b.txt", "folder/deep"]
    assert [commit.title for commit in api.list_repo_commits(repo)] == [
        "add",
        "add",
        "initial commit",
    ]
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="nothing")
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(repo, "nothing"))


def test_a_long_tree_comes_in_pages(api: HfApi, repo: str) -> None:
    add(api, repo, {f"{number:04}.txt": b"" for number in range(1100)})
    assert len(list(api.list_repo_tree(repo))) == 1101


def test_branches_and_tags(api: HfApi, repo: str, hub: LoopbackHub) -> None:
    first = add(api, repo, {"a.txt": b"a"})
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="next/one", revision=first.oid)
    second = add(api, repo, {"a.txt": b"b"}, revision="next/one")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    assert branches == {"main": first.oid, "next/one": second.oid}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first.oid)]
    assert Path(hf_hub_download(repo, "a.txt", revision="next/one")).read_bytes() == b"b"
    assert Path(hf_hub_download(repo, "a.txt", revision="v1")).read_bytes() == b"a"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repo, branch="next/one")
    api.create_branch(repo, branch="next/one", exist_ok=True)
    api.delete_branch(repo, branch="next/one")
    api.delete_tag(repo, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1")
    with pytest.raises(HfHubHTTPError, match="no branch"):
        add(api, repo, {"a.txt": b"c"}, revision=first.oid)
    assert set(hub.repos["model", repo].refs) == {"refs/heads/main"}


def test_a_commit_is_whole_or_not_at_all(api: HfApi, repo: str, hub: LoopbackHub) -> None:
    first = add(api, repo, {"a.txt": b"a", "old/b.txt": b"b", "old/c.txt": b"c"})
    # What is to be deleted is not there: nor is what was to be added then.
    operations = [CommitOperationAdd("new.txt", b"n"), CommitOperationDelete("nothing.txt")]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(repo, operations, commit_message="wrong")
    assert hub.head(repo).oid == first.oid
    operations = [CommitOperationDelete("old/"), CommitOperationCopy("a.txt", "copy.txt")]
    second = api.create_commit(repo, operations, commit_message="right", parent_commit=first.oid)
    assert set(hub.head(repo).files) == {".gitattributes", "a.txt", "copy.txt"}
    with pytest.raises(HfHubHTTPError, match="412"):
        add(api, repo, {"a.txt": b"z"}, parent_commit=first.oid)
    # What has not changed makes no commit.
    assert add(api, repo, {"a.txt": b"a"}).oid == second.oid == hub.head(repo).oid


def test_large_files_must_have_been_sent(api: HfApi, repo: str, hub: LoopbackHub) -> None:
    operation = CommitOperationAdd("a.safetensors", b"weights")
    operation._upload_mode, operation._should_ignore, operation._is_uploaded = "lfs", False, True
    with pytest.raises(HfHubHTTPError, match="has not been uploaded"):
        api.create_commit(repo, [operation], commit_message="a pointer to nothing")
    assert list(hub.head(repo).files) == [".gitattributes"]


def test_folders(api: HfApi, repo: str, tmp_path: Path, hub: LoopbackHub) -> None:
    folder = tmp_path / "folder"
    for name, text in {"a.txt": "a", "b.log": "b", ".gitignore": "*.log"}.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns="*")
    assert set(hub.head(repo).files) == {".gitattributes", ".gitignore", "a.txt"}
    api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=repo)
    api.delete_file("a.txt", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", ".gitignore", "c.txt"}


def test_discussions_and_pull_requests(hub: LoopbackHub, api: HfApi, repo: str) -> None:
    bob = HfApi(endpoint=hub.endpoint, token=BOB)
    made = bob.create_discussion(repo, "A question", description="Why?")
    api.comment_discussion(repo, made.num, "Because.")
    api.change_discussion_status(repo, made.num, "closed")
    details = api.get_discussion_details(repo, made.num)
    assert (details.title, details.status, details.author) == ("A question", "closed", "bob")
    events = [event.type for event in details.events]
    assert events == ["comment", "comment", "status-change"]
    # Who may not write may propose.
    proposed = add(bob, repo, {"a.txt": b"a", "a.safetensors": b"a"}, create_pr=True)
    assert (proposed.pr_num, proposed.pr_revision) == (2, "refs/pr/2")
    assert "a.txt" not in hub.head(repo).files
    content = Path(hf_hub_download(repo, "a.txt", revision="refs/pr/2")).read_bytes()
    assert content == b"a"
    add(api, repo, {"b.txt": b"b"}, revision="refs/pr/2")
    assert [one.num for one in api.get_repo_discussions(repo)] == [1, 2]
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request(repo, 2)
    api.merge_pull_request(repo, 2)
    assert {"a.txt", "b.txt", "a.safetensors"} <= set(hub.head(repo).files)
    assert api.create_pull_request(repo, "Another one").is_pull_request


def test_what_a_download_is_told(hub: LoopbackHub, api: HfApi, repo: str, transfer: str) -> None:
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url

    content = bytes(range(256)) * 8
    made = add(api, repo, {"a.bin": content, "a.txt": content.hex().encode()})
    found = get_hf_file_metadata(hf_hub_url(repo, "a.bin"), token=ADA)
    assert (found.commit_hash, found.size) == (made.oid, len(content))
    assert found.etag == hashlib.sha256(content).hexdigest()
    assert found.location.startswith(hub.storage)
    assert (found.xet_file_data is not None) == (transfer == "xet")
    small = get_hf_file_metadata(hf_hub_url(repo, "a.txt"), token=ADA)
    assert small.etag == hub.head(repo).files["a.txt"].oid
    ranges = {
        "bytes=10-19": slice(10, 20),
        "bytes=2000-": slice(2000, None),
        "bytes=-5": slice(-5, None),
    }
    for asked, part in ranges.items():
        answer = get_session().get(found.location, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, content[part])
    assert get_session().get(found.location, headers={"Range": "bytes=9999-"}).status_code == 416
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(repo, "nothing")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, "a.bin", revision="nothing")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ada/nothing", "a.bin")


def test_as_a_file_system(hub: LoopbackHub, api: HfApi, repo: str, transfer: str) -> None:
    files = HfFileSystem(endpoint=hub.endpoint, token=ADA, skip_instance_cache=True)
    content = bytes(range(256)) * 8
    with files.open(f"{repo}/data/a.bin", "wb") as file:
        file.write(content)
    assert [Path(path).name for path in files.ls(f"{repo}/data", detail=False)] == ["a.bin"]
    with files.open(f"{repo}/data/a.bin", "rb") as file:
        file.seek(100)
        assert file.read(50) == content[100:150]


def test_faults(hub: LoopbackHub, api: HfApi, repo: str) -> None:
    add(api, repo, {"a.txt": b"a" * 1000})
    # The client goes on where the body broke off, and tries an upload again.
    hub.faults.append(Fault("GET", "a.txt", cut=400))
    assert Path(hf_hub_download(repo, "a.txt")).read_bytes() == b"a" * 1000
    hub.faults.append(Fault("POST", "/preupload/"))
    add(api, repo, {"b.txt": b"b"})
    assert [fault.times for fault in hub.faults] == [0, 0]
