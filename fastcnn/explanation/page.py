"""An Explanation as one HTML page without scripts, other files or network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fastcnn.explanation import table

if TYPE_CHECKING:
    from fastcnn.explanation.explain import Explanation

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ours: #2a7; --torch: #e83; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em; }
h1 { margin-bottom: .2em; } p { margin: .1em 0; }
.scroll { overflow-x: auto; margin: 1.2em 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: Canvas; vertical-align: bottom; }
.right { text-align: right; } .why { white-space: normal; min-width: 18em; }
.faster { color: var(--ours); font-weight: 600; } .slower { color: var(--torch); font-weight: 600; }
tr.total td { font-weight: 600; border-top: 2px solid; }
.bars { width: 10em; } .bar { height: .55em; margin: 1px 0; min-width: 1px; }
.bar.ours, .key.ours { background: var(--ours); } .bar.torch, .key.torch { background: var(--torch); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
"""


def html(explanation: Explanation) -> str:
    """The page."""
    title = escape(explanation.title)
    setting = "".join(f"<p>{escape(line)}</p>" for line in explanation.setting)
    notes = "".join(
        f"<h2>{escape(name)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for name, lines in table.sections(explanation)
    )
    body = _table(explanation) if explanation.rows else "<p>No layer that fastcnn knows was called.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: fastcnn</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>{setting}{body}{notes}</body></html>\n"
    )


def _table(explanation: Explanation) -> str:
    names = table.columns(explanation)
    longest = max((max(r.ours_total_ms, r.torch_total_ms) * r.calls for r in explanation.rows if r.measured), default=0)
    head = "".join(f'<th class="{side}">{escape(name)}</th>' for name, side in names.items())
    lines = [f'<th class="bars">all calls: <i class="key ours"></i>ours<i class="key torch"></i>torch</th>{head}']
    for row, texts in zip(explanation.rows, table.cells(explanation), strict=True):
        bars = ""
        if row.measured and longest:
            for side, ms in (("ours", row.ours_total_ms), ("torch", row.torch_total_ms)):
                width = 100 * ms * row.calls / longest
                bars += f'<div class="bar {side}" style="width:{width:.1f}%" title="{ms * row.calls:.3f} ms"></div>'
        speed = "" if not row.measured else "slower" if row.ratio < table.SLOWER else "faster" * (row.ratio > 1.05)
        classes = {**names, "ratio": f"right {speed}", "why": "left why"}
        lines.append(f'<td class="bars">{bars}</td>{_cells(texts, list(classes.values()))}')
    body = "\n".join(f"<tr>{line}</tr>" for line in lines[1:])
    last = f'<tr class="total"><td></td>{_cells(table.total(explanation), list(names.values()))}</tr>'
    return (
        f'<div class="scroll"><table>\n<thead><tr>{lines[0]}</tr></thead>\n<tbody>{body}\n{last}</tbody></table></div>'
    )


def _cells(texts: list[str], classes: list[str]) -> str:
    return "".join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in zip(texts, classes, strict=True))
