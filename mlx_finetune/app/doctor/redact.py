"""Takes out of a text what others must not see: who its writer is, secrets, and what a model is trained on.

Three nets. What is known here (home folder, user, host, values of secret variables, prompts and answers of a run) goes
wherever it stands; what looks like a secret goes by its shape; a sentence that shares 31 characters with the training
rows goes as a whole, often with 16. Lines of a log pass only if they are of a known kind, without what they quote.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_finetune.app.text import printable

WINDOW = 16

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY", re.IGNORECASE)
_SHORTEST_SECRET = 6
_SHORTEST_TEXT = 4
_IMPERSONAL = {"root", "admin", "user", "runner", "localhost", "nobody"}
_LONG_LINE = 400

#: Keys of a recipe that hold prompts and names of columns, as they are given on a command line.
_TEXT_KEYS = r"(?:eval|chat|serve|data\.columns|data\.template_arguments)[\w.]*="
#: What looks like a secret or an address, whoever it belongs to; what is put in its place; what it is called.
_SHAPES: tuple[tuple[str, str, str], ...] = (
    (rf"""(--set[ =])'({_TEXT_KEYS})(?:[^']|'"'"')*'""", r"\1\2[text]", "text of the recipe"),
    (rf"(--set[ =]{_TEXT_KEYS})(?!\[text\])\S+", r"\1[text]", "text of the recipe"),
    (r"\bhf_[A-Za-z0-9_]{8,}", "[token]", "token"),
    (r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{12,}", "[token]", "token"),
    (
        r"\b(?:gh[pousr]|github_pat|glpat|xox[abprs]|AKIA|ASIA|wandb_v\d|api_org)[-_]?[A-Za-z0-9_-]{12,}",
        "[token]",
        "token",
    ),
    (r"\bAIza[0-9A-Za-z_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----", "[token]", "token"),
    (r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)?", "[token]", "token"),
    (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", r"\1 [token]", "token"),
    (
        r"(?i)\b([a-z_]*(?:token|secret|password|passwd|api[_-]?key)['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&\[]{4,}",
        r"\1[secret]",
        "secret",
    ),
    (r"(?<=://)[^\s/@]+(?=@)", "[login]", "login"),
    (r"(?<![0-9a-fA-F])[0-9a-f]{40}(?![0-9a-fA-F])", "[40 digits]", "key"),  # of wandb; a commit looks the same
    (r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+", "[e-mail]", "e-mail"),
    (r"(?<![\w.])(?!127\.0\.0\.1\b)(?:\d{1,3}\.){3}\d{1,3}(?![\w.])", "[address]", "address"),
    (r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b", "[id]", "id"),
    (r"(?<=/Volumes/)[^/:'\"\n]+", "[disk]", "disk"),
    (r"(?<=/Users/)(?!Shared\b)[^/\s:'\"]+|(?<=/home/)[^/\s:'\"]+", "[user]", "user"),
)

#: How our own sentences and those of MLX begin.
_SENTENCE = re.compile(
    r"(?:rank \d+: )?(?:error: |hint: |warning: |setup: )|SIG[A-Z]+: |stopping |leaving at once|it goes on from step"
    r"|the training process |macOS ended |the GPU |more buffers were |\[METAL\]|\[metal::|libc\+\+abi: "
    r"|Traceback \(most recent call last\)|During handling of |The above exception |Fatal Python error|Abort trap"
    r"|Segmentation fault|Killed|(?:note|restarted|failed): |step \d+: |training .* from step \d+ to "
    r"|finished after step |stopped after step "
)
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[+-]\d{4})? ")
_FRAME = re.compile(r"""\s+File "[^"]*", line \d+(?:, in .*)?$""")
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Killed)(?::|$)")
_WARNING = re.compile(r"\S+\.py:\d+: \w+Warning: ")
#: Texts of Metal and of the system that tell more than their class, and hold nothing of ours.
_HARMLESS = re.compile(
    r"\[METAL\]|\[metal::\w+\]|\[malloc\w*\]|kIOGPUCommandBuffer|allocate \d+ bytes|No space left on device"
)
_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|\u2018[^\u2019\n]*\u2019|\u201c[^\u201d\n]*\u201d""")


@dataclass(frozen=True, slots=True)
class Person:
    """Who must not be recognised: names of the user and of the machine, as the system has them."""

    home: str
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """What a run must not give away: texts as they are, and pieces of its rows (``windows``)."""

    texts: tuple[str, ...] = ()
    windows: frozenset[str] = frozenset()


@dataclass(slots=True)
class Redactor:
    """Takes things out and counts what it took, by kind."""

    rules: list[tuple[re.Pattern[str], str, str]]
    training: Training
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def text(self, text: str) -> str:
        """``text`` without people, secrets, prompts and answers, and characters that a terminal obeys."""
        clean = printable(text)
        for known in self.training.texts:
            if known in clean:
                self._count("text of the run", clean.count(known))
                clean = clean.replace(known, "[text]")
        for pattern, by, kind in self.rules:
            clean = pattern.sub(self._taking(by, kind), clean)
        return clean

    def sentence(self, text: str) -> str:
        """``text`` without what it quotes either; nothing but a mark where it repeats a training row."""
        if _HARMLESS.search(text):
            return self.text(text)
        if self._repeats_a_row(text):
            self._count("sentence with training text", 1)
            return "[left out: it repeats a training row]"
        return self.text(_QUOTED.sub(self._taking("[quoted]", "quoted text"), text))

    def log(self, lines: Iterable[str]) -> list[str]:
        """Lines of a log that are of a known kind; runs of others become one line that counts them."""
        shown: list[str] = []
        hidden, is_code = 0, False
        for line in lines:
            kept = self._log_line(line[:_LONG_LINE], is_code=is_code)
            is_code = _FRAME.match(line) is not None
            if kept is None:
                hidden += bool(line.strip())
                continue
            if hidden:
                shown.append(self._hidden(hidden))
                hidden = 0
            shown.append(kept)
        return [*shown, self._hidden(hidden)] if hidden else shown

    def _log_line(self, line: str, *, is_code: bool) -> str | None:
        if _FRAME.match(line):
            return self.text(line)
        stamp = match[0] if (match := _STAMP.match(line)) else ""
        said = line.removeprefix(stamp)
        is_known = _SENTENCE.match(said) or _EXCEPTION.match(said) or _WARNING.match(said)
        if is_known or (is_code and line.startswith("    ")):  # below a frame stands code, of a library or ours
            return stamp + self.sentence(said)
        return None

    def _repeats_a_row(self, text: str) -> bool:
        squeezed = squeeze(text)
        ends = range(len(squeezed) - WINDOW + 1)
        return bool(self.training.windows) and any(squeezed[i : i + WINDOW] in self.training.windows for i in ends)

    def _hidden(self, count: int) -> str:
        self._count("line of the log", count)
        return f"[{count} line{'s' if count > 1 else ''} left out: they may hold training text]"

    def _count(self, kind: str, number: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def _taking(self, by: str, kind: str) -> Callable[[re.Match[str]], str]:
        def take(match: re.Match[str]) -> str:
            self._count(kind, 1)
            return match.expand(by)

        return take


def make_redactor(person: Person, variables: Mapping[str, str], training: Training) -> Redactor:
    """A redactor that knows ``person``, the secrets among ``variables``, and the texts of a training."""
    rules: list[tuple[re.Pattern[str], str, str]] = []
    secrets = {value for name, value in variables.items() if _SECRET_NAME.search(name)}
    secrets = {value for value in secrets if len(value) >= _SHORTEST_SECRET and not value.startswith(("/", "~"))}
    if secrets:
        rules.append((re.compile(_any_of(secrets)), "[secret]", "secret"))
    if len(person.home) > 1:
        rules.append((re.compile(re.escape(person.home.rstrip("/")) + r"(?![\w.-])"), "~", "home folder"))
    rules += [(re.compile(pattern), by, kind) for pattern, by, kind in _SHAPES]
    for names, kind in ((person.hosts, "host"), (person.users, "user")):
        wanted = {name for name in names if len(name) > 1 and name.casefold() not in _IMPERSONAL}
        if wanted:
            words = rf"(?<![^\W_])(?:{_any_of(wanted)})(?![^\W_])"
            rules.append((re.compile(words, re.IGNORECASE), f"[{kind}]", kind))
    pieces = {piece for text in training.texts for piece in _pieces(text)}
    return Redactor(rules, Training(tuple(_longest_first(pieces)), training.windows))


def windows_of(text: str) -> Iterator[str]:
    """Pieces of ``text``, one after the other, such that 31 of its characters in a row hold one of them whole."""
    squeezed = squeeze(text)
    return (squeezed[i : i + WINDOW] for i in range(0, len(squeezed) - WINDOW + 1, WINDOW))


def squeeze(text: str) -> str:
    """``text`` in small letters on one line, so that a message that breaks or shortens it is still recognised."""
    return " ".join(text.lower().split())


def _pieces(text: str) -> Iterator[str]:
    """A text, each of its lines, and both as they look inside quotes: a message may repeat any of them."""
    for piece in (text, *text.splitlines()):
        stripped = printable(piece).strip()
        if len(stripped) >= _SHORTEST_TEXT:
            yield stripped
            yield stripped.encode("unicode_escape").decode("ascii")


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in _longest_first(texts))


def _longest_first(texts: Iterable[str]) -> Sequence[str]:
    return sorted(texts, key=lambda text: (-len(text), text))
