"""Train teachers, distil a student and measure its fidelity: the command `gnosis-image-classification`."""
from gnosis_nb.cli import image_classification

if __name__ == "__main__":
    image_classification()
