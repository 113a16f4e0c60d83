"""Build the documentation site from the notebooks: nbdev's pages, rendered by Sphinx. Needs no network."""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml

ROOT = Path(__file__).parent.parent
INI = ConfigParser(delimiters=["="])
INI.read(ROOT / "settings.ini", encoding="utf-8")
INI = INI["DEFAULT"]
SITE = f"{INI['doc_host']}{INI['doc_baseurl']}/"
PROCESS = """
import os
from nbdev.serve import proc_nbs
proc_nbs(n_workers=0, force=True)
os._exit(0)                          # at once: sixty shells of IPython would tidy up for twice as long
"""


def process(home):
    "Copy what pages are made of to `home`, and let nbdev process the notebooks. Returns their folder."
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "screenshots", "experiments")
    for o in ("nbs", "gnosis_nb", "tests"):
        shutil.copytree(ROOT / o, home / o, ignore=unwanted)
    shutil.copy(ROOT / "settings.ini", home)
    # in nbs/, where notebooks find what they import from ../tests
    out = subprocess.run([sys.executable, "-c", PROCESS], cwd=home / "nbs", capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(home)})
    if out.returncode:
        raise RuntimeError(f"nbdev: expected processed notebooks: {out.stderr[-2000:]}")
    if not (home / "_proc").exists():
        raise RuntimeError(f"nbdev: expected processed notebooks; it leaves out all that lie in {home}")
    return home / "_proc"


def read_pages(folder):
    "Processed notebooks by their path, each with its front matter."
    pages = {}
    for path in sorted(folder.rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        front = yaml.safe_load("".join(nb["cells"][0]["source"]).strip().strip("-"))
        pages[path.relative_to(folder).as_posix()] = front, nb
    return pages


def address(path, front):
    "The page of a notebook without its ending: tutorials/new_loss, data.loaders."
    return (Path(path).parent / Path(front["output-file"]).stem).as_posix()


# Markdown

PRIVATE = re.compile(rf"\[(`[^`]*`)\]\({re.escape(SITE)}[^)#]*#_[^)]*\)")   # names without an entry
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)


def rewrite_links(text, path, addresses):
    "Links to pages, by the site's address or to a notebook, as Sphinx knows them."
    here = Path(addresses[path]).parent
    known = set(addresses.values())

    def target(to):
        to, anchor = urldefrag(to)
        if to.startswith(SITE):
            page = to.removeprefix(SITE).removesuffix(".html")
        elif to.endswith(".ipynb"):
            page = addresses.get(os.path.normpath(Path(path).parent / to))
        else:
            page = None
        if page not in known:
            return None
        return os.path.relpath(f"{page}.ipynb", here) + (f"#{anchor}" if anchor else "")

    def rewritten(m):
        return f"]({target(m[1]) or m[1]})"

    parts = CODE.split(PRIVATE.sub(r"\1", text))
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", rewritten, o) for o in parts[::2]]
    return "".join(parts)


def rewrite_html(html, path, addresses):
    "Links to notebooks in an output of HTML, as links to pages."
    def rewritten(m):
        page = addresses.get(os.path.normpath(Path(path).parent / m[1]))
        return f'href="{os.path.relpath(page + ".html", Path(addresses[path]).parent)}' if page else m[0]

    return re.sub(r'href="([^":#]+\.ipynb)', rewritten, html)


def cell_text(value):
    "A cell of a Markdown table."
    return " ".join(value.split()).replace("|", r"\|")


def code_text(value):
    value = re.sub(r"\b[a-z_]\w*\.(?=[\w.]*[A-Z])", "", value)   # collections.abc.Callable
    return f"`{cell_text(value)}`" if value and value != "NoneType" else ""


def parameter(line):
    "Name, type, default and comment of a line of a signature that has one parameter."
    code, _, comment = line.strip().partition(" # ")
    m = re.fullmatch(r"(\*{0,2}\w+)(?::([^=]+))?(?:=(.*))?", code.strip().rstrip(","))
    return m and (m[1], m[2] or "", m[3] or "", comment)


