"The exploration notebook in JupyterLab, moved by a browser: what changes on the page when a control does."
import json, os, re, shutil, socket, subprocess, sys, time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
SHOTS = ROOT/'tests/screenshots'
TOKEN = 'for-this-test-only'

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def settings(folder):
    "Settings of JupyterLab under which every cell is on the page, seen or not, and nothing is asked or fetched."
    for plugin, values in {'notebook-extension/tracker': dict(windowingMode='none', autoStartDefaultKernel=True), 'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}.items():
        path = folder/f'@jupyterlab/{plugin}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return folder

def answers(url):
    try: return urlopen(url, timeout=5).status == 200
    except OSError: return False

@pytest.fixture(scope='module')
def chromium():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not path: pytest.skip('no chromium: apt-get install chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser
        browser.close()

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on loopback, on a copy of the notebook."
    pytest.importorskip('jupyterlab')
    home, port = tmp_path_factory.mktemp('lab'), free_port()
    (home/'nbs').mkdir()
    shutil.copy(ROOT/'nbs/explore/explore.ipynb', home/'nbs')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONPATH': str(ROOT), 'IPYTHONDIR': str(home/'ipython'), 'JUPYTER_CONFIG_DIR': str(home/'config'), 'JUPYTER_RUNTIME_DIR': str(home/'runtime')}
    with open(home/'log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={TOKEN}', f'--ServerApp.root_dir={home/"nbs"}',
                                    f'--LabApp.user_settings_dir={settings(home/"settings")}', f'--LabApp.workspaces_dir={home/"workspaces"}', '--LabApp.expose_app_in_browser=True'], env=env, stdout=log, stderr=log)
    try:
        end = time.time() + 60
        while not answers(f'http://127.0.0.1:{port}/api?token={TOKEN}'):
            assert process.poll() is None and time.time() < end, (home/'log').read_text()[-2000:]
            time.sleep(.2)
        yield f'http://127.0.0.1:{port}/lab/tree/explore.ipynb?token={TOKEN}'
    finally:
        process.terminate()
        try: process.wait(30)
        except subprocess.TimeoutExpired: process.kill()

@pytest.fixture(scope='module')
def page(lab, chromium):
    "The notebook, all of its cells run."
    SHOTS.mkdir(exist_ok=True)
    page = chromium.new_page(viewport=dict(width=1400, height=1100))
    page.set_default_timeout(30_000)
    page.goto(lab)
    page.wait_for_function('window.jupyterapp && document.querySelectorAll(".jp-CodeCell").length > 5')
    page.wait_for_function('window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === "idle"')
    page.evaluate('window.jupyterapp.commands.execute("notebook:run-all-cells")')
    try: page.wait_for_function('() => [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")].every(o => /\\[\\d+\\]/.test(o.textContent))', timeout=120_000)
    finally: page.screenshot(path=SHOTS/'all_cells_run.png')
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert not errors, errors[0][-2000:]
    return page

def panel(page, call):
    "What the cell shows that ends with a call of this function."
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs/explore/explore.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    i, = [i for i, source in enumerate(cells) if source.rstrip().splitlines()[-1].startswith(f'{call}(')]
    return page.locator('.jp-CodeCell').nth(i).locator('.jp-OutputArea-output:has(.widget-box)')

def picture(o): return o.locator('img').first.get_attribute('src')
def changed(page, o, before): page.wait_for_function('([o, before]) => o.querySelector("img").src !== before', arg=[o.element_handle(), before])
def says(page, o, text): page.wait_for_function('([o, text]) => new RegExp(text).test(o.textContent)', arg=[o.element_handle(), text])
def shot(o, name): o.scroll_into_view_if_needed(); o.screenshot(path=SHOTS/f'{name}.png')
def entropy(o): return float(re.search(r'mean entropy ([\d.]+)', o.inner_text())[1])


def test_temperature(page):
    lab = panel(page, 'temperature_lab')
    shot(lab, 'temperature_first')
    before, warm = picture(lab), entropy(lab)
    handle = lab.locator('.widget-hslider', has_text='τ').locator('.noUi-handle')
    handle.focus()
    for _ in range(8): handle.press('ArrowLeft')
    changed(page, lab, before)
    says(page, lab, 'mean entropy [01]\\.')
    page.wait_for_function('([o, warm]) => parseFloat(/mean entropy ([\\d.]+)/.exec(o.textContent)[1]) < warm - .2', arg=[lab.element_handle(), warm])
    shot(lab, 'temperature_lower')
    cold = entropy(lab)
    lab.locator('select').nth(1).select_option('depth 14')
    page.wait_for_function('([o, cold]) => parseFloat(/mean entropy ([\\d.]+)/.exec(o.textContent)[1]) !== cold', arg=[lab.element_handle(), cold])

def test_disagreements(page):
    found = panel(page, 'disagreements')
    before = picture(found)
    found.get_by_role('button', name='next').click()
    changed(page, found, before)
    says(page, found, 'page 2 of')
    shot(found, 'disagreements_page_2')

def test_policies_and_landscape(page):
    viewer = panel(page, 'augmentation_viewer')
    before = picture(viewer)
    viewer.locator('.widget-hslider', has_text='draw').locator('.noUi-handle').press('ArrowRight')
    changed(page, viewer, before)
    shot(viewer, 'policies')
    plane = panel(page, 'landscape_viewer')
    before = picture(plane)
    handle = plane.locator('.widget-hslider', has_text='λ').locator('.noUi-handle')
    for _ in range(5): handle.press('PageUp')
    changed(page, plane, before)
    assert '(0.00, 0.00)' not in plane.inner_text()
    shot(plane, 'plane')

def test_the_landscape_is_read_by_pointing(page):
    plane = panel(page, 'landscape_viewer')
    shown = plane.locator('img').first
    shown.scroll_into_view_if_needed()
    box = shown.bounding_box()
    at = lambda x, y: (box['x'] + x*box['width'], box['y'] + y*box['height'])     # shares of the picture
    point = lambda: re.search(r'grid \((-?[\d.]+), (-?[\d.]+)\): distillation ([\d.]+)', plane.inner_text())
    page.mouse.move(*at(.2, .5))
    says(page, plane, 'nearest point of the grid')
    left, before = point().groups(), picture(plane)
    page.mouse.move(*at(.3, .3))
    page.wait_for_function('([o, left]) => !o.textContent.includes(left)', arg=[plane.element_handle(), f'({left[0]}, {left[1]})'])
    right = point().groups()
    assert float(right[0]) > float(left[0]) and float(right[1]) > float(left[1]) and right[2] != left[2]
    assert picture(plane) == before
    shot(plane, 'plane_hovered')
    page.mouse.click(*at(.2, .5))
    changed(page, plane, before)
    says(page, plane, re.escape(f'({left[0]}, {left[1]})') + '[^:]')         # in the table, too
    shot(plane, 'plane_clicked')

def test_runs_are_filtered(page):
    runs = panel(page, 'run_browser')
    assert '4 of 4 runs' in runs.inner_text() and len(runs.locator('table tr').all()) == 5
    before = picture(runs)
    text = runs.locator('input[type=text]')
    text.fill('mixup'); text.press('Enter')
    says(page, runs, '2 of 4 runs')
    assert len(runs.locator('table tr').all()) == 3 and len(runs.locator('select[multiple] option').all()) == 2
    changed(page, runs, before)
    runs.locator('select[multiple]').select_option(index=[0, 1])
    says(page, runs, 'settings in which runs')
    runs.locator('summary', has_text='differ').click()
    shot(runs, 'runs_filtered')

def test_a_live_run_is_started_stopped_and_resumed(page):
    live = panel(page, 'live_run')
    button = lambda name: live.get_by_role('button', name=name)
    epochs = live.locator('input[type=number]').nth(2)                        # trial, members, epochs
    epochs.fill('3000'); epochs.press('Enter')
    says(page, live, 'trainer.num_epochs=3000')
    before = picture(live)
    button('Start').click()
    says(page, live, 'running')
    assert button('Start').is_disabled() and button('Stop').is_enabled()
    changed(page, live, before)                                              # the first epochs
    page.wait_for_function('o => o.querySelectorAll("table tr").length > 1', arg=live.element_handle())
    shot(live, 'live_running')
    button('Stop').click()
    says(page, live, 'interrupted')
    page.wait_for_function('o => !/running/.test(o.textContent)', arg=live.element_handle())
    shot(live, 'live_stopped')
    button('Resume').click()
    says(page, live, 'going on with')
    says(page, live, 'running')
    button('Stop').click()
    page.wait_for_function('o => !/process \\d+, running/.test(o.textContent)', arg=live.element_handle())
    assert 'interrupted' in live.inner_text()

def test_a_live_run_of_texts(page):
    live = panel(page, 'live_run')
    live.get_by_role('button', name='text classification').click()
    says(page, live, 'gnosis-text-classification dataset=sentences')
    before = picture(live)
    live.get_by_role('button', name='Start').click()
    changed(page, live, before)
    page.wait_for_function('o => [...o.querySelectorAll("table th")].some(th => th.textContent === "teacher_0")', arg=live.element_handle())
    live.get_by_role('button', name='Stop').click()
    page.wait_for_function('o => !/process \\d+, /.test(o.textContent)', arg=live.element_handle())
    shot(live, 'live_texts')
