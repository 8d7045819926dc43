"""What may be done to a conversation, and that a saved one is a row that can be trained on and read back."""

from pathlib import Path

import pytest

from mlx_finetune.app.chat.conversation import Conversation, load_conversation, reply_turn, save_conversation
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.errors import DataError, RunError
from mlx_finetune.recipe.data import DataRecipe


def talk(system: str = "") -> Conversation:
    conversation = Conversation(system)
    conversation.add("Where?", "There.")
    conversation.add("When?", "Then.")
    return conversation


def test_messages_are_system_turns_and_question_in_order() -> None:
    assert talk("Be brief.").messages("Why?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "There."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Then."},
        {"role": "user", "content": "Why?"},
    ]
    assert Conversation().messages() == []


def test_taking_back_removes_the_last_question_with_its_reply() -> None:
    conversation = talk()
    assert conversation.take_back() == "When?"
    assert conversation.last_exchange() == ("Where?", "There.")
    assert conversation.take_back() == "Where?"
    assert conversation.take_back() is None
    assert conversation.last_exchange() is None


def test_reasoning_is_kept_apart_from_the_answer() -> None:
    assert reply_turn("<think>\nhm\n</think>\n\nYes.") == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "hm",
    }
    assert reply_turn("hm</think>Yes.")["reasoning_content"] == "hm"
    assert reply_turn("<think>\n\n</think>\n\nYes.") == {"role": "assistant", "content": "Yes."}
    assert reply_turn("Yes <think>") == {"role": "assistant", "content": "Yes <think>"}


def test_saved_conversations_are_rows_that_the_trainer_reads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "talks.jsonl"
    assert save_conversation(talk("Be brief."), path) == 1
    assert save_conversation(talk(), path) == 2
    data = DataRecipe.model_validate({"path": "new/talks.jsonl", "val_split": 0.0, "test_split": 0.0})
    rows = load_splits(data, base=tmp_path).train
    assert [[turn["role"] for turn in row.messages] for row in rows if isinstance(row, Messages)] == [
        ["system", "user", "assistant", "user", "assistant"],
        ["user", "assistant", "user", "assistant"],
    ]


def test_saving_after_a_line_without_an_end_starts_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_bytes(b'{"messages": []}')
    assert save_conversation(talk(), path) == 2


def test_a_conversation_read_back_is_the_same_and_the_last_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    save_conversation(Conversation("", talk().turns[:2]), path)
    save_conversation(talk("Be brief."), path)
    again = load_conversation(path)
    assert again.messages() == talk("Be brief.").messages()


def test_an_unanswered_question_at_the_end_is_left_out_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = '{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}'
    path.write_text(f'{{"messages":[{turns}]}}\n')
    assert load_conversation(path).last_exchange() == ("a", "b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n', "holds no row with `messages`"),
        ('{"messages": [{"role": "cook", "content": "a"}]}\n', ":1: `messages` turn 1 has the unknown role"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', ":1: no assistant turn"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}\n',
            ":1: a system turn in the middle",
        ),
        ("not json\n", "holds no row with `messages`"),
    ],
)
def test_what_cannot_be_continued_is_refused_with_its_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_conversation(path)
    assert says in caught.value.message


def test_nothing_to_save_no_file_and_no_place_to_write_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to save"):
        save_conversation(Conversation(), tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no such file"):
        load_conversation(tmp_path / "a.jsonl")
    with pytest.raises(RunError, match="cannot be written"):
        save_conversation(talk(), tmp_path)
