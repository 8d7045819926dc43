"""Rows to examples, and the format as a claim about a whole file."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import no_problem

from mlx_finetune.dataset.formats import (
    Instruction,
    Labelled,
    Messages,
    Preference,
    Text,
    detect_format,
    example_of,
    to_example,
)
from mlx_finetune.dataset.inspect import inspect_example
from mlx_finetune.dataset.kinds import formats_for
from mlx_finetune.dataset.layouts import FIELDS, FORMATS, KNOWN_COLUMNS, Columns, find_layout
from mlx_finetune.dataset.problems import RowError
from mlx_finetune.dataset.read import Row, read_rows
from mlx_finetune.dataset.split import content_key, content_of
from mlx_finetune.dataset.unknown import unknown_layout

Shared = Callable[..., Path]
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def row(fields: Mapping[str, object], line: int = 1) -> Row:
    return Row(fields, "a.jsonl", line)


def example(fields: Mapping[str, object], columns: Columns | None = None) -> object:
    return to_example(row(fields), "auto", columns)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "t"}, Text("t", "a.jsonl", 1)),
        ({"messages": [USER, ASSISTANT]}, Messages((USER, ASSISTANT), None, "a.jsonl", 1)),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            Messages(({"role": "system", "content": "s"}, USER, ASSISTANT), None, "a.jsonl", 1),
        ),
        ({"instruction": "i", "input": "x", "output": "o"}, Instruction("i", "x", "o", "a.jsonl", 1)),
        ({"instruction": "i", "output": "o"}, Instruction("i", "", "o", "a.jsonl", 1)),
        (
            {"instruction": "i", "context": "x", "response": "o", "category": "c"},
            Instruction("i", "x", "o", "a.jsonl", 1),
        ),
        ({"prompt": "p", "completion": "c"}, Instruction("p", "", "c", "a.jsonl", 1)),
        ({"prompt": "p", "answer": "c"}, Instruction("p", "", "c", "a.jsonl", 1)),
        ({"question": "p", "answer": "c"}, Instruction("p", "", "c", "a.jsonl", 1)),
        ({"question": "p", "response": "c"}, Instruction("p", "", "c", "a.jsonl", 1)),
        ({"story": ["A.", "B."], "question": "p", "label": "c"}, Instruction("p", "A.\nB.", "c", "a.jsonl", 1)),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Messages((USER, ASSISTANT), None, "a.jsonl", 1)),
        ({"sentence": "t", "label": 1}, Labelled("t", 1, "a.jsonl", 1)),
        ({"text": "t", "category": "c"}, Labelled("t", "c", "a.jsonl", 1)),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            Preference((USER,), (ASSISTANT,), ({"role": "assistant", "content": "b"},), None, "a.jsonl", 1),
        ),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]},
            Preference((USER,), (ASSISTANT,), ({"role": "assistant", "content": "b"},), None, "a.jsonl", 1),
        ),
        (
            {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]},
            Preference((USER,), (ASSISTANT,), ({"role": "assistant", "content": "b"},), None, "a.jsonl", 1),
        ),
        ({"messages": [USER, ASSISTANT], "label": False}, Preference((USER,), None, (ASSISTANT,), None, "a.jsonl", 1)),
        (
            {"prompt": "q", "completion": "a", "label": True},
            Preference((USER,), (ASSISTANT,), None, None, "a.jsonl", 1),
        ),
    ],
)
def test_a_layout_is_recognised_by_its_columns(fields: Mapping[str, object], expected: object) -> None:
    assert example(fields) == expected


SYSTEM = {"role": "system", "content": "s"}
EARLIER = ({"role": "user", "content": "h"}, {"role": "assistant", "content": "i"})


@pytest.mark.parametrize(
    ("fields", "common", "prompt"),
    [
        ({"prompt": "q", "system": "s"}, (USER,), (SYSTEM, USER)),
        ({"prompt": "q", "system": "s"}, (SYSTEM, USER), (SYSTEM, USER)),
        ({"prompt": "q"}, (SYSTEM, USER), (SYSTEM, USER)),
        ({"prompt": [SYSTEM, USER]}, (USER,), (SYSTEM, USER)),
        ({"prompt": "q"}, (*EARLIER, USER), (*EARLIER, USER)),
        ({"prompt": [*EARLIER]}, (USER,), (*EARLIER, USER)),
        ({"system": "s"}, (USER,), (SYSTEM, USER)),
    ],
)
def test_a_question_that_a_pair_repeats_in_its_answers_is_asked_once(
    fields: Mapping[str, object], common: tuple[Mapping[str, str], ...], prompt: tuple[Mapping[str, str], ...]
) -> None:
    other = {"role": "assistant", "content": "b"}
    found = example({**fields, "chosen": [*common, ASSISTANT], "rejected": [*common, other]})
    assert found == Preference(prompt, (ASSISTANT,), (other,), None, "a.jsonl", 1)


def test_alpaca_rows_with_a_system_text_or_earlier_turns_become_conversations() -> None:
    found = example({"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]})
    assert found == Messages(
        (
            {"role": "system", "content": "s"},
            USER,
            ASSISTANT,
            {"role": "user", "content": "i\nx"},
            {"role": "assistant", "content": "o"},
        ),
        None,
        "a.jsonl",
        1,
    )


def test_columns_map_our_names_to_the_files() -> None:
    columns = {"prompt": "Customer", "completion": "Agent"}
    assert example({"Customer": "p", "Agent": "c", "Id": 3}, columns) == Instruction("p", "", "c", "a.jsonl", 1)
    dolly = {"instruction": "request", "input": "background", "output": "reply"}
    assert example({"request": "i", "background": "x", "reply": "o"}, dolly) == Instruction("i", "x", "o", "a.jsonl", 1)


def test_a_mapping_decides_between_layouts() -> None:
    fields = {"instruction": "i", "input": "", "output": "o", "text": "whole", "prompt": "p"}
    assert example(fields) == Instruction("i", "", "o", "a.jsonl", 1)
    assert example(fields, {"text": "text"}) == Text("whole", "a.jsonl", 1)
    assert example(fields, {"prompt": "prompt"}) == Instruction("p", "", "o", "a.jsonl", 1)


def test_rows_for_other_tasks_can_be_learned_from_as_their_hint_says() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    talk = {"conversations": [USER], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    chosen = {"prompt": "prompt", "completion": "chosen"}
    assert example(pair, chosen) == Instruction("q", "", "a", "a.jsonl", 1)
    assert example(talk, chosen | {"prompt": "conversations"}) == Messages((USER, ASSISTANT), None, "a.jsonl", 1)
    marked = row({"messages": [USER, ASSISTANT], "label": False})
    assert to_example(marked, "messages") == Messages((USER, ASSISTANT), None, "a.jsonl", 1)
    labelled = {"sentence": "t", "label": "good"}
    columns = {"prompt": "sentence", "completion": "label"}
    assert example(labelled, columns) == Instruction("t", "", "good", "a.jsonl", 1)
    assert to_example(row({"text": "t", "label": 1}), "text") == Text("t", "a.jsonl", 1)


def test_a_mapped_column_that_is_not_there_is_named() -> None:
    with pytest.raises(
        RowError, match=r'a\.jsonl:1: \[data\] columns maps output to "reply", but the row has `request`'
    ):
        example({"request": "i"}, {"instruction": "request", "output": "reply"})


def test_files_whose_columns_differ_are_read_by_a_list_of_names() -> None:
    columns = {"prompt": "talk", "completion": ("summary", "summary1")}
    assert example({"talk": "t", "summary": "s"}, columns) == Instruction("t", "", "s", "a.jsonl", 1)
    assert example({"talk": "t", "summary1": "s1", "summary2": "s2"}, columns) == Instruction(
        "t", "", "s1", "a.jsonl", 1
    )
    with pytest.raises(RowError, match='maps completion to "summary" or "summary1", but'):
        example({"talk": "t", "other": "o"}, columns)
    problem = unknown_layout(row({"talk": "t", "summary1": "s", "summary2": "s"}), {"completion": "summary"}, "auto")
    assert (
        problem.hint == 'did you mean "summary1"? Where files differ, name both: completion = ["summary", "summary1"]'
    )


@pytest.mark.parametrize("written", ["Question", "question", "QUESTION"])
def test_columns_may_be_written_in_another_case_than_the_row_has(written: str) -> None:
    columns = {"prompt": written, "completion": "Antwort"}
    assert example({"question": "p", "Antwort": "c"}, columns) == Instruction("p", "", "c", "a.jsonl", 1)


def test_of_two_columns_that_differ_in_case_the_one_that_is_written_counts() -> None:
    fields = {"Q": "big", "q": "small", "a": "c"}
    assert example(fields, {"prompt": "q", "completion": "a"}) == Instruction("small", "", "c", "a.jsonl", 1)
    with pytest.raises(RowError, match="maps prompt to"):
        example({"Qu": "1", "qU": "2", "a": "c"}, {"prompt": "qu", "completion": "a"})


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"mesages": []}, 'did you mean "messages" by "mesages"?'),
        ({"question": "q", "Antwort": "a"}, '[data.columns] prompt = "question", completion = "Antwort"'),
        ({"data": 1}, 'rows are {"messages": [...]}'),
    ],
)
def test_columns_of_no_format_get_a_way_out_that_fits_them(fields: Mapping[str, object], hint: str) -> None:
    with pytest.raises(RowError) as caught:
        example(fields)
    assert hint in caught.value.problem.hint


#: Rows that lack a field -> for which formats they are wanted, what is missing in words, and the ways out.
LACKING = [
    (
        {"prompt": "q"},
        "sft",
        "a question without an answer",
        'add `completion` to each row; a column of another name: [data.columns] completion = "COLUMN"; '
        'to learn the questions alone, as text: [data.columns] text = "prompt"',
    ),
    (
        {"question": "q", "id": 3},
        "",
        "a question without an answer",
        'add `answer` to each row; a column of another name: [data.columns] completion = "COLUMN"',
    ),
    (
        {"instruction": "q", "input": ""},
        "",
        "an instruction without an answer",
        'add `output` to each row; a column of another name: [data.columns] output = "COLUMN"',
    ),
    (
        {"reply": "a", "question": "q"},
        "sft",
        "a question without an answer",
        'say which is which: [data.columns] prompt = "question", completion = "reply"',
    ),
    (
        {"prompt": "q"},
        "classify",
        "a text without a label",
        'add `label` to each row, then say which is which: [data.columns] text = "prompt", label = "label"',
    ),
    (
        {"text": "q", "id": 3.5},
        "kto",
        "",
        'rows are {"prompt": ..., "completion": ..., "label": true}; [data.columns] maps columns of other names',
    ),
    (
        {"prompt": "q", "chosen": "a"},
        "reward",
        "a chosen answer without a rejected answer",
        'add `rejected` to each row; a column of another name: [data.columns] rejected = "COLUMN"',
    ),
    (
        {"prompt": "q"},
        "verifier",
        "a question without an answer and a label",
        "add `completion` and `label` to each row; a column of another name: "
        '[data.columns] completion = "COLUMN", label = "COLUMN"',
    ),
]


@pytest.mark.parametrize(("fields", "task", "lacking", "hint"), LACKING)
def test_a_row_that_lacks_a_field_says_which_and_every_way_out(
    fields: Mapping[str, object], task: str, lacking: str, hint: str
) -> None:
    problem = unknown_layout(row(fields), {}, "auto", formats_for(task))
    assert problem.message.partition("`: ")[2] == lacking
    assert problem.hint == hint


@pytest.mark.parametrize(
    ("keys", "columns", "format"),
    [
        (["prompt", "completion"], {}, "prompt-completion"),
        (["prompt", "COLUMN"], {"completion": "COLUMN"}, "prompt-completion"),
        (["prompt"], {"text": "prompt"}, "text"),
        (["question", "id", "answer"], {}, "prompt-completion"),
        (["question", "id", "COLUMN"], {"completion": "COLUMN"}, "prompt-completion"),
        (["instruction", "input", "COLUMN"], {"output": "COLUMN"}, "alpaca"),
        (["reply", "question"], {"prompt": "question", "completion": "reply"}, "prompt-completion"),
        (["prompt", "label"], {"text": "prompt", "label": "label"}, "labels"),
        (["text", "COLUMN"], {"label": "COLUMN"}, "labels"),
        (["prompt", "chosen", "COLUMN"], {"rejected": "COLUMN"}, "preference"),
        (["prompt", "A", "B"], {"completion": "A", "label": "B"}, "unpaired-preference"),
    ],
)
def test_the_ways_out_of_a_row_that_lacks_a_field_are_read(
    keys: Sequence[str], columns: Mapping[str, str], format: str
) -> None:
    layout = find_layout(keys, columns)
    assert layout is not None
    assert layout.format == format


def test_an_unknown_field_in_columns_is_named() -> None:
    with pytest.raises(RowError, match=r"\[data\] columns has no field `outptu`"):
        example({"a": "i", "b": "o"}, {"instruction": "a", "outptu": "b"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": None}, "`text` must be a text; this is null"),
        ({"text": 3}, "`text` must be a text; this is 3"),
        ({"instruction": "i", "output": ["o"]}, "`output` must be a text; this is a list of 1"),
        ({"instruction": "i", "input": 3, "output": "o"}, "`input` must be a text; this is 3"),
        (
            {"instruction": "i", "output": "o", "history": "x"},
            '`history` must be a list of [question, answer]; this is "x"',
        ),
        ({"question": None, "answer": "a"}, "`question` must be a text; this is null"),
        ({"messages": "hi"}, '`messages` must be a list of turns; this is "hi"'),
        ({"text": "t", "label": None}, "`label` must be a text or a whole number; this is null"),
        ({"messages": [USER], "label": "good"}, '`label` must be true or false; this is "good"'),
        ({"a": 1, "b": 2}, "no known format has these columns: `a`, `b`"),
        ({}, "no known format has these columns: "),
        (
            {"instruction": "i", "instances": [{}]},
            "the answers are nested in a list (`instances`), which no format has; "
            "the row has `instruction`, `instances`",
        ),
    ],
)
def test_what_does_not_fit_is_one_located_sentence(fields: Mapping[str, object], message: str) -> None:
    with pytest.raises(RowError) as caught:
        to_example(row(fields, line=7), "auto")
    assert (caught.value.problem.where, caught.value.problem.message) == ("a.jsonl:7", message)


def test_the_format_is_decided_over_the_whole_file_not_by_its_first_row() -> None:
    rows = [row({"text": "t"}, 1), *(row({"prompt": "p", "completion": "c"}, line) for line in range(2, 30))]
    detected = detect_format(rows)
    assert (detected.name, dict(detected.counts)) == ("prompt-completion", {"text": 1, "prompt-completion": 28})
    (problem,) = detected.problems
    assert problem.where == "a.jsonl:1"
    assert problem.message == (
        "rows of two kinds in one file: 1 of 29 are text (`text`), the rest prompt-completion; lines 1"
    )


def test_rows_of_no_format_are_counted_beside_the_others() -> None:
    detected = detect_format([row({"text": "t"}, 1), row({"x": 1}, 2), row({"y": 1}, 3)])
    assert detected.name == "text"
    assert [(problem.where, problem.message) for problem in detected.problems] == [
        ("a.jsonl:2", "no known format has these columns: `x` (and 1 more like it)")
    ]


def test_a_format_asked_for_is_the_only_one_taken() -> None:
    assert detect_format([row({"text": "t", "prompt": "p", "completion": "c"})], format="text").name == "text"
    detected = detect_format([row({"text": "t"})], format="alpaca")
    assert detected.name == ""
    assert detected.problems[0].message == ("format is alpaca, with `instruction` and `output`; the row has `text`")


def test_every_format_has_fields_that_its_converter_reads() -> None:
    assert set(FIELDS) == set(FORMATS)
    assert all(FIELDS[name] for name in FORMATS)


def test_weights_of_rows_stay_with_their_examples() -> None:
    layout = find_layout(["text"])
    assert layout is not None
    assert example_of(Row({"text": "t"}, "a", 1, 0.5), layout) == Text("t", "a", 1, 0.5)


TURN_KEYS = {"role", "content", "from", "value", "tool_calls", "type", "name"}
NAMES = st.sampled_from(sorted(KNOWN_COLUMNS | TURN_KEYS))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(max_size=8)
    | st.just("assistant"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(NAMES | st.text(max_size=3), VALUES, max_size=5))
def test_any_row_becomes_an_example_or_a_located_sentence(fields: dict[str, object]) -> None:
    try:
        found = to_example(row(fields, line=3), "auto")
    except RowError as error:
        place, messages = error.problem.where, [error.problem.message]
    else:
        place, messages = (
            f"{found.source}:{found.line}",
            [text for text, _ in inspect_example(found, content_of(found))],
        )
        assert 0 <= content_key(found) < 2**64
    assert place == "a.jsonl:3"
    assert all(message.isprintable() for message in messages)


#: File in ../shared/data -> format, or the beginning of the sentence that refuses it.
SHARED_FILES = {
    "agnews/test_1500.tsv": "labels",
    "alpaca/alpaca_2k.jsonl": "alpaca",
    "alpaca/alpaca_en_demo.json": "alpaca",
    "alpaca/alpaca_eval_davinci003_600.json": "alpaca",
    "alpaca/alpaca_text_prompt.json": "alpaca",
    "alpaca/seed_tasks.jsonl": "the answers are nested in a list (`instances`)",
    "chat/glaive_toolcall_en_180.json": "sharegpt",
    "chat/identity.json": "alpaca",
    "chat/reason_tool_use_demo_50.jsonl": "messages",
    "customer_service/abcd_sample.json": "no known format has these columns: `convo_id`",
    "customer_service/banking77_train.csv": "labels",
    "customer_service/kb.json": "the file is one object (`recover_username`",
    "customer_service/ontology.json": "the file is one object (`intents`",
    "dialogsum/test.jsonl": "prompt-completion",
    "dialogsum/train.jsonl": "prompt-completion",
    "dolly/dolly_prompt_answer.jsonl": "prompt-completion",
    "extraction/crossner_politics_train.txt": "the lines are tokens with tags for named entities",
    "extraction/crossner_science_dev.txt": "the lines are tokens with tags for named entities",
    "extraction/e2e_dev.csv": "prompt-completion",
    "extraction/snips_AddToPlaylist.json": "no known format has these columns: `data`",
    "extraction/snips_BookRestaurant.json": "no known format has these columns: `data`",
    "extraction/snips_GetWeather.json": "no known format has these columns: `data`",
    "gsm8k/test.jsonl": "prompt-completion",
    "gsm8k/train.jsonl": "prompt-completion",
    "marketing/marketing_alpaca.jsonl": "alpaca",
    "marketing/user_oriented_instructions.jsonl": "the answers are nested in a list (`instances`)",
    "mlx_lora_wikisql/test.jsonl": "text",
    "mlx_lora_wikisql/train.jsonl": "text",
    "mlx_lora_wikisql/valid.jsonl": "text",
    "mlx_wwdc25/train.jsonl": "prompt-completion",
    "preference/dpo_en_demo.json": "preference",
    "preference/kto_en_demo_200.json": "unpaired-preference",
    "preference/v1_dpo_demo.jsonl": "preference",
    "spatial/babi/qa1_single-supporting-fact_test.txt": "prompt-completion",
    "spatial/babi/qa1_single-supporting-fact_train.txt": "prompt-completion",
    "spatial/babi/qa4_two-arg-relations_test.txt": "prompt-completion",
    "spatial/babi/qa4_two-arg-relations_train.txt": "prompt-completion",
    "spatial/babi/qa17_positional-reasoning_test.txt": "prompt-completion",
    "spatial/babi/qa17_positional-reasoning_train.txt": "prompt-completion",
    "spatial/babi/qa18_size-reasoning_test.txt": "prompt-completion",
    "spatial/babi/qa18_size-reasoning_train.txt": "prompt-completion",
    "spatial/stepgame_qa1_train.jsonl": "prompt-completion",
    "spatial/stepgame_qa3_train.jsonl": "prompt-completion",
    "sst2/dev.tsv": "labels",
    "sst2/train.tsv": "labels",
    "text/tinyshakespeare.txt": "text",
    "text/wiki_demo.txt": "text",
    "text/wikitext2_valid.txt": "text",
}

#: Text files whose rows are documents between blank lines, where the manifest counts lines.
DOCUMENTS = {"text/tinyshakespeare.txt": 7222, "text/wikitext2_valid.txt": 1160}


@pytest.mark.parametrize("name", SHARED_FILES)
def test_every_shared_file_is_recognised_counted_and_turned_into_examples(shared: Shared, name: str) -> None:
    manifest = {
        entry["name"]: entry["rows"] for entry in json.loads(shared("data", "MANIFEST.json").read_text("utf-8"))
    }
    problems: list[str] = []
    rows = list(read_rows(shared("data", *name.split("/")), source=name, report=lambda p: problems.append(p.message)))
    detected = detect_format(rows)
    problems += [problem.message for problem in detected.problems]
    expected = SHARED_FILES[name]
    if expected not in FORMATS:
        assert len(problems) == 1
        assert problems[0].startswith(expected)
        return
    assert (detected.name, problems) == (expected, [])
    assert len(rows) == DOCUMENTS.get(name, manifest[name])
    assert all(to_example(row, detected).line == row.line for row in rows)


def test_the_list_above_is_the_whole_manifest(shared: Shared) -> None:
    manifest = json.loads(shared("data", "MANIFEST.json").read_text("utf-8"))
    assert sorted(entry["name"] for entry in manifest) == sorted(SHARED_FILES)


def test_tool_calls_and_reasoning_of_shared_conversations_arrive(shared: Shared) -> None:
    path = shared("data", "chat", "reason_tool_use_demo_50.jsonl")
    examples = [to_example(row, "messages") for row in read_rows(path, report=no_problem)]
    turns = [turn for found in examples if isinstance(found, Messages) for turn in found.messages]
    assert sum("reasoning_content" in turn for turn in turns) == 112
    assert sum(len(calls) for turn in turns if isinstance(calls := turn.get("tool_calls"), tuple)) == 68
    assert sum(turn["role"] == "tool" for turn in turns) == 42
    assert sum(bool(found.tools) for found in examples if isinstance(found, Messages)) == 48  # two rows have []
