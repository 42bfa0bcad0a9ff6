"""No file that a user can name is unpickled: unpickling runs whatever code the file holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.hub", "torch.package"}
CALLS = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "timm.models.load_checkpoint",
    "timm.models.load_state_dict",
}


def forbidden(source: str) -> Iterator[str]:
    """Imports and calls that unpickle, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names = ["allow_pickle"]
        elif isinstance(node, ast.keyword) and node.arg == "weights_only" and ast.unparse(node.value) != "True":
            names = ["weights_only"]
        else:
            continue
        for name in names:
            if name in CALLS or name in MODULES or name.split(".")[0] in MODULES or name in ("allow_pickle", "weights_only"):
                yield f"line {node.lineno}: {name}"


def test_trainer_and_service_unpickle_nothing() -> None:
    """Weights come from safetensors, documents from JSON and safe YAML."""
    files = [path for package in ("trainer", "service", "api") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 40
    assert {str(path): found for path in files if (found := list(forbidden(path.read_text())))} == {}


def test_the_scan_sees_what_it_looks_for() -> None:
    """Each of these would be found."""
    for line in (
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "torch.load(path)",
        "reader = torch.load",
        "np.load(p, allow_pickle=True)",
        "from numpy import load",
        "yaml.load(text)",
        "import torch.hub",
        "load(p, weights_only=False)",
    ):
        assert list(forbidden(line)), line
    assert not list(forbidden("from safetensors.torch import load_file\nload_file(path)\nyaml.safe_load(text)"))
