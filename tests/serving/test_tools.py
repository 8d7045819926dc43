"""A template that shows tools gets them; one that ignores them is not handed any in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from answering_runs import write_run

from mlx_finetune.app.serve.models import open_rack
from mlx_finetune.app.serve.prepare import Preparer
from mlx_finetune.app.serve.requests import ChatRequest
from mlx_finetune.loopback.refusals import RefusedError
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

SHOWS_TOOLS = (
    "{% if tools %}{% for tool in tools %}tool {{ tool.function.name }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tools_are_in_the_prompt_of_a_template_that_shows_them_and_refused_by_another(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    base = tiny_model("llama")
    write_run(tmp_path / "adapters" / "keeper", base)
    (tmp_path / "tools.jinja").write_text(SHOWS_TOOLS)
    _, (served, _) = open_rack(["keeper"], base=tmp_path, report=lambda _: None, max_rows=1, change=lambda chat: chat)
    shows = replace(served, tokenizer=load_tokenizer(base, chat_template=str(tmp_path / "tools.jinja")))
    tool = {"type": "function", "function": {"name": "look"}}
    asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}], "tools": [tool]})
    (request,) = Preparer().chat(shows, asked)
    assert "tool look" in shows.tokenizer.decode(request.prompt_ids)
    with pytest.raises(RefusedError, match="chat template of keeper ignores tools"):
        Preparer().chat(served, asked)
