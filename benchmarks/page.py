"""A report as files: report.md with tables, and index.html, which holds the tables and the charts in one file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = (
    "<style>body{font-family:sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right}"
    "tr:nth-child(even){background:#f3f3f3}</style>"
)


def folder_name(*words: str) -> str:
    """Words as the name of a report's folder."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A titled table of the report; the first `words` columns are words, the others figures."""

    title: str
    note: str
    columns: tuple[str, ...]
    words: int
    rows: list[list[str]]


@dataclass(frozen=True)
class Report:
    """What a report says, in its order: the charts come before the last table, which is the long one."""

    title: str
    headline: str  # machine, versions, settings
    command: str  # that made it
    pages: Sequence[Page]
    summary: Sequence[str] = ()
    charts: Sequence[str] = ()  # names of PNG files in the report's folder

    def write(self, folder: Path) -> None:
        """Writes report.md and index.html beside the charts."""
        *tables, last = self.pages
        (folder / "report.md").write_text("\n".join([*self._markdown(tables), *_markdown(last)]) + "\n")
        (folder / "index.html").write_text("\n".join([*self._html(tables, folder), *_html(last)]) + "\n")

    def _markdown(self, tables: Sequence[Page]) -> list[str]:
        text = [f"# {self.title}", "", self.headline, "", f"`{self.command}`"]
        for page in tables:
            text += _markdown(page)
        return [*text, "", *(f"- {line}" for line in self.summary), "",
                *(f"![{chart}]({chart})" for chart in self.charts)]  # fmt: skip

    def _html(self, tables: Sequence[Page], folder: Path) -> list[str]:
        images = [base64.b64encode((folder / chart).read_bytes()).decode() for chart in self.charts]
        content = ["<!doctype html><meta charset='utf-8'><title>fastcnn benchmarks</title>", STYLE,
                   f"<h1>{html.escape(self.title)}</h1><p>{html.escape(self.headline)}</p>",
                   f"<p><code>{html.escape(self.command)}</code></p>"]  # fmt: skip
        for page in tables:
            content += _html(page)
        return [*content, "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in self.summary) + "</ul>",
                *(f"<img src='data:image/png;base64,{image}'>" for image in images)]  # fmt: skip


def _markdown(page: Page) -> list[str]:
    rule = "|" + "---|" * page.words + "---:|" * (len(page.columns) - page.words)
    rows = ["| " + " | ".join(row) + " |" for row in (page.columns, *page.rows)]
    return ["", f"## {page.title}", "", page.note, "", rows[0], rule, *rows[1:]]


def _html(page: Page) -> list[str]:
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell.replace('**', ''))}</td>" for cell in row) + "</tr>\n"
        for row in page.rows
    )
    head = "<tr>" + "".join(f"<th>{html.escape(column)}</th>" for column in page.columns) + "</tr>\n"
    return [f"<h2>{page.title}</h2><p>{html.escape(page.note)}</p>", f"<table>{head}{rows}</table>"]
