"""Are the results of a change those of before, bit for bit?

`python tests/bits.py FOLDER TABLE.json` does eight small experiments in FOLDER and writes SHA-256 of every
final weight and table that they leave. `python tests/bits.py OTHER TABLE.json --check` does them again, in
another folder, and says which differ. The same machine and number of threads give the same bits; another
processor may not. So this is no test of the suite: run it before and after a change that must not change
any result."""
import hashlib, json, sys
from pathlib import Path

import torch

from gnosis_nb.checkpoint import checkpoint_info
from gnosis_nb.cli import compose, run_command

SMALL = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'trainer.num_epochs=2',
         'trainer.eval_period=1']
GENERATOR = ['density_model.z_dim=16', 'density_model.generator.k=8']
RUNS = dict(
    gan_training=('image_generation', [
        'dataset=digits8', *GENERATOR, 'density_model.discriminator.k=8', 'classifier.depth=8',
        'dataloader.batch_size=16', 'trainer.num_gen_updates=8', 'trainer.eval_period=4',
        'trainer.checkpoint_period=8', 'trainer.num_eval_samples=100', 'trainer.num_epochs=1']),
    baseline=('image_classification', SMALL),
    mixup_synthetic=('image_classification', [
        *SMALL, *GENERATOR, 'distill_loader.mixup_alpha=1.0', 'distill_loader.synth_ratio=0.2']),
    ensemble=('image_classification', [*SMALL, 'teacher.num_components=3', 'teacher.independent=true']),
    gan_rows=('image_classification', [*SMALL, *GENERATOR, 'policy=gan', 'loss=ts_cvx_cross_ent']),
    vgg=('image_classification', [
        *SMALL, 'classifier=vgg', 'classifier.depth=11', 'dataset.size=32', 'dataset.subsample.ratio=0.3']),
    layer_norm_ckpt_init=('image_classification', [
        *SMALL, 'classifier.norm=layer', 'teacher.ckpt_init.type=final', 'teacher.ckpt_init.loc_param=0.5',
        'dataset.subsample.ratio=0.5', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1.0,4.0]']),
    text=('text_classification', [
        '+experiment=sentences', '+recipe=student', 'dataset.num_train=600', 'dataset.num_test=200',
        'trainer.num_epochs=2',
        'trainer.eval_period=1', 'teacher.num_components=2']))
SHARED = ('gan_training', 'mixup_synthetic', 'gan_rows')    # the last two find the first one's generator


def digests(folder):
    "SHA-256 of the weights and tables of a run."
    weights = {path.stem: checkpoint_info(path)['weights'] for path in sorted(folder.glob('*.safetensors'))}
    def sha256(path): return hashlib.sha256(path.read_bytes()).hexdigest()
    return weights | {path.name: sha256(path) for path in sorted(folder.glob('*.csv'))}


def run_all(root):
    found = {}
    for name, (command, overrides) in RUNS.items():
        data_dir = root/('shared' if name in SHARED else name)
        cfg = compose([*overrides, 'device=cpu', f'data_dir={data_dir}', f'exp_name={name}'], command)
        found[name] = digests(run_command(command, cfg, say=lambda s: None).path)
        print(name, len(found[name]), 'files', flush=True)
    return found


if __name__ == '__main__':
    torch.set_num_threads(1)
    root, table = Path(sys.argv[1]), Path(sys.argv[2])
    found = run_all(root)
    if '--check' not in sys.argv: table.write_text(json.dumps(found, indent=1))
    else:
        kept = json.loads(table.read_text())
        pairs = [(run, name) for run, files in kept.items() for name in files]
        differing = [f'{run}/{name}' for run, name in pairs if found[run].get(name) != kept[run][name]]
        sys.exit('differ: ' + ', '.join(differing) if differing else 0)
