"""Render nbs/index.ipynb as README.md."""
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def from_root(text):
    "Links relative to nbs/, or to a file of the repository, as links relative to the repository's root."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    text = re.sub(r"\]\((?!https?:|#)", "](nbs/", text)
    return text.replace(f"]({settings['DEFAULT']['git_url']}/blob/{settings['DEFAULT']['branch']}/", "](")


def render(path):
    "The notebook as Markdown for the repository's root, without hidden cells, directives and progress bars."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    for c in nb.cells:
        c.source = re.sub(r"^#\|.*\n", "", c.source, flags=re.M)
        if c.cell_type == "code":
            c.outputs = [o for o in c.outputs if "text/html" not in o.get("data", {})]
    nb.metadata.language_info = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"\n{3,}", "\n\n", from_root(text)).strip()
    return f"<!-- Made from nbs/index.ipynb by `make readme`; edit that. -->\n\n{text}\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(ROOT / "nbs" / "index.ipynb"), encoding="utf-8")
