"""Tables whose rows have a colour, as HTML: Markdown has none."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def colour_table(
    caption: str, columns: Sequence[str], rows: Iterable[tuple[tuple[int, int, int], Sequence[str]]]
) -> str:
    """A table of the class `areas`.

    Args:
        caption, columns: plain text, as the cells are; of the columns after the first, which is the colour.
        rows: colour (red, green, blue; 0 to 255) and cells.
    """
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in ("Colour", *columns))
    lines = []
    for (red, green, blue), cells in rows:
        swatch = f'<td><span class="swatch" style="background:#{red:02x}{green:02x}{blue:02x}"></span></td>'
        lines.append(f"<tr>{swatch}{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    return f'<table class="areas"><caption>{html.escape(caption)}</caption><tr>{head}</tr>{"".join(lines)}</table>'
