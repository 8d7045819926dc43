"""Text of a row as it may be shown: what a terminal or a page could act upon, and what is invisible, as an escape."""


def harmless(text: str) -> str:
    """``text`` with line breaks kept and every other character that a terminal could act upon as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if character == "\t":
        return "\\t"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
