"""The command that gives what a task trained its first work: a conversation, one answer, a label, or a score."""

#: Task -> what follows the name of its run, after the verb. The others have conversations.
_VERBS = {
    "pretrain": "generate {name} --prompt TEXT",  # goes on with it
    "seq2seq": "generate {name} --prompt TEXT",
    "classify": "generate {name} --prompt TEXT",
    "reward": "eval {name}",  # says nothing, only scores
    "verifier": "eval {name} --samples FOLDER",  # that mlxft sample filled
}


def has_conversation(task: str) -> bool:
    """True where ``mlxft chat`` is what a run of ``task`` is for."""
    return task not in _VERBS


def talk_command(task: str, name: str) -> str:
    """How a run of ``task``, or a checkpoint of it, is tried. ``name`` is quoted for a shell; an unknown task chats."""
    return f"mlxft {_VERBS.get(task, 'chat {name}').format(name=name)}"
