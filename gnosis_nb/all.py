# ruff: noqa: F401
"What one needs in a notebook: `from gnosis_nb.all import *`."
from .losses import *
from .losses_beyond import *
from .metrics import *
from .fidelity import *
from .cka import *
from .models import *
from .data.images import *
from .data.split import *
from .data.folder import *
from .data.zoo import *
from .data.geometry import *
from .data.augment import *
from .data.shifts import SHIFTS, Shift, shift_images, show_shifts
from .data.loaders import *
from .data.blocks import *
from .data.words import *
from .data.text import *
from .compute import *
from .engine import *
from .together import *
from .distill import *
from .learner import *
from .resume import *
from .initialize import *
from .landscape import *
from .robustness import fgsm, plot_robustness, robustness_report
from .quality import *
from .gan import *
from .reproducible import *
from .checkpoint import *
from .stores import *
from .runs import *
from .run_folder import *
from .curves import *
from .tables import *
from .settings import ConfigError, ImageClassification, ImageGeneration, TextClassification, as_dict, network_options
from .inputs import load_inputs, run_inputs
from .experiment import image_classification, text_classification
from .generation import image_generation
from .cli import compose, compose_sweep
