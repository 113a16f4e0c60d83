"""Train teachers of texts, distil a student and measure its fidelity: the command `gnosis-text-classification`."""
from gnosis_nb.cli import text_classification

if __name__ == "__main__":
    text_classification()
