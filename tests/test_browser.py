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
        end = time.time() + 300
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
    page = chromium.new_page(viewport=dict(width=1400, height=900))
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

def wait(page, o, condition, *args):
    "Wait for a condition in JavaScript on an element `o` and arguments `a`, `b`."
    page.wait_for_function(f'([o, a, b]) => {condition}', arg=[o.element_handle(), *args])
def says(page, o, text): wait(page, o, 'new RegExp(a).test(o.textContent)', text)
def says_no_more(page, o, text): wait(page, o, '!(new RegExp(a).test(o.textContent))', text)
def shot(o, name): o.scroll_into_view_if_needed(); o.screenshot(path=SHOTS/f'{name}.png')

DRAWN = 'o.querySelector(".gnosis-picture")'
def picture(o): return o.locator('.gnosis-picture').first
def frames(o): return int(picture(o).get_attribute('data-frames'))
ALL_FRAMES = '[...document.querySelectorAll(".gnosis-picture")].map(o => o.dataset.frames).join()'
def at_rest(page):
    "Wait until the kernel has drawn what was asked for, and the page has shown it."
    # A control that was moved while the kernel was busy speaks again when it is idle, hence more than once.
    shown = ''
    while shown != (now := page.evaluate(ALL_FRAMES)):
        shown = now
        page.wait_for_function(KERNEL_IS_IDLE)
        page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
        page.wait_for_function('!document.querySelector(".gnosis-picture[data-busy]")')

def changed(page, o, before): wait(page, o, f'+{DRAWN}.dataset.frames > a', before)
def drawn(page, o, count):
    "Do what `count` says about the traces and layout that the page shows."
    return o.evaluate(f'o => (({{data, layout}}) => {count})({DRAWN})')

def point(page, o, axes, x, y):
    "Where coordinates of a picture's axes are on the screen."
    picture(o).scroll_into_view_if_needed()
    x, y = o.evaluate(f"""(o, [axes, x, y]) => {{
        const box = {DRAWN}, l = box._fullLayout, r = box.getBoundingClientRect()
        return [r.x + l['xaxis' + axes]._offset + l['xaxis' + axes].c2p(x),
                r.y + l['yaxis' + axes]._offset + l['yaxis' + axes].c2p(y)]}}""", [axes, x, y])
    return x, y

def first_point(page, o, axes, trace):
    x, y = o.evaluate(f'(o, i) => {{ const t = {DRAWN}._fullData[i]; return [t.x[0], t.y[0]] }}', trace)
    return point(page, o, axes, x, y)

PANELS = ['temperature_lab', 'disagreements', 'augmentation_viewer', 'landscape_viewer', 'run_browser',
          'live_run']
MEAN = 'parseFloat(/mean entropy ([\\d.]+)/.exec(o.textContent)[1])'
def entropy(o): return float(re.search(r'mean entropy ([\d.]+)', o.inner_text())[1])


@pytest.mark.parametrize('call', PANELS)
def test_controls_are_beside_the_picture_and_all_fits(page, call):
    "Controls at the left, nothing cut; controls and picture in one view of 1,400 × 900."
    o = panel(page, call)
    wait(page, o, f'+{DRAWN}.dataset.frames > 0')
    controls, shown = o.locator('.widget-hbox > .widget-vbox').first.bounding_box(), picture(o).bounding_box()
    assert controls['x'] + controls['width'] <= shown['x'] + 1
    bottom = max(b['y'] + b['height'] for b in (controls, shown))
    assert bottom - min(controls['y'], shown['y']) < 780                     # what JupyterLab leaves of 900
    assert o.evaluate('o => o.scrollWidth <= o.clientWidth + 1')
    shot(o, f'{call}_light')

@pytest.mark.parametrize('call', PANELS)
def test_every_control_has_a_tooltip(page, call):
    bare = panel(page, call).evaluate("""o =>
        [...o.querySelectorAll('.gnosis-controls :is(input, select, button, .noUi-handle)')]
        .filter(c => !c.closest('[title]:not([title=""])')).map(c => c.outerHTML)""")
    assert bare == []

