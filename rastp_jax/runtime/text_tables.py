"""Tables as text: rows of cells, aligned for a terminal or written as Markdown. The first row is the heading."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
  """Columns side by side: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
    for row in rows
  )


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
  lines = [[cell.replace("|", r"\|") for cell in row] for row in [rows[0], rule, *rows[1:]]]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)
