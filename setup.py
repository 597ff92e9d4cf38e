"""Packaging of minitune. The optional parts are extras: pip install "minitune[demo]"."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "minitune" / "__init__.py").read_text(encoding="utf-8"))[1]

FAST = ["numba>=0.61"]
PLOTS = ["matplotlib>=3.8"]
TENSORBOARD = ["tensorboardX>=2.6.2"]
DEMO = [*FAST, *PLOTS, "scikit-learn>=1.4"]
BFLOAT16 = ["ml_dtypes>=0.5"]
TEST = [*DEMO, *TENSORBOARD, *BFLOAT16, "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "nbclient>=0.10", "nbformat>=5",
        "ipykernel>=6"]
KERNELS = ["*.cu", "*.cuh", "*.json", "emulate/*.h"]


class WithKernels(build_py):
    """A wheel has the kernels in the package's folder, a checkout beside it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for file in self.kernels():
                copy = Path(self.build_lib) / "minitune" / file
                self.mkpath(str(copy.parent))
                self.copy_file(str(HERE / file), str(copy), preserve_mode=False)

    def kernels(self):
        return [file.relative_to(HERE) for pattern in KERNELS for file in sorted((HERE / "kernels").glob(pattern))]

    def get_outputs(self, include_bytecode=1):
        copies = [] if self.editable_mode else [str(Path(self.build_lib) / "minitune" / file) for file in self.kernels()]
        return super().get_outputs(include_bytecode) + copies


setup(
    cmdclass={"build_py": WithKernels},
    name="minitune",
    version=VERSION,
    description="Transfer learning written from scratch on NumPy: pre-training, fine-tuning, freezing and LoRA, readable",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["minitune", "minitune.*"]),
    package_data={"minitune": ["py.typed", "models/shipped/*/*"]},
    install_requires=["numpy>=2.0", "tokenizers>=0.20", "safetensors>=0.4", "tqdm>=4.66", "threadpoolctl>=3.5"],
    extras_require={
        "fast": FAST,
        "plots": PLOTS,
        "demo": DEMO,
        "tensorboard": TENSORBOARD,
        "test": TEST,
        "oracle": ["torch>=2.4", "transformers>=4.48", "peft>=0.14"],
        "cuda12": ["cupy-cuda12x[ctk]>=14,<15", *BFLOAT16],
        "cuda13": ["cupy-cuda13x[ctk]>=14,<15", *BFLOAT16],
        "dev": ["ruff>=0.9", "mypy>=1.14", "types-tqdm"],
    },
    entry_points={"console_scripts": ["minitune = minitune.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
