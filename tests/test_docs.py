"The documentation site: nbdev's pages, as Sphinx renders them, and where their links lead."
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

pytest.importorskip('myst_nb', reason='needs what make docs needs')
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'scripts'))
import docs  # noqa: E402

SOURCE = f"{docs.INI['git_url']}/blob/{docs.INI['branch']}/"

@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The site, the notebooks on the way to it, and its broken links."
    home = tmp_path_factory.mktemp('site')
    lost = docs.build(home/'out', home/'work')
    return home/'out', home/'work'/'_proc', lost

@pytest.fixture(scope='session')
def site(built):
    "Processed notebooks by their path below nbs/."
    def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
    return {str(p.relative_to(built[1])): cells(p) for p in built[1].rglob('*.ipynb')}

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
def page(path, cells): return str(Path(path).with_name(front(cells)['output-file']))


def test_every_notebook_is_a_page_with_a_title(site):
    assert set(site) == sources()
    assert all(front(cells)['title'] for cells in site.values())
    assert len({page(*o) for o in site.items()}) == len(site)

def test_every_notebook_is_in_the_sidebar_once():
    def pages(items): return [p for o in items for p in ([o] if isinstance(o, str) else pages(o['contents']))]
    listed = pages(yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar']['contents'])
    assert sorted(listed) == sorted(sources()) and listed[0] == 'index.ipynb'

def test_every_notebook_is_rendered(built, site):
    pages = {str(o.relative_to(built[0])) for o in built[0].rglob('*.html')}
    assert {page(*o) for o in site.items()} <= pages
    text = (built[0]/'distill.html').read_text(encoding='utf-8')
    assert re.search('<td><p><code[^>]*><span class="pre">teacher</span></code></p></td>', text)

def test_every_link_and_anchor_leads_somewhere(built): assert built[2] == []

def test_sources_are_files(site):
    found = (o for cells in site.values() for text in texts(cells) for o in links(text))
    files = {o.removeprefix(SOURCE).partition('#')[0] for o in found if o.startswith(SOURCE)}
    assert len(files) > 60 and [o for o in files if not (ROOT/o).exists()] == []

def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html#there"></a><a href="b.html#gone"></a><a href="#top"></a>'
                                   '<a href="c.html"></a><a href="https://example.org/x"></a><p id="top"></p>'
                                   f'<a href="{docs.SITE}b.html"></a><a href="{docs.SITE}d.html"></a>')
    (tmp_path/'b.html').write_text('<p id="there"></p><img src="none.png">')
    lost = ['a.html: b.html#gone', 'a.html: c.html', f'a.html: {docs.SITE}d.html', 'b.html: none.png']
    assert sorted(docs.broken_links(tmp_path)) == sorted(lost)

def test_a_link_after_a_name_with_a_link_is_found():
    text = '[`ece`](a.ipynb) and `x`, [CAPA](../b.ipynb) and `[c](../b.ipynb)`'
    pages = {'deep/a.ipynb': 'deep/one', 'b.ipynb': 'two'}
    said = docs.rewrite_links(text, 'deep/a.ipynb', pages)
    assert said == '[`ece`](one.ipynb) and `x`, [CAPA](../two.ipynb) and `[c](../b.ipynb)`'

def test_an_entry_has_its_parameters_in_a_table():
    source = '[source](https://x/a.py#L1){target="_blank" style="x"}'
    text = f"""---

{source}

### fit

```python

def fit(
    x:Tensor, # rows | columns
    how:collections.abc.Callable|None=None, # e.g. `max`
    kwargs:VAR_KEYWORD
)->dict: # by name


```

*Fit a line.*"""
    found = docs.api_entry(text)
    assert 'fit(x, how=None, kwargs) -> dict' in found and 'Fit a line.' in found
    assert '| `x` | `Tensor` |  | rows \\| columns |' in found
    assert '| `how` | `Callable\\|None` | `None` | e.g. `max` |' in found
    assert '| *returns* | `dict` | | by name |' in found
    assert docs.api_entry('### something else') == '### something else'

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
