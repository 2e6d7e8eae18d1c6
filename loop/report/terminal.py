"""How model text is shown in a terminal: as text, whatever it holds."""

import unicodedata

from rich.console import Console
from rich.text import Text

_KEPT = "\n\t"


def harmless(text: str) -> str:
    """`text` with control and bidirectional characters made visible: none of them reaches the terminal."""
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs")
        else "�"
        for character in text
    )


def plain(text: str, style: str = "") -> Text:
    """Rich text in which square brackets mean nothing."""
    return Text(harmless(text), style=style)


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=120, no_color=True)
