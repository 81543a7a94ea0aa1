"""The package: what it needs, and what it can use. Exact versions that were tested together stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

DALI = ["nvidia-dali-cuda130>=2.0; platform_system == 'Linux'"]
DALI_CUDA12 = ["nvidia-dali-cuda120>=1.50; platform_system == 'Linux'"]  # for drivers that know no newer CUDA
DEEPSPEED = ["deepspeed>=0.19"]
WANDB = ["wandb>=0.31", "wandb-workspaces>=0.4"]
TENSORBOARD = ["tensorboard>=2.18"]
EXPORT = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"]
PARQUET = ["pyarrow>=17"]
REPORT = ["matplotlib>=3.8", "jinja2>=3.1", "markupsafe>=2.1"]
STUDY = ["optuna>=4.2"]
PEERS = ["lightning>=2.4", "accelerate>=1.0", "timm>=1.0", "deepspeed>=0.19"]
DEV = [
    *PARQUET,
    *STUDY,
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyYAML",
    # what the analysis, the pages and the manifests are held against
    "torchmetrics>=1.4",
    "captum>=0.8",
    "mapie>=1.2",
    "playwright>=1.45",
    "axe-playwright-python>=0.1.4",
    "kubeflow-trainer-api>=2.1",
    # which run the tutorial's notebook
    "nbclient>=0.10",
    "ipykernel>=6.29",
]

setup(
    name="vgg_ddp",
    version=next(
        line.split('"')[1]
        for line in Path(__file__).with_name("vgg_ddp").joinpath("__init__.py").read_text().splitlines()
        if line.startswith("__version__")
    ),
    description="Distributed training of the VGG networks, and an honest look at what they learned",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10,<3.14",
    # The folder launch/ is installed as vgg_ddp.launch; benchmarks/ is not installed, and runs in a checkout.
    packages=[*find_packages(include=["vgg_ddp", "vgg_ddp.*"]), "vgg_ddp.launch"],
    package_dir={"vgg_ddp.launch": "launch"},
    package_data={
        "vgg_ddp.report": ["*.j2", "sections/*.j2", "*.css", "*.js"],
        "vgg_ddp.export": ["*.j2"],
        "vgg_ddp.trackers": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=2.0",
        "pillow>=10.3",
        "simplejpeg>=1.8",
        "safetensors>=0.5",
        "msgspec>=0.19",
        "PyYAML>=6",
        "filelock>=3.30",
        "rich>=13",
        "scikit-learn>=1.5",
        "scipy>=1.15",
        *REPORT,
    ],
    extras_require={
        "dali": DALI,
        "dali-cuda12": DALI_CUDA12,
        "deepspeed": DEEPSPEED,
        "wandb": WANDB,
        "tensorboard": TENSORBOARD,
        "export": EXPORT,
        "parquet": PARQUET,
        "report": REPORT,
        "study": STUDY,
        "peers": PEERS,
        "dev": DEV,
        "all": [*DALI, *DEEPSPEED, *WANDB, *TENSORBOARD, *EXPORT, *PARQUET, *STUDY, *REPORT],
    },
    entry_points={"console_scripts": ["vgg-ddp = vgg_ddp.cli:main"]},
)
