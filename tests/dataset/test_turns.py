"""Conversations of many tools in one shape."""

import json

import pytest

from mlx_finetune.dataset.turns import TurnError, read_tools, read_turns

USER = {"role": "user", "content": "hi"}


def test_plain_turns_stay_as_they_are() -> None:
    turns = [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": "yo"}]
    assert list(read_turns(turns, "messages")) == turns


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("gpt", "assistant"),
        ("system", "system"),
        ("observation", "tool"),
        ("User", "user"),
        ("model", "assistant"),
    ],
)
def test_speakers_of_sharegpt_become_roles(speaker: str, role: str) -> None:
    assert read_turns([{"from": speaker, "value": "x"}], "conversations") == ({"role": role, "content": "x"},)


def test_a_function_call_turn_becomes_a_tool_call_of_the_assistant() -> None:
    value = json.dumps({"name": "get_news", "arguments": {"topics": ["a"]}})
    (turn,) = read_turns([{"from": "function_call", "value": value}], "conversations")
    call = {"type": "function", "function": {"name": "get_news", "arguments": {"topics": ["a"]}}}
    assert turn == {"role": "assistant", "content": "", "tool_calls": (call,)}


def test_arguments_given_as_json_text_become_an_object() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    (turn,) = read_turns([{"role": "assistant", "content": None, "tool_calls": calls}], "messages")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}
    assert turn == {"role": "assistant", "content": "", "tool_calls": (call,)}


def test_typed_parts_become_text_reasoning_and_calls() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "text", "text": "a"},
        {"type": "text", "value": "b"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'},
    ]
    (turn,) = read_turns([{"role": "assistant", "content": parts, "loss_weight": 1.0}], "messages")
    assert turn == {
        "role": "assistant",
        "content": "ab",
        "reasoning_content": "hm",
        "tool_calls": ({"type": "function", "function": {"name": "f", "arguments": {}}},),
    }


def test_the_name_and_call_id_of_a_tool_turn_are_kept() -> None:
    turn = {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f", "timestamp": "now"}
    assert read_turns([turn], "messages") == ({"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi", '`m` must be a list of turns; this is "hi"'),
        (None, "`m` must be a list of turns; this is null"),
        ([], "`m` is empty"),
        (["hi"], '`m` turn 1 must be an object with `role` and `content`; this is "hi"'),
        ([USER, {"content": "x"}], "`m` turn 2 has no `role`"),
        ([{"role": 3, "content": "x"}], "`m` turn 1 has the role 3, which is not a text"),
        ([{"role": "narrator", "content": "x"}], '`m` turn 1 has the unknown role "narrator"'),
        ([{"role": "user"}], "`m` turn 1 has no `content`"),
        ([{"role": "user", "content": None}], "`m` turn 1: `content` must be a text; this is null"),
        ([{"role": "user", "content": 3.5}], "`m` turn 1: `content` must be a text; this is 3.5"),
        ([{"role": "user", "content": {"a": 1}}], "`m` turn 1: `content` must be a text; this is an object with `a`"),
        ([{"role": "user", "content": ["x"]}], '`m` turn 1: a content part must be an object with `type`; this is "x"'),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            '`m` turn 1: a content part of type "image_url" cannot be learned from',
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            '`m` turn 1: a content part of type "text" needs a text; this is null',
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}],
            '`m` turn 1: only an assistant turn can have `tool_calls`; this one is "user"',
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"arguments": {}}]}],
            "`m` turn 1: a tool call has no `name`",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": "{"}],
            '`m` turn 1: a tool call cannot be read (not JSON: expecting property name enclosed in double quotes): "{"',
        ),
        (
            [{"from": "function_call", "value": "no json"}],
            '`m` turn 1: a tool call cannot be read (not JSON: expecting value): "no json"',
        ),
        ([{"role": "tool", "content": "", "name": 7}], "`m` turn 1: `name` must be a text; this is 7"),
    ],
)
def test_what_is_wrong_with_a_turn_is_named(value: object, message: str) -> None:
    with pytest.raises(TurnError) as caught:
        read_turns(value, "m")
    assert caught.value.message == message


def test_half_a_character_inside_json_text_is_refused_or_kept_as_text() -> None:
    with pytest.raises(TurnError, match="a lone surrogate"):
        read_tools('[{"name": "\\ud800"}]')
    calls = [{"name": "f", "arguments": '{"x": "\\ud800"}'}]
    (turn,) = read_turns([{"role": "assistant", "content": "", "tool_calls": calls}], "m")
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}
    assert turn["tool_calls"] == (call,)


def test_tools_are_a_list_or_its_json_text() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert read_tools(tools) == read_tools(json.dumps(tools)) == tuple(tools)
    for nothing in (None, "", [], "[]"):
        assert read_tools(nothing) is None
    for wrong in ("{", {"a": 1}, ["f"], 3):
        with pytest.raises(TurnError, match="`tools`"):
            read_tools(wrong)
