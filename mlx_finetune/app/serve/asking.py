"""What the server says on how to ask it: one line for a shell and one for Python, to be copied as they are."""

import json
import shlex
from pathlib import Path


def asking_lines(address: str, model: str, endpoint: str | None, token_file: Path | None) -> tuple[str, str]:
    """A curl line, to ``endpoint`` where there is one, and a line for the package openai.

    The token is read from its file, so that it stands in no history of commands.
    """
    turns = [{"role": "user", "content": "Hello"}]
    path = "v1/chat/completions" if endpoint is None else endpoint
    body = {"model": model, "messages": turns} if endpoint is None else {"text": "Hello"}
    bearer = "" if token_file is None else f' -H "Authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
    data = shlex.quote(json.dumps(body))
    curl = f"curl {shlex.quote(f'{address}/{path}')}{bearer} -H 'Content-Type: application/json' -d {data}"
    key = '"none"' if token_file is None else f"Path({json.dumps(str(token_file))}).read_text().strip()"
    imports = "" if token_file is None else "from pathlib import Path; "
    client = f'{imports}from openai import OpenAI; client = OpenAI(base_url="{address}/v1", api_key={key})'
    return curl, f"{client}; client.chat.completions.create(model={json.dumps(model)}, messages={json.dumps(turns)})"
