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
    "Settings of JupyterLab under which every cell is on the page and nothing is asked or fetched."
    plugins = {'notebook-extension/tracker': dict(windowingMode='none', autoStartDefaultKernel=True),
               'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}
    for plugin, values in plugins.items():
        path = folder/f'@jupyterlab/{plugin}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return folder

def answers(url):
    try: return urlopen(url, timeout=5).status == 200
    except OSError: return False

@pytest.fixture(scope='module')
def chromium():
    sync_api = pytest.importorskip('playwright.sync_api', reason='no playwright: pip install playwright')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
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
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONPATH': str(ROOT)}
    env |= {k: str(home/k) for k in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR')}
    options = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
               '--ServerApp.port_retries=0', f'--IdentityProvider.token={TOKEN}',
               f'--ServerApp.root_dir={home/"nbs"}',
               f'--LabApp.user_settings_dir={settings(home/"settings")}',
               f'--LabApp.workspaces_dir={home/"workspaces"}', '--LabApp.expose_app_in_browser=True']
    with open(home/'log', 'w') as log:
        command = [sys.executable, '-m', 'jupyterlab', *options]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
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

KERNEL_IS_IDLE = 'window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === "idle"'
CELLS_ARE_RUN = """() => [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")]
                   .every(o => /\\[\\d+\\]/.test(o.textContent))"""

@pytest.fixture(scope='module')
def page(lab, chromium):
    "The notebook, all of its cells run."
    SHOTS.mkdir(exist_ok=True)
    page = chromium.new_page(viewport=dict(width=1400, height=1100))
    page.set_default_timeout(120_000)                                     # a guard, for busy machines
    page.goto(lab)
    page.wait_for_function('window.jupyterapp && document.querySelectorAll(".jp-CodeCell").length > 5')
    page.wait_for_function(KERNEL_IS_IDLE)
    page.evaluate('window.jupyterapp.commands.execute("notebook:run-all-cells")')
    try: page.wait_for_function(CELLS_ARE_RUN, timeout=300_000)
    finally: page.screenshot(path=SHOTS/'all_cells_run.png')
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert not errors, errors[0][-2000:]
    return page

def panel(page, call):
    "What the cell shows that ends with a call of this function."
    nb = json.loads((ROOT/'nbs/explore/explore.ipynb').read_text())
    cells = [''.join(c['source']).rstrip() for c in nb['cells'] if c['cell_type'] == 'code']
    i, = [i for i, source in enumerate(cells) if source.splitlines()[-1].startswith(f'{call}(')]
    return page.locator('.jp-CodeCell').nth(i).locator('.jp-OutputArea-output:has(.widget-box)')

def picture(o): return o.locator('img').first.get_attribute('src')
def wait(page, o, condition, *args):
    "Wait for a condition in JavaScript on an element `o` and arguments `a`, `b`."
    page.wait_for_function(f'([o, a, b]) => {condition}', arg=[o.element_handle(), *args])
def changed(page, o, before): wait(page, o, 'o.querySelector("img").src !== a', before)
def says(page, o, text): wait(page, o, 'new RegExp(a).test(o.textContent)', text)
def says_no_more(page, o, text): wait(page, o, '!(new RegExp(a).test(o.textContent))', text)
def shot(o, name): o.scroll_into_view_if_needed(); o.screenshot(path=SHOTS/f'{name}.png')

MEAN = 'parseFloat(/mean entropy ([\\d.]+)/.exec(o.textContent)[1])'
def entropy(o): return float(re.search(r'mean entropy ([\d.]+)', o.inner_text())[1])


def test_temperature(page):
    lab = panel(page, 'temperature_lab')
    shot(lab, 'temperature_first')
    before, warm = picture(lab), entropy(lab)
    handle = lab.locator('.widget-hslider', has_text='τ').locator('.noUi-handle')
    handle.focus()
    for _ in range(8): handle.press('ArrowLeft')
    changed(page, lab, before)
    wait(page, lab, f'{MEAN} < a - .2', warm)
    shot(lab, 'temperature_lower')

def test_teacher_is_chosen(page):
    lab = panel(page, 'temperature_lab')
    before = entropy(lab)
    lab.locator('select').nth(1).select_option('depth 14')
    wait(page, lab, f'{MEAN} !== a', before)

def test_disagreements(page):
    found = panel(page, 'disagreements')
    before = picture(found)
    found.get_by_role('button', name='next').click()
    changed(page, found, before)
    says(page, found, 'page 2 of')
    shot(found, 'disagreements_page_2')

def test_policies(page):
    viewer = panel(page, 'augmentation_viewer')
    before = picture(viewer)
    viewer.locator('.widget-hslider', has_text='draw').locator('.noUi-handle').press('ArrowRight')
    changed(page, viewer, before)
    shot(viewer, 'policies')

def test_landscape_along_the_line(page):
    plane = panel(page, 'landscape_viewer')
    before = picture(plane)
    handle = plane.locator('.widget-hslider', has_text='λ').locator('.noUi-handle')
    for _ in range(5): handle.press('PageUp')
    changed(page, plane, before)
    assert '(0.00, 0.00)' not in plane.inner_text()
    shot(plane, 'plane')

def test_landscape_is_read_by_pointing(page):
    plane = panel(page, 'landscape_viewer')
    shown = plane.locator('img').first
    shown.scroll_into_view_if_needed()
    box = shown.bounding_box()
    def at(x, y): return box['x'] + x*box['width'], box['y'] + y*box['height']     # shares of the picture
    nearest = re.compile(r'grid \((-?[\d.]+), (-?[\d.]+)\): \w+ ([\d.]+)')
    def point(): return nearest.search(plane.inner_text()).groups()
    page.mouse.move(*at(.2, .5))
    says(page, plane, 'nearest point of the grid')
    left, before = point(), picture(plane)
    place = re.escape(f'({left[0]}, {left[1]})')
    page.mouse.move(*at(.3, .3))
    says_no_more(page, plane, place)
    right = point()
    assert float(right[0]) > float(left[0]) and float(right[1]) > float(left[1]) and right[2] != left[2]
    assert picture(plane) == before
    def near(x): return '|'.join(re.escape(f'{float(x) + i/100:.2f}') for i in (-2, -1, 0, 1, 2))
    page.mouse.click(*at(.2, .5))
    changed(page, plane, before)
    says(page, plane, rf'kl\s*\(({near(left[0])}), ({near(left[1])})\)')   # in the table; sliders have steps
    shot(plane, 'plane_clicked')

def test_runs_are_filtered(page):
    runs = panel(page, 'run_browser')
    assert '4 of 4 runs' in runs.inner_text() and len(runs.locator('table tr').all()) == 5
    before = picture(runs)
    text = runs.locator('input[type=text]')
    text.fill('mixup'); text.press('Enter')
    says(page, runs, '2 of 4 runs')
    assert len(runs.locator('table tr').all()) == 3
    assert len(runs.locator('select[multiple] option').all()) == 2
    changed(page, runs, before)
    runs.locator('select[multiple]').select_option(index=[0, 1])
    says(page, runs, 'settings in which runs')
    runs.locator('summary', has_text='differ').click()
    shot(runs, 'runs_filtered')

def press(live, name): live.get_by_role('button', name=name).click()

def test_live_run_is_started_and_stopped(page):
    live = panel(page, 'live_run')
    epochs = live.locator('input[type=number]').nth(2)                       # trial, members, epochs
    epochs.fill('3000'); epochs.press('Enter')
    says(page, live, 'trainer.num_epochs=3000')
    before = picture(live)
    press(live, 'Start')
    says(page, live, 'process \\d+, ')
    assert live.get_by_role('button', name='Start').is_disabled()
    changed(page, live, before)                                              # the first epochs
    wait(page, live, 'o.querySelectorAll("table tr").length > 1')
    shot(live, 'live_running')
    press(live, 'Stop')
    says_no_more(page, live, 'process \\d+, ')
    says(page, live, 'interrupted')
    shot(live, 'live_stopped')
    assert live.get_by_role('button', name='Resume').is_enabled()            # `test_live_run` presses it

def test_live_run_of_texts(page):
    "The form is another one; `test_live_run` starts it."
    live = panel(page, 'live_run')
    press(live, 'text classification')
    says(page, live, 'gnosis-text-classification .experiment=sentences')
    assert live.get_by_role('button', name='Start').is_enabled()
    shot(live, 'live_texts')
