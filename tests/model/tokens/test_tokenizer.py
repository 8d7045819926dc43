import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import family_tokenizer
from tiny import CHATML, make_tokenizer, write_tokenizer

from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

TURNS = (
    {"role": "user", "content": "What is 2 < 3 & 'x'?"},
    {"role": "assistant", "content": "True.\n"},
    {"role": "user", "content": "Danke schön \U0001f600"},
)


def configure(folder: Path, **keys: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# Loading


def test_the_tokenizer_of_a_model_folder(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.vocab_size == make_tokenizer().get_vocab_size()
    assert tokenizer.control_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert tokenizer.special_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.encode("Hello, you <|im_end|>").ids) == "Hello, you <|im_end|>"
    assert tokenizer.decode([2, *tokenizer.encode("hi").ids], skip_special_tokens=True) == "hi"


def test_offsets_cover_the_blank_in_front_of_a_word(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    encoding = load_tokenizer(tmp_path).encode("is the you")
    assert encoding.offsets == [(0, 2), (2, 6), (6, 10)]


def test_a_folder_without_tokenizer_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer in this folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(tmp_path / "gone")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=False)
    configure(tmp_path, eos_token=None)
    with pytest.raises(ModelError, match="names no end-of-text token"):
        load_tokenizer(tmp_path)


def test_the_end_of_text_token_may_stand_in_the_models_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=False)
    configure(tmp_path, eos_token=None)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 10**9, 0]}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.stop_token_ids) == (2, {0, 2})


@pytest.mark.parametrize("processor", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}])
def test_texts_begin_with_the_token_the_config_asks_for(tmp_path: Path, processor: object) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    configure(tmp_path, add_bos_token=True, bos_token="<|endoftext|>")
    tokenizer = load_tokenizer(tmp_path)
    plain = tokenizer.encode("it is").ids
    assert tokenizer.encode("it is", add_special_tokens=True).ids == [0, *plain]
    assert plain[0] != 0