def api_entry(text):
    "An entry of the API as nbdev writes it, with its parameters in a table; as it is if it has another form."
    form = r"---\s+\[source\]\((?P<source>[^)]+)\)\S*(?: [^\n]*)?\n+(?P<level>#+) (?P<name>\S+)\n+" \
           r"```python\n\s*(?P<code>.*?)\s*```\s*(?P<doc>.*)"
    m = re.fullmatch(form, text.strip(), re.S)
    if not m:
        return text
    first, *lines = m["code"].split("\n")
    lines = [o for o in lines if o.strip()]
    last = lines.pop() if lines else ""
    found = [parameter(o) for o in lines]
    returns = re.fullmatch(r"\)(?:\s*->\s*(.+?))?:?(?: # (.*))?", last.strip())
    doc = re.sub(r"^\*(.*)\*$", r"\1", m["doc"].strip(), flags=re.S)
    head = [f'[source]({m["source"]}){{.api-source}}', "", f'{m["level"]} {m["name"]}', ""]
    if not returns or not all(found):
        return "\n".join([*head, "```python", m["code"].strip(), "```", "", doc])
    kind = first.split()[0]
    shown = ", ".join(n if n.startswith("*") or not d else f"{n}={d}" for n, _, d, _ in found)
    result, what = (returns[1] or "").rstrip(":").strip(), returns[2] or ""
    arrow = f" -> {result}" if result else ""
    name = f"class {m['name']}" if kind == "class" else m["name"]
    rows = [f"| `{n}` | {code_text(t)} | {code_text(d)} | {cell_text(c)} |" for n, t, d, c in found]
    if result or what:
        rows.append(f"| *returns* | {code_text(result)} | | {cell_text(what)} |")
    table = ["{.api}", "| | type | default | |", "|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join([*head, "```python", f"{name}({shown}){arrow}", "```", "", doc, "", *table])


def after_title(path):
    "Prose below title and summary in a notebook's first cell, which nbdev leaves out."
    nb = json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))
    text = "".join(nb["cells"][0]["source"]).strip()
    return re.sub(r"\A#[^\n]*\n*(>.*?(\n\n|\Z))?", "", text, flags=re.S).strip()


def convert(path, front, nb, addresses):
    "A processed notebook as MyST-NB reads it: its title as a heading, entries of the API as Markdown."
    def markdown(text):
        return dict(cell_type="markdown", metadata={}, source=rewrite_links(text, path, addresses))

    lead = " ".join(str(front.get("description") or "").split())
    cells = [markdown(f"# {front['title']}\n\n" + (f"{{.lead}}\n{lead}\n" if lead else "")),
             markdown(after_title(path))]
    for c in nb["cells"][1:]:
        source = "".join(c["source"])
        shown = [o.get("data", {}) for o in c.get("outputs", [])]
        entries = [o["text/markdown"] for o in shown if "text/markdown" in o]
        if c["cell_type"] == "markdown":
            cells.append(markdown(re.sub(r"^<!-- WARNING.*?-->\s*", "", source)))
        elif "#| echo: false" in source and entries:
            cells += [markdown(api_entry("".join(o))) for o in entries]
        else:
            c["source"] = re.sub(r"^#\|.*\n", "", source, flags=re.M)
            c["metadata"] = dict(tags=["remove-input"]) if "#| echo: false" in source else {}
            for o in c.get("outputs", []):
                if html := o.get("data", {}).get("text/html"):
                    o["data"]["text/html"] = rewrite_html("".join(html), path, addresses)
            cells.append(c)
    for i, c in enumerate(cells):
        c["id"] = f"cell-{i}"
    metadata = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"),
                    language_info=dict(name="python"))
    return dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)


# Contents

def toctree(names, depth=1):
    return "\n".join(["```{toctree}", ":hidden:", f":maxdepth: {depth}", "", *names, "```", ""])


def listed(paths, pages, addresses):
    "Lines with the titles of pages and what they are about."
    lines = []
    for o in paths:
        front = pages[o][0]
        about = " ".join(str(front.get("description") or "").split())
        lines += [f"[{front['title']}](/{addresses[o]}.ipynb)", f": {about or '…'}", ""]
    return lines


def section_page(title, paths, pages, addresses):
    "A page that lists the pages of a section."
    tree = toctree([f"/{addresses[o]}" for o in paths])
    return "\n".join([f"# {title}", "", *listed(paths, pages, addresses), tree])


