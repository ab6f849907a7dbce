"""The parts of a page, as HTML text."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

__all__ = ["embedded", "page", "picture", "table", "tiles"]

TYPES = {".gif": "image/gif", ".png": "image/png"}
MOST_EMBEDDED = 2**24  # bytes of a picture: an animation of a thousand epochs
FOLDER = Path(__file__).resolve().parent


def page(title: str, subtitle: str, body: Sequence[str]) -> str:
    """A whole HTML document that loads nothing but pictures too large for `picture` to embed."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body><main>"
        f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(subtitle)}</p>\n'
        + "\n".join(body)
        + f"</main>\n<script>{script}</script></body></html>\n"
    )


def embedded(data: bytes, suffix: str) -> str:
    """A picture's content as an address."""
    return f"data:{TYPES[suffix]};base64,{base64.b64encode(data).decode()}"


def picture(path: Path, caption: str, wide: bool = False) -> str:
    """A figure with the picture embedded; a large picture stays a file, which has to lie beside the page.

    An empty text where there is no such file.
    """
    if not path.exists():
        return ""
    is_large = path.stat().st_size > MOST_EMBEDDED
    source = quote(path.name) if is_large else embedded(path.read_bytes(), path.suffix)
    kind, text = ' class="wide"' if wide else "", html.escape(caption)
    return f'<figure{kind}><figcaption>{text}</figcaption><img alt="{text}" src="{source}"></figure>'


def tiles(figures: Mapping[str, str]) -> str:
    """Numbers to be seen first, each above its name."""
    items = (
        f"<div class=tile><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in figures.items()
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, without a head where all names are empty."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    head_row = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head_row}<tbody>{body}</tbody></table></div>'
