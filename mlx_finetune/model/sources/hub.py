"""Models on the Hugging Face hub, through huggingface_hub: its cache, its token, its addresses.

Only safetensors, tokenizer and configuration files at the top of a repository are fetched, never pickles and never
code, all of one commit. The hub gets ``timeout`` seconds for its first answer; a name lookup or a connection that hangs
counts too, which is why the question is asked in a thread.

Large files go on where an earlier run stopped and are compared with the sha256 the hub names. huggingface_hub 2 does
neither any more (it deletes a half file), so their bytes are fetched here into a part beside the blob. The price: one
HTTP connection instead of xet's several.
"""

import fcntl
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlx_finetune.durable import hash_file
from mlx_finetune.errors import MlxftError, ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.files.safetensors_check import check_weight_files
from mlx_finetune.rundir import folder_bytes

Report = Callable[[Phase], None]
T = TypeVar("T")

_WEIGHTS = "model*.safetensors"
_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")  # the model card names the licence
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_NOT_WANTED = ("pytorch_model*", "tf_model*", "flax_model*", "adapter*", "training_args*", "optimizer*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_POLL_SECONDS = 0.2
_CHECK = "check the connection; what still works says: mlxft doctor"
_PART = ".mlxft-part"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository that is wanted, its size in bytes, and its hash where it is a large file."""

    name: str
    num_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the hub says about a model at one commit."""

    hub_id: str
    revision: str
    commit: str
    license: str | None
    files: tuple[HubFile, ...]


class HubUnreachableError(ModelError):
    """The hub did not answer in time, or answered that it cannot now; another source may do."""


def is_hub_id(name: str) -> bool:
    """True for ``owner/name`` as the hub writes it."""
    return len(name) <= 96 and _HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def find_cached(hub_id: str, revision: str | None) -> tuple[Path, str] | None:
    """Folder and commit of a model that is complete in the hub's cache, without asking the hub; else None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    if not any((folder / name).exists() for name in _TOKENIZERS):
        return None
    try:
        check_weight_files(folder)
    except ModelError:
        return None
    return folder, folder.name


def ask_hub(hub_id: str, revision: str | None, *, timeout: float) -> HubModel:
    """Commit, licence and wanted files of a model.

    Raises ``HubUnreachableError`` after ``timeout`` seconds or in offline mode, ``ModelError`` where the hub refuses.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.utils import get_session

    if HF_HUB_OFFLINE:
        raise HubUnreachableError("the hub is not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    api = HfApi()
    get_session()  # imports the client now: on a busy machine that takes seconds, which are not the hub's
    question = in_thread(lambda: api.model_info(hub_id, revision=revision, timeout=timeout, files_metadata=True))
    try:
        info = question.result(timeout)
    except TimeoutError as error:
        raise HubUnreachableError(f"the hub gave no answer within {timeout:g} s", _CHECK) from error
    except errors.GatedRepoError as error:
        raise _needs_approval(hub_id) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{hub_id} has no revision {revision!r} on the hub", "leave revision out for the newest"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no model {hub_id!r} on the hub, or it is private",
            f"check the spelling; for a private model run: {login_command()}",
        ) from error
    except Exception as error:  # refused connections, broken answers, TLS: whatever the HTTP library raises
        raise HubUnreachableError(f"the hub cannot be reached ({why_unreachable(error)})", _CHECK) from error
    files = [
        HubFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None)
        for s in info.siblings or ()
        if _is_wanted(s.rfilename)
    ]
    if not any(fnmatch(file.name, _WEIGHTS) for file in files):
        raise _no_safetensors(hub_id, [s.rfilename for s in info.siblings or ()])
    assert info.sha is not None, "the hub names a commit for every model"
    license_name = getattr(info.card_data, "license", None) if info.card_data else None
    weights_last = sorted(files, key=lambda file: (fnmatch(file.name, _WEIGHTS), file.name))
    return HubModel(
        hub_id,
        revision or "main",
        info.sha,
        license_name if isinstance(license_name, str) else None,
        tuple(weights_last),
    )


def download(model: HubModel, *, cache: Path, report: Report) -> Path:
    """Fetch the files of ``model`` into the hub's cache and return the folder; half files go on where they stopped.

    Raises ``ModelError`` where the hub refuses a file and ``HubUnreachableError`` where the connection fails.
    """
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    repository = cache / f"models--{model.hub_id.replace('/', '--')}"

    def fetch_all() -> Path:
        path = repository
        for file in model.files:
            if file.sha256 is not None:
                _fetch_large(model, file, repository / "blobs")
            path = Path(hf_hub_download(model.hub_id, file.name, revision=model.commit))  # finds a large file's blob
        _remember_commit(model, repository / "refs")
        return path.parent

    total = sum(file.num_bytes for file in model.files)
    cached = total - missing_bytes(model) + sum(p.stat().st_size for p in (repository / "blobs").glob(f"*{_PART}"))
    before = folder_bytes(repository)
    disable_progress_bars()  # ours is drawn from Phase events
    try:
        future = in_thread(fetch_all)
        for _ in _until_done(future):
            done = min(total, cached + max(0, folder_bytes(repository) - before))
            report(Phase("download", detail=f"{model.hub_id} from the hub", done=done, total=total, unit="bytes"))
        return future.result()
    except errors.GatedRepoError as error:
        raise _needs_approval(model.hub_id) from error
    except errors.HfHubHTTPError as error:
        raise HubUnreachableError(f"the hub refused a file of {model.hub_id}", "try again in a while") from error
    except (MlxftError, KeyboardInterrupt):  # ours, and a signal that came meanwhile
        raise
    except Exception as error:  # whatever the HTTP library raises
        raise HubUnreachableError(
            f"the download of {model.hub_id} broke off ({type(error).__name__})",
            "run the command again; it goes on there",
        ) from error


