"""The site that `make docs` builds: the Markdown that a code host shows as it is, and pages made from the program.

Pages keep to plain Markdown. What only a site needs is done here: the sidebar is the index page's own list of links,
links to files become pages of highlighted source, and three pages are completed from the program (reference.py).
"""

from __future__ import annotations

import ast
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src")]  # the program that stands beside these pages
import reference  # noqa: E402

project = "ripieno"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx.ext.napoleon"]
# The site's source is the whole repository, so that its links between pages of several folders hold as they are.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md", "examples/*/*.md"]
exclude_patterns = [".*", "docs/_build", "build", "configs", "dist", "runs", "src", "tests"]
html_theme = "furo"
html_title = "ripieno"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
highlight_language = "none"  # indented blocks are formulas
myst_heading_anchors = 4
napoleon_use_param = False  # one line of a docstring may explain several arguments
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Of other libraries there is nothing to link to without a network; of our own inner rooms nothing is promised.
nitpick_ignore_regex = [("py:.*", r"(?!ripieno\.).*|ripieno\.(config|decisions|model|progress|runs)\..*")]

LINKED: set[str] = set()  # files and folders of the repository that pages link to; every build reads all pages
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".txt": "text"}


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add to a page what is made from the program, and to the index the sidebar's list."""
    if make := reference.PAGES.get(docname.removeprefix("docs/")):
        source[0] += make()
    if docname == root_doc:
        for section in source[0].split("\n## ")[1:]:
            title, _, body = section.partition("\n")
            links = re.findall(r"^- \[([^]]+)\]\(([^)]+)\.md\)", body, re.MULTILINE)
            entries = [f"{text} <{page}>" for text, page in links]
            options = [":hidden:", ":titlesonly:", f":caption: {title}"]
            source[0] += "\n".join(["\n```{toctree}", *options, "", *entries, "```\n"])


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Point links to files and folders of the repository to the pages that `source_pages` makes of them."""
    docname = app.env.current_document.docname
    here = Path(app.env.doc2path(docname)).parent
    for link in [*doctree.findall(addnodes.download_reference), *doctree.findall(addnodes.pending_xref)]:
        target = link["reftarget"]
        path = ROOT / target.lstrip("/") if target.startswith("/") else (here / target).resolve()
        if link.get("refdomain") or not path.exists() or not path.is_relative_to(ROOT):
            continue
        name = _name(path)
        LINKED.add(name)
        uri = app.builder.get_relative_uri(docname, f"source/{name}")
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return where the source of a public name begins, as seen from the page of public names."""
    if (place := reference.place(info["module"], info["fullname"])) is None:
        return None
    LINKED.add(name := _name(place[0]))
    return f"../source/{name}.html#line-{place[1]}"


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page of highlighted source for each linked file, and a list for each linked folder."""
    highlight = app.builder.highlighter.highlight_block  # type: ignore[attr-defined]
    for name in sorted(LINKED):
        path = ROOT / name
        if path.is_file():
            text, language = path.read_text(encoding="utf-8"), LANGUAGES.get(path.suffix, "none")
            body = highlight(text, language, lineanchors="line")
        else:
            files = sorted(file for file in path.iterdir() if file.suffix in LANGUAGES)
            body = f"<dl>{''.join(_entry(path, file) for file in files)}</dl>"
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>{body}"}, "page.html"


def _entry(folder: Path, file: Path) -> str:
    """Return a file's name, with a link where it has a page, and what it says of itself."""
    text = file.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) if file.suffix == ".py" else None
    said = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape((about or "").split("\n\n")[0]))
    name = f'<a href="{folder.name}/{file.name}.html">{file.name}</a>' if _name(file) in LINKED else file.name
    return f"<dt>{name}</dt><dd>{said}</dd>"


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def front_door(app: Sphinx, error: Exception | None) -> None:
    """Lead who opens the site's folder to its first page."""
    if error is None:
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx's events; docstrings are made reStructuredText before napoleon reads them."""
    app.connect("source-read", complete)
    app.connect("doctree-read", link_sources, priority=400)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", front_door)
    app.connect("autodoc-process-docstring", reference.to_rst, priority=400)
    app.connect("autodoc-process-signature", reference.shorten)
