import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.model.sources import hub_access


@pytest.fixture(name="no_token")
def no_token_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token; the file where one would be."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path / "token"


class Session:
    """Answers as the hub's client does, or fails as it does."""

    def __init__(self, answer: Callable[[], int]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def head(self, address: str, *, timeout: float) -> None:
        self.asked.append(address)
        self.answer()

    def get(self, address: str, *, headers: dict[str, str], timeout: float) -> "Session":
        self.asked.append(address)
        assert "authorization" in headers
        self.status_code = self.answer()
        return self


def with_session(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], int]) -> Session:
    session = Session(answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    return session


def failing(error: Exception) -> Callable[[], int]:
    def fail() -> int:
        raise error

    return fail


def test_a_token_is_found_in_the_environment_and_in_its_file(monkeypatch: pytest.MonkeyPatch, no_token: Path):
    assert not hub_access.has_token()
    no_token.write_text(" \n")
    assert not hub_access.has_token()
    no_token.write_text("hf_abc\n")
    assert hub_access.has_token()
    no_token.unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert hub_access.has_token()


def test_offline_mode_asks_nothing():
    assert hub_access.ask_reachable(timeout=1) == (None, False)


def test_any_answer_is_an_answer_and_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, no_token: Path):
    session = with_session(monkeypatch, lambda: 500)
    assert hub_access.ask_reachable(timeout=1) == ("", False)
    assert session.asked == [hub_access.page_of("")[:-1]]


@pytest.mark.parametrize(("status", "is_refused"), [(200, False), (401, True), (503, False)])
def test_a_token_is_refused_only_where_the_hub_says_so(
    monkeypatch: pytest.MonkeyPatch, no_token: Path, status: int, is_refused: bool
):
    no_token.write_text("hf_abcdefghijklmnop")
    session = with_session(monkeypatch, lambda: status)
    assert hub_access.ask_reachable(timeout=1) == ("", is_refused)
    assert session.asked[0].endswith("/api/whoami-v2")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError("[Errno -2] Name or service not known"), "its name is not known here"),
        (OSError("[Errno 8] nodename nor servname provided, or not known"), "its name is not known here"),
        (ssl.SSLError("CERTIFICATE_VERIFY_FAILED: unable to get local issuer"), "its certificate is not trusted here"),
        (OSError("[Errno 111] Connection refused"), "the connection is refused"),
        (OSError("[Errno 101] Network is unreachable"), "there is no network"),
        (OSError("The read operation timed out"), "it does not answer"),
        (ValueError("something else"), "ValueError"),
    ],
)
def test_why_the_hub_is_out_of_reach_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, no_token: Path, error: Exception, why: str
):
    with_session(monkeypatch, failing(error))
    assert hub_access.ask_reachable(timeout=1) == (why, False)


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, no_token: Path):
    def hang() -> int:
        time.sleep(30)
        return 200

    with_session(monkeypatch, hang)
    assert hub_access.ask_reachable(timeout=0.05) == ("no answer within 0.05 s", False)


@pytest.mark.parametrize(
    ("error", "access"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "missing"),
        ("LocalEntryNotFoundError", "unknown"),
        ("", "open"),
    ],
)
def test_access_to_a_model_is_what_the_hub_says(monkeypatch: pytest.MonkeyPatch, error: str, access: str):
    from huggingface_hub import errors

    def check(self: object, hub_id: str) -> None:
        assert hub_id == "a/b"
        if error:
            kind = getattr(errors, error)
            raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", check)
    assert hub_access.ask_access("a/b", timeout=1) == access
