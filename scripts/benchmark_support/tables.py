"""Tables of the benchmarks on the terminal."""

from __future__ import annotations


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they must be, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
