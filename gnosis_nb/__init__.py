__version__ = "0.1.0"

import warnings

# fastai 2.8 still uses torch.jit.script, about which current torch warns on import; nothing a user could act on.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
