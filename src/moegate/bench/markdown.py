"""Tables and sentences as Markdown, for the file beside the results and for the documentation."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text


def as_markdown(parts: Iterable[Table | str]) -> str:
    """Tables with their titles as headings, and sentences as paragraphs.

    Example:
        >>> table = Table("case", "×", title="Gate")
        >>> table.add_row("[bold]one[/]", "2.0")
        >>> print(as_markdown([table, "Done."]), end="")
        ## Gate
        <BLANKLINE>
        | case | × |
        | --- | --- |
        | **one** | 2.0 |
        <BLANKLINE>
        Done.
    """
    return "\n\n".join(part if isinstance(part, str) else _table(part) for part in parts) + "\n"


def _table(table: Table) -> str:
    columns = table.columns
    lines = [
        [str(column.header) for column in columns],
        ["---:" if column.justify == "right" else "---" for column in columns],
        *([_cell(str(cell)) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)),
    ]
    heading = [f"## {table.title}", ""] if table.title else []
    return "\n".join([*heading, *("| " + " | ".join(line) + " |" for line in lines)])


def _cell(markup: str) -> str:
    text = Text.from_markup(markup)
    plain = text.plain.strip()
    bold = [span for span in text.spans if "bold" in str(span.style)]
    if not bold:
        return plain
    strong = text.plain[bold[0].start : bold[0].end]
    return plain.replace(strong, f"**{strong}**", 1)