def test_added_tokens_of_the_config_are_added(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    size = make_tokenizer().get_vocab_size()
    configure(tmp_path, added_tokens_decoder={str(size): {"content": "<think>", "special": False}})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.control_tokens["<think>"] == size
    assert "<think>" not in tokenizer.special_tokens
    assert tokenizer.encode("<think>").ids == [size]


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    configure(tmp_path, auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_hash_covers_vocabulary_template_and_ends(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    hashes = {load_tokenizer(tmp_path).content_hash}
    assert load_tokenizer(tmp_path).content_hash in hashes
    configure(tmp_path, chat_template=CHATML + " ")
    hashes.add(load_tokenizer(tmp_path).content_hash)
    configure(tmp_path, eos_token="<|endoftext|>")
    hashes.add(load_tokenizer(tmp_path).content_hash)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + "\n")
    hashes.add(load_tokenizer(tmp_path).content_hash)
    assert len(hashes) == 4


def test_a_saved_tokenizer_loads_the_same(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "saved").mkdir()
    for name, text in tokenizer.files().items():
        (tmp_path / "saved" / name).write_text(text)
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode("user <|im_end|> the").ids == tokenizer.encode("user <|im_end|> the").ids
    assert again.render(TURNS) == tokenizer.render(TURNS)
    assert (again.eos_token_id, again.bos_token_id, again.pad_token_id) == (2, 1, 0)


def test_gpt2s_vocabulary_and_merges_are_converted(tmp_path: Path, shared: Callable[..., Path]) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(shared("models", "tokenizers", f"gpt2_{name}"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello world\n\n3").ids == [15496, 995, 198, 198, 18]
    assert tokenizer.eos_token_id == 50256
    assert not tokenizer.has_chat_template


def test_a_sentencepiece_model_is_converted(tmp_path: Path, shared: Callable[..., Path]) -> None:
    (tmp_path / "tokenizer.model").symlink_to(shared("models", "tokenizers", "llama2_tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello world", add_special_tokens=True).ids == [1, 15043, 3186]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path, shared: Callable[..., Path]) -> None:
    """Unigram inside, taken for Llama's BPE: [4, 15, 51, ...] instead of [4, 0, 15, ...]."""
    (tmp_path / "tokenizer.model").symlink_to(shared("models", "tokenizers", "sentencepiece_test_model.model"))
    with pytest.raises(ModelError, match="gives other tokens than the sentencepiece model"):
        load_tokenizer(tmp_path)


def test_stories260k_speaks_as_its_sentencepiece_model(shared: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(shared("models", "stories260K"))
    ids = tokenizer.encode("Once upon a time", add_special_tokens=True).ids
    assert ids == [1, 403, 407, 261, 378]
    assert tokenizer.decode(ids[1:]) == "Once upon a time"


# Chat templates


@pytest.mark.parametrize("where", ["chat_template.jinja", "list", "argument"])
def test_where_a_template_may_come_from(tmp_path: Path, where: str) -> None:
    write_tokenizer(tmp_path, chat_template=False)
    source, chat_template = "{{ messages[0].content }}!", "auto"
    if where == "list":
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
        configure(tmp_path, chat_template=named)
    elif where == "argument":
        (tmp_path / "mine.jinja").write_text(source)
        chat_template = str(tmp_path / "mine.jinja")
    else:
        (tmp_path / "chat_template.jinja").write_text(source)
    assert load_tokenizer(tmp_path, chat_template=chat_template).render([{"content": "hi"}]) == "hi!"


def test_a_template_that_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        load_tokenizer(tmp_path, chat_template="gone.jinja")
    (tmp_path / "bad.jinja").write_text("{% if %}")
    with pytest.raises(ModelError, match="not valid Jinja"):
        load_tokenizer(tmp_path, chat_template=str(tmp_path / "bad.jinja"))


def test_a_base_model_cannot_render(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=False)
    with pytest.raises(DataError, match="no chat template"):
        load_tokenizer(tmp_path).render(TURNS)


def test_every_template_renders_as_in_transformers(tmp_path: Path, shared: Callable[..., Path]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    same = 0
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    for path in sorted(shared("models", "templates").glob("*.jinja")):
        source = path.read_text()
        if "strftime_now" in source:
            continue  # ours is pinned; see test_a_date_in_a_template_is_pinned_and_said
        tokenizer = family_tokenizer(tmp_path, path)
        config = json.loads((tmp_path / path.stem / "tokenizer_config.json").read_text())
        for tools in (None, [tool]):
            for prompt in (False, True):
                options: dict[str, object] = {"tools": tools, "add_generation_prompt": prompt}
                try:
                    ours = tokenizer.render(TURNS, tools=tools, add_generation_prompt=prompt)
                except DataError:
                    ours = None
                try:
                    theirs = render_jinja_template([list(TURNS)], chat_template=source, **options, **config)[0][0]
                except Exception:
                    theirs = None
                assert ours == theirs, path.name
                same += ours is not None
    assert same > 100


def test_spans_of_generation_tags_are_those_of_transformers(tmp_path: Path, shared: Callable[..., Path]) -> None:
    from transformers import PreTrainedTokenizerFast

    for name in ("trl-llama3_training", "trl-qwen3_training"):
        path = shared("models", "templates", f"{name}.jinja")
        tokenizer = family_tokenizer(tmp_path, path)
        found = tokenizer.assistant_spans(TURNS, tools=None, arguments={})
        assert found is not None
        text, spans = found
        assert text == tokenizer.render(TURNS)
        oracle = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / name))
        theirs = oracle.apply_chat_template(
            list(TURNS), chat_template=path.read_text(), return_dict=True, return_assistant_tokens_mask=True
        )
        encoding = tokenizer.encode(text)
        assert list(theirs["input_ids"]) == encoding.ids
        ours = [int(any(start <= at < end for start, end in spans)) for at, _ in encoding.offsets]
        assert theirs["assistant_masks"] == ours


def test_stop_tokens_are_the_end_of_text_and_the_end_of_a_turn(tmp_path: Path, shared: Callable[..., Path]) -> None:
    for name, stops in (
        ("google-gemma-2-2b-it", {"<eos>", "<end_of_turn>"}),
        ("openai-gpt-oss-120b", {"<|return|>", "<|call|>"}),
        ("trl-phi3", {"<|end|>", "<|endoftext|>"}),
        ("CohereForAI-c4ai-command-r-plus-tool_use", {"<|END_OF_TURN_TOKEN|>"}),
    ):
        tokenizer = family_tokenizer(tmp_path, shared("models", "templates", f"{name}.jinja"))
        assert {token for token, id_ in tokenizer.control_tokens.items() if id_ in tokenizer.stop_token_ids} == stops
