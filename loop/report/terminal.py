"""How model text is shown in a terminal: as text, whatever it holds."""

from rich.console import Console
from rich.text import Text

from loop.surface import harmless


def plain(text: str, style: str = "") -> Text:
    """Rich text in which square brackets mean nothing."""
    return Text(harmless(text), style=style)


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=120, no_color=True)
