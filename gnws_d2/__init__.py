"""GN+WS detectors for Detectron2.

Importing this package registers its parts with Detectron2: standardized backbones and heads, a
meta-architecture that standardizes other models, and ``gnws://`` names of checkpoints.
``gnws_d2.layers`` needs torch alone: it, and the environment check, stay importable where
Detectron2 is missing or broken.
"""

from typing import Any

__version__ = "0.2.0"

try:
    import detectron2.layers  # noqa: F401
except ImportError as error:
    import warnings

    warnings.warn(
        f"Detectron2 does not import ({error}): only gnws_d2.layers works. `python -m "
        "gnws.check_env` says what is wrong, and how to get Detectron2.",
        RuntimeWarning,
        stacklevel=2,
    )
else:
    from . import model_zoo  # noqa: F401  registers gnws://
    from .config import add_gnws_config, load_config
    from .modeling import StandardizationReport, standardize

    __all__ = [
        "Predictor",
        "StandardizationReport",
        "add_gnws_config",
        "load_config",
        "standardize",
    ]

# Names that import more than the rest needs. Those of a project are the only ones that lead from
# the package to one.
_LAZY = {"Predictor": ".predictor", "ExportedModel": ".projects.export"}
_LAZY["load_lazy_config"] = ".projects.detection.lazy_config"
_FUNCTIONS = ("train", "evaluate", "predict", "export")  # the commands
_LAZY |= dict.fromkeys(_FUNCTIONS, ".projects.detection.python_api")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
