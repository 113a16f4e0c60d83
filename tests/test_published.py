"Published ResNets of CIFAR-10 keep their accuracy; needs data that lie beside the project."
import tarfile
from pathlib import Path

import pytest
from experiments import ROOT, script

from gnosis_nb.runs import find_runs

DATA = ROOT.parent/'shared'/'data'
NEEDED = [DATA/'cifar10_png.tar.gz', DATA/'resnet_cifar10.tar.gz']

MISSING = ', '.join(o.name for o in NEEDED if not o.exists())

@pytest.mark.skipif(bool(MISSING), reason=f'needs {MISSING}')
def test_a_published_network_has_its_published_accuracy(tmp_path):
    "ResNet-20 on the first 50 test images of each class; all 10,000 give its 91.73 %."
    with tarfile.open(NEEDED[1]) as f: f.extractall(tmp_path, filter='data')
    with tarfile.open(NEEDED[0]) as f:
        seen = {}
        for o in f:
            if not o.isfile(): continue
            folder = Path(o.name).parent
            seen[folder] = seen.get(folder, 0) + 1
            if seen[folder] <= (50 if 'test' in folder.parts else 2): f.extract(o, tmp_path, filter='data')
    weights = next((tmp_path/'resnet_cifar10').glob('resnet20-*.th'))
    out = script('image_classification', 'dataset=cifar10', f"dataset.root_dir={tmp_path/'cifar10_png'}",
        'classifier=resnet_cifar', 'augmentation.normalization=imagenet', f'teacher.ckpt_path={weights}',
        'trainer.distill_teacher=false', 'device=cpu', f"data_dir={tmp_path/'runs'}")
    assert out.returncode == 0, out.stderr
    runs = find_runs(tmp_path/'runs')
    assert runs.teacher_accuracy.tolist() == pytest.approx([.9173], abs=.03)
