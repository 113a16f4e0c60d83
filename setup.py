"""Package metadata lives in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read_string(Path("settings.ini").read_text(encoding="utf-8"))
cfg = parser["DEFAULT"]
EXTRAS = ("tests", "latest", "docs", "dev", "lab", "torchtext", "networks", "trackers", "hub", "joblib",
          "submitit", "ray")


def extra(name):
    "The requirements of an extra, and of the extras that it includes."
    included = dict(dev=("tests", "docs"), latest=("tests",)).get(name, ())
    return sum((extra(o) for o in included), cfg[f"{name}_requirements"].split())


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["gnosis_nb", "gnosis_nb.*"]), "hydra_plugins"],  # shared with others
    package_data={"gnosis_nb": ["config/**/*.yaml", "config/*.yaml", "entries/*.yaml", "paper/*.csv"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={name: extra(name) for name in EXTRAS},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
