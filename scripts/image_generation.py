"""Train a generator of synthetic images: the command `gnosis-image-generation`."""
from gnosis_nb.cli import image_generation

if __name__ == "__main__":
    image_generation()
