"""What a template begins with is read once, and the answers are those of prompts that were read whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_run

from mlx_finetune.app.generate import question
from mlx_finetune.app.open import open_name
from mlx_finetune.app.serve.models import open_rack
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.model.answers.batches import BatchDecoder, Request
from mlx_finetune.model.answers.generate import generate_tokens
from mlx_finetune.model.answers.sampling import Sampling

TEXTS = ["Hi", "in the user of you", "a", "say the other thing " * 9, "in the user of us"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("beginning")
    write_run(folder / "adapters" / "keeper", tiny_model("llama"))
    return folder


def test_answers_behind_a_beginning_are_those_of_whole_prompts(place: Path) -> None:
    rack, (served, base) = open_rack(
        ["keeper"], base=place, report=lambda _: None, max_rows=3, change=lambda chat: chat
    )
    model = rack.put_on("keeper")
    assert served.tokenizer.decode(served.beginning) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert base.beginning != served.beginning
    decoder = BatchDecoder(model, served.tokenizer, max_rows=3, beginning=served.beginning)
    sampling = Sampling(temperature=0, max_tokens=12)
    prompts = [render_prompt(question(text, served.chat), served.tokenizer, served.data) for text in TEXTS]
    prompts += [prompts[0][3:], list(served.beginning), [*served.beginning, 80]]  # begin otherwise, or are no longer
    for _ in range(2):
        numbers = {decoder.add(Request(ids, sampling)): ids for ids in prompts}
        said: dict[int, list[int]] = {number: [] for number in numbers}
        while len(decoder):
            for number, piece in decoder.step():
                assert piece.token_id is not None
                said[number].append(piece.token_id)
        for number, ids in numbers.items():
            alone = [piece.token_id for piece in generate_tokens(model, served.tokenizer, ids, sampling)]
            assert said[number] == alone


def test_no_word_of_a_client_is_in_a_beginning(place: Path) -> None:
    opened = open_name("keeper", base=place, report=lambda _: None)
    _, (served, _) = open_rack(["keeper"], base=place, report=lambda _: None, max_rows=1, change=lambda chat: chat)
    for text in TEXTS:
        ids = render_prompt(question(text, opened.chat), opened.tokenizer, opened.data)
        assert tuple(ids[: len(served.beginning)]) == served.beginning
