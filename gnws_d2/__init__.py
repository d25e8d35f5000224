"""GN+WS detectors for Detectron2.

Importing this package registers its parts with Detectron2: standardized backbones and heads, a
meta-architecture that standardizes other models, the Digits dataset, and ``gnws://`` names of
checkpoints. ``gnws_d2.layers`` needs torch alone: it, and the environment check, stay importable
where Detectron2 is missing or broken.
"""

__version__ = "0.1.0"

try:
    import detectron2.layers  # noqa: F401
except ImportError as error:
    import warnings

    from .check_env import INSTALL

    warnings.warn(
        f"Detectron2 does not import ({error}): only gnws_d2.layers works. Get it with {INSTALL}. "
        "`python -m gnws_d2.check_env` diagnoses one that is installed.",
        RuntimeWarning,
        stacklevel=2,
    )
else:
    from . import data, model_zoo  # noqa: F401  register Digits and gnws://
    from .config import add_gnws_config, load_config
    from .modeling import StandardizationReport, standardize

    __all__ = [
        "Predictor",
        "StandardizationReport",
        "add_gnws_config",
        "load_config",
        "standardize",
    ]


def __getattr__(name: str) -> object:
    if name == "Predictor":  # imports Detectron2's engine, which nothing else here needs
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
