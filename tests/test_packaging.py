"What people install: the wheel and the source distribution hold everything that runs."
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "A source distribution, and a wheel made from it."
    folder = tmp_path_factory.mktemp('dist')
    command = [sys.executable, '-m', 'build', '--no-isolation', '-o', folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return folder

def test_the_wheel_has_every_module_and_setting(dist):
    names = set(zipfile.ZipFile(next(dist.glob('*.whl'))).namelist())
    files = [o for o in (ROOT/'gnosis_nb').rglob('*') if o.suffix in ('.py', '.yaml', '.csv')]
    assert len([o for o in files if o.suffix == '.yaml']) >= 20
    assert {str(o.relative_to(ROOT)) for o in files} <= names

def test_the_source_distribution_has_the_requirements(dist):
    names = {o.split('/', 1)[1] for o in tarfile.open(next(dist.glob('*.tar.gz'))).getnames() if '/' in o}
    assert {'settings.ini', 'setup.py', 'LICENSE', 'README.md'} <= names

def test_the_command_finds_its_settings_in_the_wheel(dist, tmp_path):
    zipfile.ZipFile(next(dist.glob('*.whl'))).extractall(tmp_path/'site')
    code = f'''
import sys; sys.path.insert(0, {str(tmp_path/'site')!r})
import gnosis_nb, gnosis_nb.cli
print(gnosis_nb.__file__)
gnosis_nb.cli.image_classification()
'''
    command = [sys.executable, '-c', code, '+experiment=digits', 'classifier.depth=20', '--cfg=job']
    res = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode == 0 and res.stdout.startswith(str(tmp_path/'site'))
    assert yaml.safe_load(res.stdout.split('\n', 1)[1])['classifier']['depth'] == 20
