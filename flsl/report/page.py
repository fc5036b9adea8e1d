"""Markdown as a page of HTML that needs no other file and no network."""

from __future__ import annotations

import html
import re
from itertools import pairwise

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 78rem; margin: 1.5rem auto;
  padding: 0 1.5rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1.05rem } code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f4f4f4 }
code { padding: .1em .3em } pre { padding: .8rem; overflow-x: auto } pre code { padding: 0 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0 }
th, td { border: 1px solid #ddd; padding: .3rem .6rem; text-align: left; white-space: nowrap }
th { background: #f4f4f4; white-space: normal } tr:nth-child(even) td { background: #fafafa }
"""


def page(markdown: str, title: str) -> str:
    """Return ``markdown`` as a whole HTML page; headings can be linked to as on GitHub, HTML in the text stays text."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", _anchor(inline.content))
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
