"""Train teachers of texts, distil a student, measure its fidelity: `gnosis-text-classification`."""
from gnosis_nb.cli import text_classification

if __name__ == "__main__":
    text_classification()
