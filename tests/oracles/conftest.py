"""The other programs, a fixture each: a test that names one is skipped where it is not installed.

`make oracles` sets RIPIENO_ORACLES=1: there every program has to be, and a missing one is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def program(module: str) -> ModuleType:
    """Import another program's module, or skip the test that asked for it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        if os.environ.get("RIPIENO_ORACLES") == "1":
            raise
        pytest.skip(f"{module} is not installed here: run `make oracles`")


@pytest.fixture(scope="session")
def torch() -> Iterator[ModuleType]:
    """PyTorch, with float64 where its programs take the default (theirs is float32: a bound for that is wide)."""
    module = program("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


@pytest.fixture(scope="session")
def torchmetrics(torch: ModuleType) -> ModuleType:
    return program("torchmetrics.functional.classification")


@pytest.fixture(scope="session")
def torch_uncertainty(torch: ModuleType) -> ModuleType:
    """torch-uncertainty's metrics for classification.

    The package's own `__init__` imports its trainer (lightning, and through it torchvision, which does not import
    beside this torch), that of `metrics` also segmentation (einops). These metrics need neither, so empty packages that
    point at the installed folders stand in for the two, and only what is below them is executed.
    """
    package = "torch_uncertainty"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return program(package)
    folder = Path(found.submodule_search_locations[0])
    for name, path in ((package, folder), (f"{package}.metrics", folder / "metrics")):
        stand_in = ModuleType(name)
        stand_in.__path__ = [str(path)]
        sys.modules[name] = stand_in
    return program(f"{package}.metrics.classification")


@pytest.fixture(scope="session")
def relplot() -> ModuleType:
    return program("relplot")


@pytest.fixture(scope="session")
def uncertainty_calibration() -> ModuleType:
    return program("calibration")


@pytest.fixture(scope="session")
def model_diagnostics() -> ModuleType:
    return program("model_diagnostics.scoring")


@pytest.fixture(scope="session")
def sklearn_metrics() -> ModuleType:
    return program("sklearn.metrics")


@pytest.fixture(scope="session")
def sklearn_calibration() -> ModuleType:
    return program("sklearn.calibration")


@pytest.fixture(scope="session")
def stats() -> ModuleType:
    return program("scipy.stats")


@pytest.fixture(scope="session")
def special() -> ModuleType:
    return program("scipy.special")


@pytest.fixture(scope="session")
def distance() -> ModuleType:
    return program("scipy.spatial.distance")


@pytest.fixture(scope="session")
def sklearn_base() -> ModuleType:
    return program("sklearn.base")


@pytest.fixture(scope="session")
def sklearn_frozen() -> ModuleType:
    return program("sklearn.frozen")


@pytest.fixture(scope="session")
def mapie() -> ModuleType:
    return program("mapie.classification")


@pytest.fixture(scope="session")
def mapie_fwer() -> ModuleType:
    return program("mapie.risk_control.fwer_control")


@pytest.fixture(scope="session")
def crepes() -> ModuleType:
    return program("crepes")
