"""The report's HTML: escaping, tables, figures and the page around them. The page loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1.25rem 4rem; background: #fff; color: #1f2328;
       font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p.note, figcaption { color: #57606a; font-size: .87rem; margin: .3rem 0; max-width: 75ch; }
p.missing { background: #fff8e6; border-left: 3px solid #d6a31f; padding: .4rem .8rem; font-size: .9rem; }
.plots { display: grid; gap: 1.5rem 2rem; align-items: start;
         grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; }
figure h3 { margin: .6rem 0 .2rem; }
figure img { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e7eaee; vertical-align: top; }
th { color: #57606a; font-weight: 600; }
th.text, td.text { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
table.headline { font-size: 1.02rem; margin: .8rem 0; }
table.headline tr:last-child td { font-weight: 600; }
pre, td.text.mono { font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; }
blockquote { margin: .3rem 0 .5rem; padding: .1rem .9rem; border-left: 3px solid #d8dee4;
             white-space: pre-wrap; overflow-wrap: anywhere; }
.role { color: #8b929c; font-size: .8rem; }
details > summary { cursor: pointer; color: #2166ac; margin: .4rem 0; }
"""


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A second wall behind escaping: nothing is loaded and no script runs, whatever a response contains.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{note(subtitle)}\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>\n"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def missing(text: str) -> str:
    """What is not there, and why, in the place where it would stand."""
    return f'<p class="missing">{escape(text)}</p>'


def figure(title: str, svg: str, caption: str) -> str:
    """A plot as an inline image, so that the ids of several SVGs cannot meet."""
    data = base64.b64encode(svg.encode()).decode()
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<img alt="{escape(title)}: {escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def plots(figures: Sequence[str]) -> str:
    """Figures in as many columns as fit."""
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int], kind: str = "") -> str:
    """A table; `text_columns` are set left, the others are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        marks = [' class="text"' if column in text_columns else "" for column in range(len(row))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, row, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    return f'<div class="wide"><table class="{escape(kind)}">{head}<tbody>\n{body}\n</tbody></table></div>'


def details(summary: str, inner: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def quote(role: str, text: str) -> str:
    return f'<blockquote><span class="role">{escape(role)}</span>\n{escape(text)}</blockquote>'
