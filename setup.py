"""Builds gnws_d2. Imports neither torch nor Detectron2, so it runs in pip's build isolation too."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Projects small enough to be installed with the package: its module, and the folder of its files.
PROJECTS = {
    "gnws_d2.projects.acceleration": "projects/Acceleration",
    "gnws_d2.projects.acceleration.kernels": "projects/Acceleration/kernels",
    "gnws_d2.projects.detection": "projects/Detection",
    "gnws_d2.projects.digits": "projects/Digits",
    "gnws_d2.projects.export": "projects/Export",
    "gnws_d2.projects.own_data": "projects/OwnData",
    "gnws_d2.projects.own_data.formats": "projects/OwnData/formats",
    "gnws_d2.projects.report": "projects/Report",
    # Not in gnws_d2, which imports torch and Detectron2: `gnws --help` needs neither.
    "gnws": "projects/Command",
}
CONFIGS = "gnws_d2.model_zoo.configs"


def version() -> str:
    text = Path(__file__).with_name("gnws_d2").joinpath("__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('gnws_d2/__init__.py has no line __version__ = "..."; add one.')
    return found[1]


# requirements.txt has the tested versions of all that follow.
# Detectron2 from PyPI comes without its dependencies: projects/Command/detectron2_pypi.py.
DETECTRON2_NEEDS = [
    *("setuptools<81", "cloudpickle", "hydra-core", "matplotlib", "omegaconf>=2.1", "packaging"),
    *("scipy", "tensorboard", "termcolor", "yacs"),
]
DEMO = ["scikit-learn"]
EXPORT = ["onnx", "onnxruntime", "onnxscript"]  # to ONNX; the other formats need torch alone
OPENVINO = [*EXPORT, "openvino"]  # converts the ONNX file
INT8 = [*OPENVINO, "nncf"]
# projects/Detection/app.py. Tested with 6.31.0, which needs a Pillow before 13: it is not in
# requirements.txt.
APP = ["gradio>=6"]
NOTEBOOK = ["ipykernel", "nbformat"]  # docs/tutorial.ipynb
EVIDENCE = ["matplotlib", "psutil", "scikit-learn"]  # projects/MicroBatch, Benchmark, Reference

setup(
    name="gnws_d2",
    version=version(),
    description="Detectors with GroupNorm and Weight Standardization for Detectron2",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="gnws_d2 contributors",
    keywords=[
        *("object detection", "instance segmentation", "Detectron2", "group normalization"),
        *("weight standardization", "micro-batch training"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Detectron2 is missing here because it is not on PyPI under its name, and has to be compiled
    # against the torch it will run with; importing gnws_d2 says how to get it.
    install_requires=[
        *("torch", "torchvision", "numpy", "fvcore", "iopath", "filelock", "jinja2", "tqdm"),
        *("faster-coco-eval", "opencv-python-headless", "pillow", "pycocotools", "pyyaml"),
        *("simpleeval", "tabulate"),
        *DETECTRON2_NEEDS,
    ],
    extras_require={
        "app": APP,
        "evidence": EVIDENCE,
        "demo": DEMO,
        "export": EXPORT,
        "openvino": OPENVINO,
        "int8": INT8,
        "test": ["hypothesis", "pytest", "pytest-xdist", *NOTEBOOK, *DEMO, *INT8, *EVIDENCE],
        "lint": ["mypy", "ruff"],
        "docs": ["furo", "myst-parser", "sphinx"],
    },
    entry_points={"console_scripts": ["gnws = gnws.main:main"]},
    packages=[*find_packages(include=["gnws_d2", "gnws_d2.*"]), *PROJECTS, CONFIGS],
    # Folders outside gnws_d2/ become subpackages of it. configs/ is one to setuptools only: that
    # takes it into the wheel without copies or links in the source tree.
    package_dir={**PROJECTS, CONFIGS: "configs"},
    package_data={
        CONFIGS: ["**/*.yaml", "**/*.py", "SHA256SUMS"],
        "gnws_d2.model_zoo": ["*.csv"],
        "gnws_d2.projects.report": ["*.html"],
    },
)
