"""The golden table of tests/golden/templates/masks.txt: what is learned from six conversations through every template.

Write it anew with ``PYTHONPATH=.:tests python tests/golden_templates.py`` and review the difference; it refuses while
the file has changes that are not committed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from families import family_tokenizer

from mlx_finetune.dataset.formats import Messages
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.recipe.data import DataRecipe

GOLDEN = Path(__file__).parent / "golden" / "templates" / "masks.txt"
TEMPLATES = Path(__file__).parent.parent.parent / "shared" / "models" / "templates"

NUMBER = {"type": "integer", "description": "A number."}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]},
    },
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


def user(content: str) -> Mapping[str, object]:
    return {"role": "user", "content": content}


def assistant(content: str, **fields: object) -> Mapping[str, object]:
    return {"role": "assistant", "content": content, **fields}


Turns = tuple[Mapping[str, object], ...]
CONVERSATIONS: dict[str, tuple[Turns, Turns | None]] = {
    "one turn": ((user("Hi there"), assistant("Hello.")), None),
    "system": (({"role": "system", "content": "Be brief."}, user("Hi there"), assistant("Hello.")), None),
    "two turns": ((user("Hi"), assistant("Hello."), user("Bye"), assistant("See you.")), None),
    "reasoning": ((user("Hi"), assistant("Hello.", reasoning_content="They greet.")), None),
    "tools unused": ((user("Hi"), assistant("Hello.")), (TOOL,)),
    "tools used": (
        (user("1+2?"), assistant("", tool_calls=(CALL,)), {"role": "tool", "content": "3"}, assistant("It is 3.")),
        (TOOL,),
    ),
}
ARGUMENTS = {
    "google-gemma-4-31B-it": [{"enable_thinking": True}],
    "Qwen-Qwen3-0.6B": [{"enable_thinking": False}],
    "Qwen3.5-4B": [{"enable_thinking": False}],
}


def table(folder: Path, templates: Path) -> Iterator[str]:
    """One line for each template, arguments and conversation: the method, then what each sequence learns."""
    for template in sorted(templates.glob("*.jinja")):
        tokenizer = family_tokenizer(folder, template)
        stops = sorted(token for token, id_ in tokenizer.control_tokens.items() if id_ in tokenizer.stop_token_ids)
        yield f"{template.stem}: generation stops at {' '.join(stops)}"
        for arguments in [{}, *ARGUMENTS.get(template.stem, [])]:
            data = DataRecipe.model_validate({"path": "-", "template_arguments": arguments})
            suffix = "".join(f", {key} = {str(value).lower()}" for key, value in arguments.items())
            for name, (messages, tools) in CONVERSATIONS.items():
                example = Messages(messages, tools, "rows.jsonl", 1)
                split = tokenize([example], tokenizer, data, task="sft")
                if not split.rows:
                    yield f"  {name}{suffix}: refused: {split.report.problems[0].message}"
                    continue
                learned = " | ".join(repr(tokenizer.decode(row.ids[row.loss_mask].tolist())) for row in split.rows)
                notes = "".join(f" ({problem.message})" for problem in split.report.problems)
                yield f"  {name}{suffix}: {split.report.method}: {learned}{notes}"


if __name__ == "__main__":
    changed = subprocess.run(["git", "status", "--porcelain", GOLDEN], capture_output=True, text=True, check=True)
    if changed.stdout.strip() and GOLDEN.exists():
        sys.exit(f"{GOLDEN} has changes that are not committed")
    with tempfile.TemporaryDirectory() as made:
        GOLDEN.write_text("\n".join(table(Path(made), TEMPLATES)) + "\n", encoding="utf-8")
