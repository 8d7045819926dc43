"""Small questions to the hub, each with an answer in seconds or none: is it there, is a model open to us.

Nothing is fetched. A token that is kept here is sent to the hub only, to learn whether it is still accepted.
"""

import os
from pathlib import Path
from typing import Literal

from mlx_finetune.model.sources.hub import in_thread, why_unreachable

#: Whether a model may be fetched: by anyone or with the token that is kept here, only after its licence was accepted,
#: or not at all; "unknown" where the hub gave no answer.
Access = Literal["open", "gated", "missing", "unknown"]


def has_token() -> bool:
    """True where a token of the hub is kept here or in the environment. It is not looked at, refreshed or sent."""
    from huggingface_hub import constants

    if any(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")):
        return True
    try:
        return bool(Path(constants.HF_TOKEN_PATH).read_text("utf-8", "replace").strip())
    except OSError:
        return False


def page_of(hub_id: str) -> str:
    """Address of a model's page on the hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{hub_id}"


def ask_reachable(*, timeout: float) -> tuple[str | None, bool]:
    """Why the hub cannot be reached ("" where it can, None where it is not to be asked), and whether it refuses the
    token that is kept here.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.utils import build_hf_headers, get_session

    if HF_HUB_OFFLINE:
        return None, False
    session = get_session()  # imports the client now, which on a busy machine takes seconds that are not the hub's
    is_known = has_token()

    def ask() -> bool:
        if not is_known:
            session.head(ENDPOINT, timeout=timeout)
            return False
        answer = session.get(f"{ENDPOINT}/api/whoami-v2", headers=build_hf_headers(), timeout=timeout)
        return answer.status_code == 401

    question = in_thread(ask)
    try:
        return "", question.result(timeout)
    except TimeoutError:
        return f"no answer within {timeout:g} s", False
    except Exception as error:  # whatever the HTTP library raises
        return why_unreachable(error), False


def ask_access(hub_id: str, *, timeout: float) -> Access:
    """Whether ``hub_id`` may be fetched from here, in ``timeout`` seconds; nothing of it is."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import get_session

    get_session()
    question = in_thread(lambda: HfApi().auth_check(hub_id))
    try:
        question.result(timeout)
    except errors.GatedRepoError:
        return "gated"
    except errors.RepositoryNotFoundError:
        return "missing"
    except Exception:  # no answer in time, or whatever the HTTP library raises
        return "unknown"
    return "open"