def _remember_commit(model: HubModel, refs: Path) -> None:
    """Note which commit the branch or tag stands for, as the hub's cache does, so that it is found offline."""
    if model.revision != model.commit and ".." not in model.revision:
        note = refs / model.revision
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{note.name}{_PART}")
        part.write_text(model.commit, "utf-8")
        part.replace(note)


def _fetch_large(model: HubModel, file: HubFile, blobs: Path) -> None:
    """Put the content of ``file`` into ``blobs`` under its sha256, going on with a part that is there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    assert file.sha256 is not None
    blob = blobs / file.sha256
    if blob.exists() or re.fullmatch(r"[0-9a-f]{64}", file.sha256) is None:
        return
    blobs.mkdir(parents=True, exist_ok=True)
    part_path = blobs / f"{file.sha256}{_PART}"
    with part_path.open("ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process fetches it; huggingface_hub then takes a file of its own
            return
        done = part_path.stat().st_size
        if done < file.num_bytes:
            address = hf_hub_url(model.hub_id, file.name, revision=model.commit)
            location = get_hf_file_metadata(address).location
            headers = build_hf_headers()
            if urlsplit(location).netloc != urlsplit(address).netloc:
                headers.pop("authorization", None)  # the token is for the hub, not for where it stores its files
            part.seek(0, os.SEEK_END)
            http_get(location, part, resume_size=done, headers=headers, expected_size=file.num_bytes)
            part.flush()
        found = hash_file(part_path)
        if found != file.sha256:
            part_path.unlink()
            raise ModelError(
                f"{file.name} of {model.hub_id} arrived damaged: sha256 {found}, the hub says {file.sha256}",
                "run the command again",
            )
        part_path.replace(blob)


def missing_bytes(model: HubModel) -> int:
    """Bytes of ``model`` that are not in the hub's cache yet."""
    from huggingface_hub import try_to_load_from_cache

    def is_cached(file: HubFile) -> bool:
        return isinstance(try_to_load_from_cache(model.hub_id, file.name, revision=model.commit), str)

    return sum(file.num_bytes for file in model.files if not is_cached(file))


def _is_wanted(name: str) -> bool:
    if "/" in name or "\\" in name or any(fnmatch(name, pattern) for pattern in _NOT_WANTED):
        return False
    return fnmatch(name, _WEIGHTS) or any(fnmatch(name, pattern) for pattern in _OTHERS)


def why_unreachable(error: Exception) -> str:
    """The reason in words that a person may know; the library's own name for it where there are none."""
    text = str(error)
    for pattern, said in (
        (r"Name or service not known|nodename nor servname|name resolution|getaddrinfo", "its name is not known here"),
        (r"CERTIFICATE_VERIFY_FAILED|certificate verify", "its certificate is not trusted here"),
        (r"Connection refused", "the connection is refused"),
        (r"unreachable|No route", "there is no network"),
        (r"timed out|Timeout", "it does not answer"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return said
    return type(error).__name__


def login_command() -> str:
    """What to type for a token: ``hf`` is on PATH where the environment is, which the launcher's is not."""
    hf = "hf" if shutil.which("hf") else shlex.quote(str(Path(sys.executable).with_name("hf")))
    return f"{hf} auth login"


def _needs_approval(hub_id: str) -> ModelError:
    return ModelError(
        f"{hub_id} asks for its licence to be accepted first",
        f"accept it on the model's page of the hub ({hub_id}), then run: {login_command()}",
    )


def _no_safetensors(hub_id: str, names: Sequence[str]) -> ModelError:
    if any(name.endswith(".gguf") for name in names):
        return ModelError(f"{hub_id} holds GGUF files only", "download one of them and give its path as the model")
    return ModelError(
        f"{hub_id} has no safetensors weights; other formats can run code and are never opened",
        "set revision to one with safetensors (refs/pr/N of the conversion bot), or look for a converted copy",
    )


def in_thread(work: Callable[[], T]) -> "Future[T]":
    """Run ``work`` beside us; a thread that hangs does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return future


def _until_done(future: "Future[T]") -> Iterator[None]:
    """Yield every ``_POLL_SECONDS`` while ``future`` runs, and once at its end."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    while not done.wait(_POLL_SECONDS):
        yield
    yield
