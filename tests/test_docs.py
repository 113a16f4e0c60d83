"The documentation site as far as it can be made without Quarto: nbdev's pages, and where their links lead."
import importlib
import json
import os
import re
import shutil
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import yaml

import processes

ROOT = Path(__file__).parent.parent
INI = ConfigParser(delimiters=['='])
INI.read(ROOT/'settings.ini', encoding='utf-8')
INI = INI['DEFAULT']
SITE, SOURCE = f"{INI['doc_host']}{INI['doc_baseurl']}/", f"{INI['git_url']}/blob/{INI['branch']}/"
CODE = """
import nbdev.quarto, os
nbdev.quarto._ensure_quarto = lambda: None
nbdev.quarto.nbdev_proc_nbs(n_workers=0)
os._exit(0)                          # at once: sixty shells of IPython would tidy up for twice as long
"""

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Pre-processed notebooks by their path below nbs/, as Quarto would get them."
    home = tmp_path_factory.mktemp('site')
    unwanted = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'screenshots', 'experiments')
    for o in ('nbs', 'gnosis_nb', 'tests'): shutil.copytree(ROOT/o, home/o, ignore=unwanted)
    shutil.copy(ROOT/'settings.ini', home)
    out = processes.run(CODE, cwd=home/'nbs')
    assert out.returncode == 0, out.stderr[-2000:]
    def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
    return {str(p.relative_to(home/'_proc')): cells(p) for p in (home/'_proc').rglob('*.ipynb')}

def sources():
    found = (ROOT/'nbs').rglob('*.ipynb')
    return {str(p.relative_to(ROOT/'nbs')) for p in found if '.ipynb_checkpoints' not in p.parts}

def texts(cells):
    "What is shown as Markdown: prose, and the entries of the API."
    for c in cells:
        if c['cell_type'] == 'markdown': yield ''.join(c['source'])
        for o in c.get('outputs', []): yield ''.join(o.get('data', {}).get('text/markdown', ''))

def links(text):
    code = r'```.*?```|`[^`\n]*`(?!\]\()'
    return re.findall(r'\]\(([^)\s]+)\)', re.sub(code, '', text, flags=re.S))

def front(cells): return yaml.safe_load(''.join(cells[0]['source']).strip().strip('-'))
def relative(path, to): return os.path.normpath(Path(path).parent/to)
def page(path, cells): return str(Path(path).with_name(front(cells)['output-file']))


def test_every_notebook_is_a_page_with_a_title(site):
    assert set(site) == sources()
    assert all(front(cells)['title'] for cells in site.values())
    assert len({page(*o) for o in site.items()}) == len(site)

def test_every_notebook_is_in_the_sidebar_once():
    def pages(items): return [p for o in items for p in ([o] if isinstance(o, str) else pages(o['contents']))]
    listed = pages(yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar']['contents'])
    assert sorted(listed) == sorted(sources()) and listed[0] == 'index.ipynb'

def test_every_link_leads_somewhere(site):
    pages, lost = {page(*o) for o in site.items()}, []
    for path, cells in site.items():
        for to in (urldefrag(o).url for text in texts(cells) for o in links(text)):
            if to.startswith(SITE): found = to.removeprefix(SITE) in pages
            elif to.startswith(SOURCE): found = (ROOT/to.removeprefix(SOURCE)).exists()
            elif re.match('https?:', to): found = True
            else: found = not to or relative(path, to) in site or (ROOT/'nbs'/relative(path, to)).is_file()
            if not found: lost.append(f'{path}: {to}')
    assert lost == []

def test_links_of_the_readme_lead_to_files():
    pages = 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'
    text = '\n'.join((ROOT/o).read_text(encoding='utf-8') for o in pages)
    to = [o for o in links(text) if not re.match('https?:|#', o)]
    assert len(to) >= 6 and [o for o in to if not (ROOT/o).exists()] == []

def test_every_public_function_has_an_entry_and_a_link_to_its_source(site):
    def name(k): return k.rsplit('.', 1)[1]
    syms = importlib.import_module('gnosis_nb._modidx').d['syms']
    known = [k for module in syms.values() for k in module if k.rsplit('.', 1)[0] in syms]
    count = Counter(map(name, known))          # nbdev links a name that two modules have to one of them
    wanted = {k for k in known if count[name(k)] == 1 and not name(k).startswith('_')}
    shown = {}
    for cells in site.values():
        for text in texts(cells):
            entry = rf'\[source\]\({re.escape(SOURCE)}(\S+)#L(\d+)\).*?^###+ (\S+)'
            if m := re.search(entry, text, flags=re.S | re.M):
                path, line, title = m.groups()
                shown[f"{path.removesuffix('.py').replace('/', '.')}.{title}"] = (path, int(line))
    assert wanted - set(shown) == set() and len(wanted) > 200
    for k in wanted:
        path, line = shown[k]
        source = (ROOT/path).read_text(encoding='utf-8').splitlines()[line - 1]
        assert re.match(rf'\s*(@|(async )?def {name(k)}\b|class {name(k)}\b)', source), k

def test_nothing_on_a_page_is_an_error(site):
    outputs = [(path, o) for path, cells in site.items() for c in cells for o in c.get('outputs', [])]
    bad = [(path, o) for path, o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert bad == []
