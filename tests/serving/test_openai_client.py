"""The official client gets what it asks for: plain, streamed, to a schema, refused, from the right adapter."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from servers import NEVER_ENDS, SCHEMA, Server

ASKED = [{"role": "user", "content": "Say something."}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "events", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with OpenAI(base_url=f"{server.address}/v1", api_key=server.token, max_retries=0) as client:
        yield client


def say(client: Any, model: str = "alpha", **fields) -> str:
    answer = client.chat.completions.create(model=model, messages=ASKED, **fields)
    return answer.choices[0].message.content


def test_models_are_the_adapters_and_their_base(client: Any, base_id: str) -> None:
    assert [model.id for model in client.models.list()] == ["alpha", "beta", base_id]
    assert client.models.retrieve("beta").id == "beta"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gamma")


def test_an_answer_has_text_a_reason_and_counts(client: Any) -> None:
    answer = client.chat.completions.create(model="alpha", messages=ASKED, max_tokens=5, logit_bias=NEVER_ENDS)
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_stream_says_what_the_whole_answer_says(client: Any) -> None:
    whole = client.chat.completions.create(model="beta", messages=ASKED, max_tokens=20, logit_bias=NEVER_ENDS)
    events = list(
        client.chat.completions.create(
            model="beta",
            messages=ASKED,
            max_tokens=20,
            logit_bias=NEVER_ENDS,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert said == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"
    assert events[-1].usage == whole.usage
    assert all(event.usage is None for event in events[:-1])


def test_every_name_answers_with_its_own_weights_whatever_came_before(client: Any, base_id: str) -> None:
    names = ["alpha", "beta", base_id]
    fields = {"max_tokens": 12, "temperature": 0, "logit_bias": NEVER_ENDS}
    ours = [{"role": "system", "content": "Be brief."}, *ASKED]  # or the run's own system message makes the difference
    first = {name: say(client, name, extra_body={"messages": ours}, **fields) for name in names}
    assert len(set(first.values())) == 3
    assert {name: say(client, name, extra_body={"messages": ours}, **fields) for name in reversed(names)} == first


def test_a_seed_repeats_an_answer_and_choices_differ(client: Any) -> None:
    fields = {"temperature": 1.5, "max_tokens": 12, "n": 3, "extra_body": {"top_k": 0}}
    first, again = (client.chat.completions.create(model="alpha", messages=ASKED, seed=5, **fields) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    second = client.chat.completions.create(model="alpha", messages=ASKED, seed=6, **fields)
    assert [choice.message.content for choice in second.choices][:2] == texts[1:]  # answer i draws with seed + i


def test_a_schema_is_kept_by_every_answer_that_ends(client: Any) -> None:
    for seed in range(4):
        text = say(client, seed=seed, temperature=1.0, max_tokens=60, response_format=FORMAT)
        jsonschema.validate(json.loads(text), SCHEMA)
    streamed = client.chat.completions.create(
        model="alpha", messages=ASKED, response_format=FORMAT, max_tokens=60, stream=True
    )
    jsonschema.validate(json.loads("".join(event.choices[0].delta.content or "" for event in streamed)), SCHEMA)


def test_json_object_begins_an_object_and_says_when_it_is_cut_short(client: Any) -> None:
    answer = client.chat.completions.create(
        model="alpha", messages=ASKED, response_format={"type": "json_object"}, max_tokens=2
    )
    assert answer.choices[0].message.content.startswith("{")
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_text_ends_the_answer_and_is_not_shown(client: Any) -> None:
    whole = say(client, "alpha", max_tokens=30, logit_bias=NEVER_ENDS)
    stop = whole[8:10]
    answer = client.chat.completions.create(
        model="alpha", messages=ASKED, max_tokens=30, logit_bias=NEVER_ENDS, stop=[stop, "never said"]
    )
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_decides_what_is_said(client: Any) -> None:
    answer = client.chat.completions.create(
        model="alpha", messages=ASKED, max_tokens=3, logit_bias={"70": 100}, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert len({token.token for token in tokens}) == 1
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert all(token.logprob <= token.top_logprobs[0].logprob for token in tokens)


def test_completions_take_texts_and_token_ids(client: Any, base_id: str) -> None:
    fields = {"model": base_id, "max_tokens": 6, "temperature": 0, "logit_bias": NEVER_ENDS}
    both = client.completions.create(prompt=["in the", "of you"], **fields)
    alone = [client.completions.create(prompt=text, **fields) for text in ("in the", "of you")]
    assert [choice.text for choice in both.choices] == [one.choices[0].text for one in alone]
    assert both.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    ids = client.completions.create(prompt=[[80, 81], [82]], n=2, logprobs=3, **fields)
    assert [choice.index for choice in ids.choices] == [0, 1, 2, 3]
    assert ids.choices[0].text == ids.choices[1].text != ids.choices[2].text
    assert [len(top) for top in ids.choices[0].logprobs.top_logprobs] == [3] * 6
    assert ids.usage.prompt_tokens == 3
    streamed = client.completions.create(prompt="in the", stream=True, **fields)
    assert "".join(event.choices[0].text for event in streamed) == alone[0].choices[0].text


def test_tools_are_refused_where_the_template_ignores_them(client: Any) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError, match="chat template of alpha ignores tools") as caught:
        say(client, tools=[tool], tool_choice="auto", max_tokens=2)
    assert caught.value.param == "tools"
    assert isinstance(say(client, tools=[tool], tool_choice="none", max_tokens=2), str)
    assert isinstance(say(client, tools=[], max_tokens=2), str)
    with pytest.raises(openai.BadRequestError):
        say(client, tools=[tool], tool_choice="required")


@pytest.mark.parametrize(
    ("error", "code", "fields"),
    [
        (openai.NotFoundError, "model_not_found", {"model": "../../etc/passwd"}),
        (openai.BadRequestError, "context_length_exceeded", {"messages": [{"role": "user", "content": "the " * 600}]}),
        (openai.BadRequestError, "invalid_value", {"temperature": 5}),
        (openai.BadRequestError, "invalid_value", {"frequency_penalty": 1}),
    ],
)
def test_a_refusal_is_an_error_of_the_client_library(client: Any, error, code: str, fields) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "alpha", "messages": ASKED, **fields})
    assert caught.value.code == code
    assert caught.value.body["message"]


def test_a_wrong_token_is_an_authentication_error(server: Server) -> None:
    with OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
