import pytest

from mlx_finetune.app.doctor.redact import Person, Redactor, Training, make_redactor, windows_of

PERSON = Person("/Users/annabell", ("annabell", "Annabell Muster", "root"), ("Annabells-MacBook-Pro.local", "kitchen"))
ROW = "The lighthouse keeper counted seventeen grey seals on Tuesday."


def redactor(training: Training | None = None, **variables: str) -> Redactor:
    return make_redactor(PERSON, variables, training or Training())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/Users/annabell/mlxft/adapters", "~/mlxft/adapters"),
        ("/Users/annabell", "~"),
        ("/Users/annabella/x", "/Users/[user]/x"),
        ("/Users/Shared/x", "/Users/Shared/x"),
        ("/home/somebody/x:/home/b c", "/home/[user]/x:/home/[user] c"),
        ("/Volumes/Anna's/x and /Volumes/Big Disk/y", "/Volumes/[disk]'s/x and /Volumes/[disk]/y"),
        ("id BC4DFC58-0D26-460D-9688-81D119298642", "id [id]"),
        ("train x --set chat.system=Hush --resume", "train x --set chat.system=[text] --resume"),
        ('train x --set \'eval.prompts=["a b", "c"]\' --resume', "train x --set eval.prompts=[text] --resume"),
        ("""--set 'chat.system=it'"'"'s me' --set lora.rank=8""", "--set chat.system=[text] --set lora.rank=8"),
        ("by ANNABELL on kitchen", "by [user] on [host]"),
        ("the chickitchen of annabells", "the chickitchen of annabells"),
        ("Annabells-MacBook-Pro.local says", "[host] says"),
        ("owner: Annabell Muster", "owner: [user]"),
        ("root is nobody", "root is nobody"),
        ("hf_abcdefghijklmnop1234", "[token]"),
        ("AIzaSyA0123456789abcdefghijk", "[token]"),
        ("-----BEGIN RSA PRIVATE KEY-----", "[token]"),
        ("key sk-proj-aaaaBBBBcccc1111_x", "key [token]"),
        ("ghp_0123456789abcdefghij", "[token]"),
        ("github_pat_11ABCDEFG0abcdefghij", "[token]"),
        ("wandb_v1_AbCdEfGhIjKlMnOp", "[token]"),
        ("wandb: 0123456789abcdef0123456789abcdef01234567", "wandb: [40 digits]"),
        ("sha256 " + "ab" * 32, "sha256 " + "ab" * 32),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer [token]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln", "[token]"),
        ("https://me:secret@example.org/simple", "https://[login]@example.org/simple"),
        ("api_key = 'abcd1234'", "api_key = '[secret]'"),
        ('"password": "hunter22"', '"password": "[secret]"'),
        ("num_tokens: 12345", "num_tokens: 12345"),
        ("write to anna.b+x@mail.example.org now", "write to [e-mail] now"),
        ("at 192.168.1.17 and 127.0.0.1", "at [address] and 127.0.0.1"),
        ("version 1.2.3.4.5 and 26.3", "version 1.2.3.4.5 and 26.3"),
        ("a\x1b[2Jb\x07", "a[2Jb"),
    ],
)
def test_people_secrets_and_addresses_go_and_the_rest_stays(text: str, shown: str):
    assert redactor().text(text) == shown


def test_the_value_of_a_secret_variable_goes_wherever_it_stands():
    ours = redactor(WANDB_API_KEY="plainword", MY_TOKEN="short", HF_TOKEN_PATH="/Users/x/token", HF_HOME="plain")
    assert ours.text("plainword short plain /Users/x/token") == "[secret] short plain /Users/[user]/token"
    assert ours.counts == {"secret": 1, "user": 1}


def test_prompts_and_answers_go_also_in_pieces_and_inside_quotes():
    ours = redactor(Training(("How do I keep\nbread fresh?", "a")))
    assert ours.text("How do I keep\nbread fresh?") == "[text]"
    assert ours.text(r"got 'How do I keep\nbread fresh?' and bread fresh?") == "got '[text]' and [text]"
    assert ours.text("a cat") == "a cat"


def test_a_sentence_loses_what_it_quotes_unless_metal_says_it():
    ours = redactor()
    assert (
        ours.sentence("ValueError: label 'grey seals' is not \"known\"") == "ValueError: label [quoted] is not [quoted]"
    )
    assert ours.sentence("don't") == "don't"
    metal = "[METAL] Command buffer execution failed: 'Impacting Interactivity'"
    assert ours.sentence(metal) == metal


@pytest.mark.parametrize(
    "line",
    [
        f"ValueError: {ROW}",
        "error: cannot read The  Lighthouse keeper counted\tSEVENTEEN grey seals",
        "warning: x counted seventeen grey seals on Tues...",
    ],
)
def test_a_sentence_that_repeats_a_training_row_goes_as_a_whole(line: str):
    ours = redactor(Training(windows=frozenset(windows_of(ROW))))
    assert ours.sentence(line) == "[left out: it repeats a training row]"
    assert redactor().sentence(line) != "[left out: it repeats a training row]"


def test_any_31_characters_of_a_row_are_recognised_wherever_they_begin():
    ours = redactor(Training(windows=frozenset(windows_of("x" * 7 + ROW))))
    for start in range(len(ROW) - 31):
        assert ours.sentence(f"E: {ROW[start : start + 31]}").startswith("[left out"), start


LOG = f"""\
{ROW}
Fetching 3 files: 100%
Traceback (most recent call last):
  File "/Users/annabell/mlxft/mlx_finetune/train/loop.py", line 12, in train
    raise ValueError("secret row")
           ^^^^^^^^^^
ValueError: the row 'grey seals' is bad
    {ROW}
[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)
error: no room
hint: mlxft models rm NAME
SIGTERM: stopping once the work at hand is saved
/x/site-packages/a.py:3: UserWarning: beware of 'grey'
what is this
"""


def test_a_log_keeps_lines_of_known_kinds_only():
    ours = redactor()
    assert ours.log(LOG.splitlines()) == [
        "[2 lines left out: they may hold training text]",
        "Traceback (most recent call last):",
        '  File "~/mlxft/mlx_finetune/train/loop.py", line 12, in train',
        "    raise ValueError([quoted])",
        "[1 line left out: they may hold training text]",
        "ValueError: the row [quoted] is bad",
        "[1 line left out: they may hold training text]",
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "error: no room",
        "hint: mlxft models rm NAME",
        "SIGTERM: stopping once the work at hand is saved",
        "/x/site-packages/a.py:3: UserWarning: beware of [quoted]",
        "[1 line left out: they may hold training text]",
    ]
    assert ours.counts["line of the log"] == 5


def test_lines_with_a_time_in_front_are_known_by_what_follows():
    stamp = "2026-11-26 18:04:05+0100 "
    lines = [f"{stamp}note: the row 'grey' is long", f"{stamp}step 4: validation loss 2.5", f"{stamp}{ROW}"]
    assert redactor().log(lines) == [
        f"{stamp}note: the row [quoted] is long",
        f"{stamp}step 4: validation loss 2.5",
        "[1 line left out: they may hold training text]",
    ]


def test_lines_of_metal_that_were_recorded_pass_whole(shared):
    for path in sorted(shared("macos-fixtures", "errors").glob("*.txt")):
        for line in path.read_text("utf-8").splitlines():
            if "METAL" in line or "[metal::" in line:
                assert redactor().log([line]) == [line], path.name