def drag(page, handle, seconds, reach=45):
    "Move a handle to and fro; how many moves there were."
    handle.scroll_into_view_if_needed()
    b, n, end = handle.bounding_box(), 0, time.time() + seconds
    x, y = b['x'] + b['width']/2, b['y'] + b['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    while time.time() < end:
        page.mouse.move(x + reach*((n % 40) - 20)/20, y)
        n += 1
    page.mouse.move(x + reach/3, y)                                       # always the same end
    page.mouse.up()
    return n

def test_temperature_follows_the_hand(page, capsys):
    lab = panel(page, 'temperature_lab')
    before, warm = frames(lab), entropy(lab)
    handle = lab.locator('.widget-hslider', has_text='τ').locator('.noUi-handle')
    start, moves = time.time(), 0
    while frames(lab) <= before + 5 and time.time() < start + 120: moves += drag(page, handle, 3)
    taken = time.time() - start
    changed(page, lab, before + 5)
    with capsys.disabled():
        print(f'\nτ slider: {(frames(lab) - before)/taken:.1f} frames/s, {moves} moves in {taken:.0f} s')
    wait(page, lab, f'{MEAN} !== a', warm)
    title = re.search(r'τ = [\d.]+', drawn(page, lab, 'layout.title.text'))[0]
    wait(page, lab, 'o.querySelector(".widget-html").textContent.includes(a)', title)

def test_the_page_and_the_kernel_have_the_same_probabilities(page):
    "The bars are the page's, the table is the kernel's."
    lab = panel(page, 'temperature_lab')
    lab.locator('.widget-hslider', has_text='τ').locator('.noUi-handle').press('ArrowRight')
    at_rest(page)
    by_page = drawn(page, lab, """(bars => [...Array(5).keys()].map(i =>
        Math.max(...bars.flatMap(t => [...t.y].filter((_, j) => Math.floor(t.x[j]) === i)))))
        (data.filter(t => t.type === 'bar'))""")
    by_kernel = [float(o) for o in lab.locator('table tr td:nth-child(4)').all_inner_texts()]
    assert len(by_kernel) == 5 and by_page == pytest.approx(by_kernel, abs=6e-4)

def test_teacher_is_chosen(page):
    lab = panel(page, 'temperature_lab')
    before = entropy(lab)
    lab.get_by_label('teacher').select_option('depth 14')
    wait(page, lab, f'{MEAN} !== a', before)

def test_an_error_is_a_red_line_with_its_type(page):
    lab = panel(page, 'temperature_lab')
    images = lab.get_by_label('images')
    def choose(n):
        options = images.locator('option').evaluate_all(f'all => all.slice(0, {n}).map(o => o.value)')
        images.select_option(options)
    choose(9)
    says(page, lab, 'ValueError: images=9: expected 1 to 8 images')
    color = lab.locator('b', has_text='ValueError').evaluate('o => getComputedStyle(o).color')
    red, green, blue = map(int, re.findall(r'\d+', color)[:3])
    assert red > 150 > green and red > 150 > blue
    choose(5)
    says_no_more(page, lab, 'ValueError')

def test_disagreements_by_page_and_as_a_grid(page):
    found = panel(page, 'disagreements')
    titles = drawn(page, found, 'JSON.stringify(layout.annotations)')
    assert re.search(r'teacher \d \(\d.\d\d\), student \d', titles)
    before = frames(found)
    found.get_by_role('button', name='next').click()
    says(page, found, 'page 2 of')
    changed(page, found, before)
    found.get_by_role('button', name='grid').click()
    says(page, found, 'page 1 of')
    wait(page, found, f'{DRAWN}.data.filter(t => t.type === "bar").length === 0')
    shot(found, 'disagreements_grid')
    found.get_by_role('button', name='list').click()
    wait(page, found, f'{DRAWN}.data.filter(t => t.type === "bar").length > 0')

@pytest.mark.parametrize('typed, shown', [
    ('99', r'page (\d+) of \1'), ('-3', 'page 1 of'), ('two', 'page 2 of')])
def test_a_page_that_is_not_there_is_none(page, typed, shown):
    "A number beyond the pages is the last one, and what is no number is not taken."
    found = panel(page, 'disagreements')
    field = found.get_by_label('page')
    field.fill('2'); field.press('Enter')
    says(page, found, 'page 2 of')
    field.fill(''); field.press_sequentially(typed); field.press('Enter')
    says(page, found, shown)
    wait(page, found, f'/^\\d+$/.test(a.value)', field.element_handle())

def test_a_click_on_the_matrix_leaves_its_images(page):
    found = panel(page, 'disagreements')
    row, column, n = drawn(page, found, """data[0].z.flatMap((r, i) => r.map((v, j) => [i, j, v]))
                                           .find(o => o[2] > 0)""")
    page.mouse.click(*point(page, found, '', column, row))
    says(page, found, rf'(?<!\d){n:g} of \d+ disagreements')
    shot(found, 'disagreements_clicked')
    for menu in ('teacher says', 'student says'): found.get_by_label(menu).select_option('any')

def test_a_click_on_a_point_opens_its_image(page):
    found = panel(page, 'disagreements')
    says_no_more(page, found, 'open: row')
    page.mouse.click(*first_point(page, found, 2, 2))
    says(page, found, 'open: row \\d+')
    wait(page, found, f'{DRAWN}.layout.images.length === 1')
    found.get_by_label('image').select_option('all')

def test_policies(page):
    viewer = panel(page, 'augmentation_viewer')
    before = frames(viewer)
    viewer.locator('.widget-hslider', has_text='random draw').locator('.noUi-handle').press('ArrowRight')
    changed(page, viewer, before)
    says(page, viewer, 'draw 1')
    page.mouse.move(*first_point(page, viewer, '', 1))
    wait(page, viewer, f'/as it is: .+, .+, /.test({DRAWN}.querySelector(".hoverlayer").textContent)')

def test_landscape_along_the_line(page):
    plane = panel(page, 'landscape_viewer')
    before = frames(plane)
    handle = plane.locator('.widget-hslider', has_text='λ').locator('.noUi-handle')
    for _ in range(5): handle.press('PageUp')
    changed(page, plane, before)
    says_no_more(page, plane, 'At \\(0.00, 0.00\\)')

def test_landscape_is_read_by_pointing(page):
    plane = panel(page, 'landscape_viewer')
    hover = f'{DRAWN}.querySelector(".hoverlayer").textContent'
    x, y = drawn(page, plane, '[data[0].x[2], data[0].y[4]]')
    at_rest(page)
    before = frames(plane)
    page.mouse.move(*point(page, plane, '', x, y))
    wait(page, plane, f'/kl \\d/.test({hover})')
    assert frames(plane) == before                                           # the kernel is not asked
    page.mouse.click(*point(page, plane, '', x, y))
    changed(page, plane, before)
    says(page, plane, r'At \(.+, .+\): kl')
    a, b = map(float, re.search(r'At \((.+?), (.+?)\)', plane.text_content()).groups())
    assert abs(a - x) < .02 and abs(b - y) < .02, (a, b, x, y)               # sliders have steps of .01
    shot(plane, 'plane_clicked')

def write(page, o, text):
    field = o.get_by_role('textbox', name='filter')
    field.fill(text)
    field.press('Enter')

FILTERS = [('policy=mixup', 2), ('trial_id=0', 2), ('policy=mixup, trial_id=1', 1), ('mixup', 2),
           ('nonsense', 0), ('', 4)]

@pytest.mark.parametrize('text,n', FILTERS)
def test_runs_are_filtered_by_what_labels_say(page, text, n):
    runs = panel(page, 'run_browser')
    write(page, runs, text)
    says(page, runs, f'{n} of 4 runs')
    wait(page, runs, 'o.querySelectorAll(".dt-scroll-body tbody tr:not(:has(td.dt-empty))").length === a', n)

def test_a_wrong_filter_is_said_on_the_panel(page):
    runs = panel(page, 'run_browser')
    write(page, runs, 'nothing == 1')
    says(page, runs, 'ValueError: filter=.nothing == 1.: expected a query')
    write(page, runs, '')
    says_no_more(page, runs, 'ValueError')

BODY = '.dt-scroll-body tbody'
def cells(runs, column): return runs.locator(f'{BODY} tr td:nth-child({column})').all_inner_texts()

def test_the_grid_sorts_filters_and_picks_columns(page):
    runs = panel(page, 'run_browser')
    assert cells(runs, 1) == ['0', '1', '2', '3']
    order = runs.locator('.dt-scroll-head th').first
    order.click(); order.click()
    wait(page, runs, 'o.querySelector(".dt-scroll-body tbody tr td").textContent === "3"')
    order.click()
    field = runs.locator('.dt-scroll-foot input[placeholder=policy]')
    field.press_sequentially('mix')
    wait(page, runs, 'o.querySelectorAll(".dt-scroll-body tbody tr").length === 2')
    says(page, runs, "2 of 4 runs, also by the grid's columns; all of them are drawn")
    wait(page, runs, f'{DRAWN}.data.filter(t => t.showlegend).length === 1')
    shot(runs, 'runs_by_column')
    for _ in 'mix': field.press('Backspace')
    wait(page, runs, 'o.querySelectorAll(".dt-scroll-body tbody tr").length === 4')
    says(page, runs, '4 of 4 runs; all of them are drawn')
    runs.get_by_role('button', name='columns').click()
    page.locator('.dt-button-collection').get_by_text('state', exact=True).click()
    wait(page, runs, f'![...o.querySelectorAll("{BODY} td")].some(c => c.textContent === "done")')
    page.locator('.dt-button-collection').get_by_text('state', exact=True).click()
    page.keyboard.press('Escape')

def test_chosen_runs_are_compared(page):
    runs = panel(page, 'run_browser')
    rows = runs.locator('.dt-scroll-body tbody tr')
    rows.nth(0).locator('td').nth(1).click()
    rows.nth(1).locator('td').nth(1).click(modifiers=['Control'])
    says(page, runs, '4 of 4 runs, 2 chosen and drawn')
    says(page, runs, 'settings in which runs \\d and \\d differ')
    says(page, runs, 'gnosis-image-classification dataset=digits')
    says(page, runs, 'fidelity report of run')
    wait(page, runs, f'{DRAWN}.data.length === 2')
    shot(runs, 'runs_compared')

def test_a_run_is_chosen_after_the_grid_was_filtered(page):
    "The grid is another one then."
    runs = panel(page, 'run_browser')
    write(page, runs, 'policy=mixup')
    says(page, runs, '2 of 4 runs; all')
    runs.locator('.dt-scroll-body tbody tr').nth(0).locator('td').nth(1).click()
    says(page, runs, '2 of 4 runs, 1 chosen and drawn')
    write(page, runs, '')
    says(page, runs, '4 of 4 runs; all')
    runs.locator('.dt-scroll-body tbody tr').nth(0).locator('td').nth(1).click()
    says(page, runs, '4 of 4 runs, 1 chosen and drawn')

def test_a_point_of_the_scatter_says_its_run(page, capsys):
    runs = panel(page, 'run_browser')
    runs.get_by_label('across').select_option('student accuracy (share of examples)')
    wait(page, runs, f'{DRAWN}.data[0].mode === "markers"')
    x, y = first_point(page, runs, '', 0)
    page.mouse.move(x, y)
    wait(page, runs, f'/run \\d: policy=.*trial \\d/.test({DRAWN}.querySelector(".hoverlayer").textContent)')
    shot(runs, 'runs_scatter')
    page.evaluate('window.shown = 0; (function count() { window.shown++; requestAnimationFrame(count) })()')
    before, start = page.evaluate('window.shown'), time.time()
    page.mouse.move(x - 60, y - 60)
    page.mouse.down()
    for i in range(60): page.mouse.move(x - 60 + 2*i, y - 60 + 2*i)
    rate = (page.evaluate('window.shown') - before)/(time.time() - start)
    page.mouse.up()                                                          # zoomed in
    with capsys.disabled(): print(f'\nscatter while zooming: {rate:.0f} frames/s')

def press(live, name): live.get_by_role('button', name=name).click()

def test_live_run_is_started_and_stopped(page, capsys):
    live = panel(page, 'live_run')
    epochs = live.get_by_label('epochs')
    epochs.fill('3000'); epochs.press('Enter')
    says(page, live, 'trainer.num_epochs=3000')
    before, start = frames(live), time.time()
    press(live, 'Start')
    says(page, live, 'process \\d+, starting')
    with capsys.disabled(): print(f'\n"starting" after {time.time() - start:.2f} s')
    assert live.get_by_role('button', name='Start').is_disabled()
    says(page, live, 'process \\d+, running; teacher 0, epoch \\d+; \\d+ of 6000 in all')
    changed(page, live, before)                                              # the first epochs
    wait(page, live, 'o.querySelectorAll("table tr").length > 1')
    wait(page, live, 'parseFloat(o.querySelector(".progress-bar").style.width) > 0')
    shot(live, 'live_running')
    press(live, 'Stop')
    says_no_more(page, live, 'process \\d+, ')
    says(page, live, 'interrupted')
    assert 'KeyError' not in live.inner_text()
    shot(live, 'live_stopped')
    assert live.get_by_role('button', name='Resume').is_enabled()            # `test_live_run` presses it

def test_a_run_started_elsewhere_is_watched(page):
    live = panel(page, 'live_run')
    press(live, 'Look for runs again')
    at_rest(page)                                                            # the menu is a new one then
    wait(page, live, '[...o.querySelectorAll("option")].some(c => c.textContent.startsWith("done:"))')
    menu = live.get_by_label('watch')
    menu.select_option(menu.locator('option', has_text='done:').first.get_attribute('value'))
    says(page, live, 'done; student, epoch 2; (2 of 2|4 of 4) in all')
    menu.select_option('the run of this form')
    says(page, live, 'interrupted')

def test_live_run_of_texts(page):
    "The form is another one; `test_live_run` starts it."
    live = panel(page, 'live_run')
    press(live, 'text classification')
    says(page, live, 'gnosis-text-classification .experiment=sentences')
    press(live, 'image classification')

def theme(page, name):
    command = f'"apputils:change-theme", {{theme: "JupyterLab {name}"}}'
    page.evaluate(f'window.jupyterapp.commands.execute({command})')
    page.wait_for_function(f'document.body.dataset.jpThemeName === "JupyterLab {name}"')

def test_pictures_follow_the_theme(page):
    lab = panel(page, 'temperature_lab')
    def ink(): return [int(c) for c in re.findall(r'\d+', lab.locator('.gtitle').first.evaluate(
        'o => getComputedStyle(o).fill'))[:3]]
    assert max(ink()) < 128
    theme(page, 'Dark')
    try:
        light = '(c => c[0] > 128)(getComputedStyle(o.querySelector(".gtitle")).fill.match(/\\d+/g))'
        wait(page, lab, light)
        assert drawn(page, lab, 'layout.paper_bgcolor') == 'rgba(0,0,0,0)'
        for call in PANELS: shot(panel(page, call), f'{call}_dark')
    finally: theme(page, 'Light')

def test_a_narrow_page_is_usable(page):
    page.set_viewport_size(dict(width=900, height=900))
    try:
        for call in PANELS:
            o = panel(page, call)
            o.scroll_into_view_if_needed()
            wait(page, o, f'{DRAWN}.clientWidth <= o.clientWidth && {DRAWN}.clientWidth > 250')
            assert o.evaluate('o => o.scrollWidth <= o.clientWidth + 1'), call
            shot(o, f'{call}_narrow')
        at_rest(page)
        plane = panel(page, 'landscape_viewer')
        of_colours, of_line = (plane.locator(o).bounding_box() for o in ('.cbtitle text', '.y2title'))
        assert of_colours['x'] + of_colours['width'] <= of_line['x']
    finally: page.set_viewport_size(dict(width=1400, height=900))
