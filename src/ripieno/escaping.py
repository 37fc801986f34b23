"""Writing what anybody may have written: texts that a terminal or a spreadsheet would take for orders.

HTML has its own way: the pages' templates escape whatever is put into them.
"""

from __future__ import annotations

import html
import unicodedata
from typing import Any

# Both widths: some spreadsheets take the wide signs of East Asian keyboards for the others.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")
# Control characters, halves of surrogate pairs, and ends of lines; the others turn text around.
_ORDERS = ("Cc", "Cs", "Zl", "Zp")
_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def csv_cell(value: Any) -> Any:
    """Return a csv cell that no spreadsheet runs: an apostrophe before a text that would begin a formula.

    Numbers stay numbers. As https://owasp.org/www-community/attacks/CSV_Injection recommends.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def markdown_text(text: str) -> str:
    """Return a text for a page of Markdown, which may hold HTML: inside a line, a cell of a table or a span of code."""
    return html.escape(terminal_line(text), quote=False).replace("|", "&#124;").replace("`", "&#96;")


def terminal_line(text: str) -> str:
    """Return a text as one line for a terminal, what would move its cursor or turn its text around spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if c in _TURNING or unicodedata.category(c) in _ORDERS else c for c in text)
