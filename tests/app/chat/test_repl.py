"""What each line of a chat does, what the model reads for it, and that Ctrl-C and errors lose nothing."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_run
from click.testing import CliRunner
from talks import Recorder, TerminalChat, contents, start
from tiny import write_tiny_model

from mlx_finetune.app.chat.repl import COMMANDS
from mlx_finetune.app.generate import sampling_of
from mlx_finetune.app.open import Opened, open_name
from mlx_finetune.commands.chat import command
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.errors import DataError
from mlx_finetune.model.answers.generate import PromptCache, generate_text


def test_a_reply_is_that_of_the_whole_conversation(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("Where?")
    messages = chat.session.conversation.messages()[:-1]
    ids = render_prompt(messages, opened.tokenizer, opened.data)
    assert [turn["role"] for turn in messages] == ["system", "user"]
    assert (
        "".join(screen.pieces)
        == generate_text(opened.model, opened.tokenizer, ids, sampling_of(chat.session.chat, 1)) + "\n"
    )
    assert screen.said == ["(cut after 8 tokens; /set max_tokens 16 allows more)"]


def test_the_second_turn_reads_only_what_is_new(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    advance = PromptCache.advance

    def counting(self, ids):
        read.append(len(ids))
        return advance(self, ids)

    monkeypatch.setattr(PromptCache, "advance", counting)
    chat, _ = start(opened)
    chat.take("Where is the light?")
    first = sum(read)
    read.clear()
    chat.session.conversation.turns[-1] = {"role": "assistant", "content": "There."}
    chat.take("When?")
    prompt = render_prompt(chat.session.conversation.messages()[:-1], opened.tokenizer, opened.data)
    shared = len(render_prompt(chat.session.conversation.messages()[:2], opened.tokenizer, opened.data))
    assert first == shared + 7
    assert sum(read) == len(prompt) - shared + 7
    read.clear()
    chat.take("/compare Where?")
    chat.take("/undo")
    chat.take("When?")
    assert sum(read[-8:]) == 8, "after /compare and /undo the same question needs its last token alone"


def test_replies_with_and_without_a_cache_are_the_same(opened: Opened) -> None:
    chat, _ = start(opened)
    for text in ("Where?", "When?", "/undo", "Why?", "How?"):
        chat.take(text)
    for index in (1, 3, 5):
        turns = chat.session.conversation.turns[:index]
        system = [{"role": "system", "content": "Be brief."}]
        ids = render_prompt([*system, *turns], opened.tokenizer, opened.data)
        expected = generate_text(opened.model, opened.tokenizer, ids, sampling_of(chat.session.chat, 0))
        assert chat.session.conversation.turns[index]["content"] == expected


def test_stopping_a_reply_keeps_it_as_far_as_it_came(opened: Opened) -> None:
    chat, screen = start(opened, Recorder(stop_after=3))
    chat.session.chat = chat.session.chat.model_copy(update={"max_tokens": 200, "temperature": 1.0})
    chat.take("Where?")
    assert screen.said == ["(stopped)"]
    assert contents(chat) == ["Where?", "".join(screen.pieces[:-1])]
    screen.stop_after = 0
    chat.take("When?")
    assert screen.said[-1] == "(stopped before the first word; the question was not kept)"
    assert len(chat.session.conversation.turns) == 2


def test_control_markers_in_a_question_or_system_message_are_refused_and_nothing_changes(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("Hi <|im_end|> there")
    chat.take("/system <|im_start|>")
    assert chat.failures == 2
    assert "control marker '<|im_end|>'" in screen.said[0]
    assert chat.session.conversation.turns == []
    assert chat.session.conversation.system == "Be brief."


def test_a_marker_in_a_reply_does_not_end_the_conversation(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_finetune.app.chat import session as module
    from mlx_finetune.app.generate import Reply

    monkeypatch.setattr(module, "answer", lambda *a, **k: Reply("Aye<|im_<|im_start|>end|>.", "stop", 5, 4, 0.1))
    chat, _ = start(opened)
    chat.take("Where?")
    assert contents(chat) == ["Where?", "Aye."]


def test_undo_new_and_system_change_the_conversation(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("Where?")
    chat.take("When?")
    chat.take("/undo")
    assert screen.said[-1] == "taken back: When?"
    assert contents(chat)[0] == "Where?"
    assert len(contents(chat)) == 2
    chat.take("/new")
    assert contents(chat) == []
    chat.take("/system Be long.")
    assert chat.session.conversation.messages() == [{"role": "system", "content": "Be long."}]
    chat.take("/system -")
    assert chat.session.conversation.messages() == []
    assert screen.said[-1] == "no system message"
    chat.take("/undo")
    assert (chat.failures, screen.said[-1]) == (1, "error: there is nothing to take back")


def test_retry_draws_again_and_replaces_the_reply(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/set temperature 1")
    chat.take("Where?")
    first = contents(chat)
    chat.take("/retry")
    assert contents(chat)[0] == "Where?"
    assert len(contents(chat)) == 2
    assert contents(chat)[1] != first[1]
    screen.stop_after = 0
    second = contents(chat)
    chat.take("/retry")
    assert contents(chat) == second, "a retry that brings nothing leaves the reply that was there"


def test_a_seed_repeats_the_draws(opened: Opened) -> None:
    chat, _ = start(opened)
    replies: list[str] = []
    for _ in range(2):
        for text in ("/new", "/set temperature 1", "/set seed 5", "Where?"):
            chat.take(text)
        replies.append(contents(chat)[1])
    assert replies[0] == replies[1]


def test_set_checks_like_the_recipe_and_shows_what_holds(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/set top-p 0.5")
    assert (chat.session.chat.top_p, screen.said[-1]) == (0.5, "top-p = 0.5")
    chat.take("/set max_tokens=3")
    assert chat.session.chat.max_tokens == 3
    chat.take("/set temperature 11")
    assert screen.said[-2] == "error: `temperature` = 11: input should be less than or equal to 10"
    chat.take("/set seed -1")
    chat.take("/set temperature")
    assert chat.failures == 3
    chat.take("/set")
    assert {"  temperature = 0.0", "  top_p = 0.5", "  max_tokens = 3", "  seed = 1"} <= set(screen.said)


def test_a_mistyped_command_gets_the_nearest_and_two_slashes_ask_the_model(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/compar")
    assert screen.said == [
        "error: there is no command /compar",
        "hint: did you mean /compare? /help lists them; //compar asks the model",
    ]
    chat.take("//etc is a folder?")
    assert contents(chat)[0] == "/etc is a folder?"


def test_help_names_every_command(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/help")
    assert [line.split()[0] for line in screen.said[: len(COMMANDS)]] == [f"/{name}" for name in COMMANDS]
    assert not chat.take("/exit")
    assert not chat.take("/quit")
    screen.said.clear()
    screen.width = 80
    chat.take("/help")
    assert max(map(len, screen.said)) <= 80
    assert [line.split()[0] for line in screen.said if line.startswith("  /")] == [f"/{name}" for name in COMMANDS]


def test_compare_shows_base_and_adapter_and_leaves_the_conversation_alone(
    opened: Opened, tiny_model: Callable[..., Path]
) -> None:
    plain = open_name(str(tiny_model("llama")), base=Path(), report=lambda _: None)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    ids = render_prompt(messages, opened.tokenizer, opened.data)
    base, tuned = (generate_text(m.model, m.tokenizer, ids, sampling_of(opened.chat, 1)) for m in (plain, opened))
    chat, screen = start(opened)
    chat.take("/compare Where?")
    shown = "".join(screen.pieces)
    assert contents(chat) == []
    assert base != tuned
    for title, text in (("base", base), ("adapter", tuned)):
        block = shown.split(f"--- {title} ---\n")[1].split("\n\n--- ")[0]
        assert block.split() == "".join(c for c in text if c.isprintable() or c in "\n\t").split()
    chat.take("When?")
    before = contents(chat)
    chat.take("/compare")
    assert contents(chat) == before


@pytest.mark.parametrize("change", ["/fix Right.", "/set max_tokens 5", "/set temperature 0"])
def test_compare_asks_again_where_the_last_answer_is_not_of_the_model_as_set_now(opened: Opened, change: str) -> None:
    chat, screen = start(opened)
    chat.take("Where?")
    chat.take(change)
    again = sampling_of(chat.session.chat, chat.session.seed + chat.session.num_draws)
    ids = render_prompt(chat.session.last_messages(), opened.tokenizer, opened.data)
    screen.pieces.clear()
    chat.take("/compare")
    block = "".join(screen.pieces).split("--- adapter ---\n")[1].split()
    expected = generate_text(opened.model, opened.tokenizer, ids, again)
    assert block == "".join(c for c in expected if c.isprintable() or c in "\n\t").split()


def test_compare_without_a_question_or_an_adapter_is_refused(opened: Opened, tiny_model: Callable[..., Path]) -> None:
    chat, screen = start(opened)
    chat.take("/compare")
    assert screen.said[0] == "error: there is no question yet"
    plain, screen = start(open_name(str(tiny_model("llama")), base=Path(), report=lambda _: None))
    plain.take("/compare Where?")
    assert "without an adapter" in screen.said[0]


def test_a_saved_chat_is_loaded_and_goes_on(opened: Opened, tmp_path: Path) -> None:
    chat, screen = start(opened)
    chat.take("Where?")
    chat.take(f"/save '{tmp_path}/my talks'")
    assert screen.said[-1] == f"saved as row 1 of {tmp_path}/my talks.jsonl"
    row = json.loads((tmp_path / "my talks.jsonl").read_text("utf-8"))
    assert row == {"messages": chat.session.conversation.messages()}
    other, screen = start(opened)
    other.take(f"/load '{tmp_path}/my talks'")
    assert other.session.conversation.messages() == chat.session.conversation.messages()
    assert screen.said[0] == f"2 turns from {tmp_path}/my talks.jsonl"
    other.take("/save")
    assert screen.said[-2] == "error: /save needs one file name"


def test_a_model_without_a_chat_template_answers_each_question_by_itself(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base", "gpt2", chat_template=False)
    base = open_name("base", base=tmp_path, report=lambda _: None)
    chat, screen = start(base)
    for text in ("/set max_tokens 4", "/set temperature 0", "Where?", "When?", "/retry"):
        chat.take(text)
    ids = render_prompt([{"role": "user", "content": "When?"}], base.tokenizer, base.data)
    assert "### Instruction:\nWhen?" in base.tokenizer.decode(ids)
    expected = generate_text(base.model, base.tokenizer, ids, sampling_of(chat.session.chat, 0))
    assert contents(chat)[3] == expected
    assert chat.failures == 0, screen.said


def pipe(place: Path, text: str, monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.chdir(place)
    return CliRunner().invoke(command, ["keeper", *arguments], input=text, standalone_mode=False)


def test_piped_lines_are_one_conversation_with_replies_alone_on_stdout(
    place: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pipe(place, "Where?\n\nWhen\\\nexactly?\n", monkeypatch, "--seed", "1")
    chat, screen = start(opened)
    chat.take("Where?")
    chat.take("When\nexactly?")
    assert result.return_value == 0
    assert result.stdout == "".join(screen.pieces)
    assert result.stderr.splitlines()[-1].startswith("next: mlxft generate keeper --prompt")


def test_a_piped_line_that_fails_is_said_and_the_exit_code_is_1(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pipe(place, "<|im_end|>\n/exit\nnever read\n", monkeypatch)
    assert (result.return_value, result.stdout) == (1, "")
    assert "error: the conversation holds the control marker" in result.stderr
    assert pipe(place, "", monkeypatch).return_value == 0


def test_a_piped_line_that_is_not_utf8_is_refused_and_the_next_one_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(command, ["keeper"], input=b"caf\xe9\nWhere?\n", standalone_mode=False)
    assert result.return_value == 1
    assert "error: the user turn is not UTF-8 at character 4" in result.stderr
    assert result.stdout != ""


def test_in_a_terminal_ctrl_c_stops_the_reply_and_ctrl_d_leaves(place: Path, tmp_path: Path) -> None:
    talk = TerminalChat(place, "keeper", "--set", "max_tokens=100000", MLXFT_CACHE=str(tmp_path))
    try:
        talk.wait_for("Ctrl-D leaves")
        talk.type("Where?\r")
        talk.wait_for("Where?")
        time.sleep(0.3)
        talk.child.send_signal(signal.SIGINT)
        talk.wait_for("(stopped)")
        talk.type("\x04")
        talk.wait_for("next: mlxft generate keeper")
        assert talk.child.wait(10) == 0
    finally:
        talk.close()
    history = tmp_path / "chat_history"
    assert "+Where?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_in_a_terminal_an_answer_is_put_right_in_the_editor(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    run = tmp_path / "adapters" / "keeper"
    write_run(run, tiny_model("llama"))
    editor = tmp_path / "my editor"
    editor.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nos.kill(os.getppid(), signal.SIGINT)\n"
        "assert sys.stdin.isatty() and sys.stdout.isatty()\nprint('EDITING ' + sys.argv[1])\n"
        "open(sys.argv[-1], 'w').write('There,\\nof \\u00e0ll places.\\n')\nsys.exit(int(sys.argv[1]))\n"
    )
    editor.chmod(0o755)
    talk = TerminalChat(tmp_path, "keeper", MLXFT_CACHE=str(tmp_path), VISUAL=f"'{editor}' 0", EDITOR="no-such-editor")
    try:
        assert "/fix puts an answer right" in talk.wait_for("Ctrl-D leaves")
        talk.type("Where?\r")
        talk.type("/fix\r")
        talk.wait_for("EDITING 0")
        talk.wait_for("kept as correction 1 of")
        talk.type('/fix """\rOver\r\rthere."""\r')
        talk.wait_for("kept as correction 2 of")
        talk.type("/edit 1\r")
        talk.wait_for("EDITING 0")
        talk.wait_for("turn 1 was asked anew")
        talk.type("/history\r")
        talk.wait_for("1 user       There, of \u00e0ll places.")
        talk.type("\x04")
        folder = "--set data.corrections=adapters/keeper --set output_dir=adapters/keeper-next"
        talk.wait_for(f"next: train on what you put right: mlxft train adapters/keeper/resolved.toml {folder}")
        assert talk.child.wait(10) == 0
    finally:
        talk.close()
    rows = [json.loads(line) for line in (run / "corrections.jsonl").read_text("utf-8").splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == ["There,\nof \u00e0ll places.", "Over\n\nthere."]


@pytest.mark.parametrize(("visual", "says"), [("no-such-editor", "there is no such program"), ("false", "code 1")])
def test_in_a_terminal_an_editor_that_does_not_work_is_a_sentence(place: Path, tmp_path: Path, visual: str, says: str):
    talk = TerminalChat(place, "keeper", MLXFT_CACHE=str(tmp_path), VISUAL=visual)
    try:
        talk.type("/edit\r")
        talk.wait_for(says)
        talk.type("/history\r")
        talk.wait_for("nothing has been said yet")
        talk.type("\x04")
        assert talk.child.wait(60) == 0
    finally:
        talk.close()


def test_a_schema_may_be_given_from_the_start(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "place.json"
    path.write_text('{"enum": ["here", "there"]}')
    result = pipe(place, "Where?\n", monkeypatch, "--schema", str(path), "--set", "max_tokens=40")
    assert result.stdout in ('"here"\n', '"there"\n')
    path.write_text("{")
    monkeypatch.setattr("mlx_finetune.commands.opening.open_for_answers", None)
    assert isinstance(pipe(place, "", monkeypatch, "--schema", str(path)).exception, DataError)


def test_a_pipe_may_put_answers_right_and_has_no_editor(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "adapters" / "keeper"
    write_run(run, tiny_model("llama"))
    result = pipe(tmp_path, 'Where?\n/fix """\nThere,\nof all places.\n"""\n/fix\n/edit 1\n', monkeypatch)
    assert result.return_value == 1
    assert result.stderr.count("error: there is no terminal to edit in") == 2
    (row,) = [json.loads(line) for line in (run / "corrections.jsonl").read_text().splitlines()]
    assert row["messages"][-1]["content"] == "There,\nof all places."
    assert "data.corrections=adapters/keeper" in result.stderr.splitlines()[-1]
