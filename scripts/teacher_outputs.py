"""Measure teacher outputs on disk with the published ResNets of CIFAR-10: time of a step, bytes, and what
students make of half precision and of the top classes. Prints a line of JSON for each measurement.

    python scripts/teacher_outputs.py steps data/datasets --images 2048 --epochs 3 --views 2
    python scripts/teacher_outputs.py students data/datasets --images 4000 --epochs 12 --views 4
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders

from gnosis_nb.checkpoint import load_weights
from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.blocks import DistillLoader
from gnosis_nb.data.images import normalizer
from gnosis_nb.data.loaders import ImageLoader
from gnosis_nb.data.split import stratified_subset
from gnosis_nb.data.views import ViewLoader
from gnosis_nb.data.zoo import load_vision
from gnosis_nb.learner import student_learner
from gnosis_nb.losses import reduce_ensemble_logits
from gnosis_nb.metrics import accuracy, agreement, predictive_kl
from gnosis_nb.models import ClassifierEnsemble, build_classifier
from gnosis_nb.outputs import teacher_outputs
from gnosis_nb.predictions import collect_predictions

WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 44: "resnet44-014dd654.th",
           56: "resnet56-4bfd9763.th"}


def network(depth, seed=0):
    shape = dict(num_classes=10, in_channels=3, input_size=32)
    return build_classifier("resnet_cifar", depth=depth, seed=seed, **shape)


class Clock(Callback):
    "The processor time of each epoch of training, without evaluation."
    in_programs = True

    def before_fit(self):
        self.times = []

    def before_train(self):
        self.began = time.process_time()

    def after_train(self):
        self.times.append(time.process_time() - self.began)

    def before_validate(self):
        raise CancelValidException()


class Measurement:
    def __init__(self, root, images, views, epochs):
        self.root, self.views, self.epochs = Path(root), views, epochs
        sets = load_vision("cifar10", str(self.root / "cifar10"), False)
        self.norm = normalizer("imagenet", sets.statistics)
        self.augment = augmentation(["crop", "horizontal_flip"], dict(crop=dict(padding=4)))
        self.train = sets.train.subset(stratified_subset(sets.train.targets, images))
        self.test = sets.test.subset(stratified_subset(sets.test.targets, 2000))

    def teacher(self, m):
        "An ensemble of m; the fifth is the first once more, as there are four published depths."
        nets = []
        for depth in [56, 44, 32, 20, 56][:m]:
            nets.append(network(depth))
            load_weights(nets[-1], self.root / "resnet_cifar10" / WEIGHTS[depth])
        return ClassifierEnsemble(*nets).eval()

    def loader(self, seed):
        part = ViewLoader(self.train, self.views, 128, True, self.augment, self.norm, seed=seed)
        return DistillLoader([part], bs=128, temp=4., seed=seed)

    def outputs(self, teacher, folder, keep):
        "Outputs, and the seconds that it took to make or open them."
        began = time.process_time()
        found = teacher_outputs(teacher, self.loader(0), folder, {}, keep, say=lambda s: None)
        return found, time.process_time() - began

    def student(self, teacher, outputs, seed=0):
        "A ResNet-20 after training, and the seconds of each epoch."
        dls = DataLoaders(self.loader(seed), ImageLoader(self.test, 500, norm=self.norm))
        clock = Clock()
        learn = student_learner(dls, network(20, seed), teacher, cache=0., outputs=outputs, metrics=[],
                                precision="fp32", compile=False, cbs=[clock])
        with learn.no_bar(), learn.no_logging():
            learn.fit(self.epochs)
        return learn.model, clock.times


def bytes_below(folder): return sum(o.stat().st_size for o in Path(folder).rglob("*.npy"))


def steps(measure):
    for m in (1, 5):
        teacher = measure.teacher(m)
        asking = measure.student(teacher, None)[1]
        for keep in ("half", 3):
            with tempfile.TemporaryDirectory() as folder:
                made = measure.outputs(teacher, folder, keep)[1]
                outputs, opened = measure.outputs(teacher, folder, keep)
                reading = measure.student(teacher, outputs)[1]
                n = -(-len(measure.train) // 128)
                yield dict(m=m, keep=keep, asking_ms=1000*min(asking)/n, reading_ms=1000*min(reading)/n,
                           asking_s=sum(asking), first_s=made + sum(reading), second_s=opened + sum(reading),
                           bytes=bytes_below(folder))


def students(measure):
    teacher, first = measure.teacher(5), None
    dl = ImageLoader(measure.test, 500, norm=measure.norm)
    with tempfile.TemporaryDirectory() as folder:
        for keep, seed in [("exact", 0), ("half", 0), (5, 0), (2, 0), (1, 0), ("exact", 1)]:
            outputs, _ = measure.outputs(teacher, folder, keep)
            found = collect_predictions(dl, teacher, measure.student(teacher, outputs, seed)[0])
            t, s = reduce_ensemble_logits(found.teacher), found.student
            first = s if first is None else first
            yield dict(keep=keep, seed=seed, accuracy=accuracy(s, found.targets), agreement=agreement(t, s),
                       kl=predictive_kl(t, s), agreement_with_exact=agreement(first, s),
                       kl_from_exact=predictive_kl(first, s))


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["steps", "students"])
    parser.add_argument("root", help="a folder with cifar10 and resnet_cifar10")
    for name, default in (("images", 2048), ("views", 2), ("epochs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure = Measurement(args.root, args.images, args.views, args.epochs)
    for row in (steps if args.what == "steps" else students)(measure):
        print(json.dumps(row), flush=True)