def reference_page(floors, pages, addresses):
    "A page that lists all chapters."
    lines = ["# Reference", "", "Each chapter is a notebook and a module; a module uses those before it.", ""]
    for name, title, paths in floors:
        lines += [f"## [{title}](/{name}.md)", "", *listed(paths, pages, addresses)]
    return "\n".join([*lines, toctree([f"/{name}" for name, *_ in floors], 2)])


def sections():
    "Pairs of title and notebooks, from nbs/sidebar.yml; those that begin with a number are the chapters."
    text = (ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8")
    contents = yaml.safe_load(text)["website"]["sidebar"]["contents"]
    return [(o["section"], o["contents"]) for o in contents if isinstance(o, dict)]


def slug(title): return re.sub(r"\W+", "-", title.lower()).strip("-")


def write_source(pages, source, assets):
    "Everything that Sphinx reads."
    addresses = {path: address(path, front) for path, (front, _) in pages.items()}
    for path, (front, nb) in pages.items():
        out = source / f"{addresses[path]}.ipynb"
        out.parent.mkdir(parents=True, exist_ok=True)
        nb = convert(path, front, nb, addresses)
        if path == "index.ipynb":
            names, floors = [], []
            for title, paths in sections():
                name = f"sections/{slug(title)}"
                (floors if title[0].isdigit() else names).append((name, title, paths))
                page = source / f"{name}.md"
                page.parent.mkdir(exist_ok=True)
                page.write_text(section_page(title, paths, pages, addresses), encoding="utf-8")
            text = reference_page(floors, pages, addresses)
            (source / "sections" / "reference.md").write_text(text, encoding="utf-8")
            tree = toctree([*(o for o, *_ in names), "sections/reference"], 2)
            nb["cells"].append(dict(cell_type="markdown", metadata={}, id="contents", source=tree))
        out.write_text(json.dumps(nb, ensure_ascii=False), encoding="utf-8")
    shutil.copytree(assets / "images", source / "images", dirs_exist_ok=True)


def render(source, out):
    "Run Sphinx. Raises `RuntimeError` with its warnings, if there are any."
    config = ROOT / "docs"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", config, "-d", source.parent / "doctrees",
         source, out], capture_output=True, text=True)
    if done.returncode or done.stderr.strip():
        raise RuntimeError(f"Sphinx: expected no warnings:\n{done.stderr[-6000:]}")


# Links

class Page(HTMLParser):
    "What a page links to, and where it can be linked to."

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[o] for o in ("id", "name") if attrs.get(o)}
        self.links += [attrs[o] for o in ("href", "src") if attrs.get(o)]


def broken_links(out):
    "Links of a site to files or anchors that it does not have: 'page: link'."
    pages = {o.resolve(): Page(o) for o in out.rglob("*.html") if "_static" not in o.parts}
    lost = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            if re.match(r"[a-z]+:|//", link) and not link.startswith(SITE):
                continue
            to, anchor = urldefrag(link)
            if to.startswith(SITE):
                file = (out / to.removeprefix(SITE)).resolve()
            else:
                file = (path.parent / unquote(to.partition("?")[0])).resolve() if to else path
            if not file.exists():
                lost.append(f"{path.relative_to(out.resolve())}: {link}")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                lost.append(f"{path.relative_to(out.resolve())}: {link}")
    return lost


def build(out, work):
    "Build the site in `out`, with files on the way in `work`. Returns its broken links."
    for o in (out, work):
        shutil.rmtree(o, ignore_errors=True)
        o.mkdir(parents=True)
    folder = process(work)
    write_source(read_pages(folder), work / "source", ROOT / "nbs")
    render(work / "source", work / "html")      # MyST-NB leaves a copy of the notebooks beside it
    shutil.copytree(work / "html", out, dirs_exist_ok=True)
    return broken_links(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / INI["doc_path"])
    out = parser.parse_args().out
    try:
        with tempfile.TemporaryDirectory() as work:    # not below `_proc`, which nbdev passes over
            lost = build(out, Path(work) / "site")
    except RuntimeError as e:
        sys.exit(f"error: {e}")
    if lost:
        sys.exit("broken links:\n" + "\n".join(lost))
    print(f"{len(list(out.rglob('*.html')))} pages in {out}; all links and anchors lead somewhere")
