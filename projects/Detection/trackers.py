"""The scalars of a training in Weights & Biases or MLflow, beside TensorBoard."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from gnws_d2.config import leaves
from gnws_d2.errors import ConfigError, shorten
from gnws_d2.files import atomic_write

logger = logging.getLogger(__name__)

RUNS_FILE = "trackers.json"  # in OUTPUT_DIR: the id that a tracker gave the run
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
WINDOW = 20  # values that a scalar is the median of, as in TensorBoard
Log = Callable[[dict[str, float], int], object]  # (values, iteration)


class TrackerWriter(EventWriter):
    """Writes the scalars of each iteration once.

    An error of the tracker, such as one of the network, ends the writing, not the training.

    Args:
        log: writes values of an iteration.
        finish: ends the run there.
    """

    def __init__(self, name: str, log: Log, finish: Callable[[], object]) -> None:
        self._name, self._log, self._finish = name, log, finish
        self._last = -1
        self._works = True

    def write(self) -> None:
        found: defaultdict[int, dict[str, float]] = defaultdict(dict)
        storage = get_event_storage()
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last:
                # MLflow takes no other characters, and classes may have any.
                found[iteration][re.sub(r"[^\w\-. :/]", "_", name)] = value
        for iteration, values in sorted(found.items()):
            self._try(lambda values=values, iteration=iteration: self._log(values, iteration))
            self._last = iteration

    def close(self) -> None:
        self._try(self._finish)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            if self._works:
                call()
        except Exception as error:
            self._works = False
            logger.warning("%s fails (%s): nothing more is written there.", self._name, error)


def open_tracker(name: str, cfg: CfgNode, resume: bool) -> TrackerWriter:
    """A writer to "wandb" or "mlflow", of a run named as OUTPUT_DIR. Their own environment
    variables, such as WANDB_PROJECT and MLFLOW_TRACKING_URI, say where. It gets the config.

    Args:
        resume: continue the run that OUTPUT_DIR had there.

    Raises:
        ConfigError: its package is not installed, or refuses.
    """
    file, title = Path(cfg.OUTPUT_DIR, RUNS_FILE), Path(cfg.OUTPUT_DIR).absolute().name
    ids: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    former = ids.get(name) if resume else None
    try:
        if name == "wandb":
            import wandb

            run = wandb.init(
                **{"name": title, "dir": cfg.OUTPUT_DIR, "config": dict(leaves(cfg))},
                **{"id": former, "resume": "allow" if former else None},
            )
            ids[name] = run.id
            writer = TrackerWriter(
                name, lambda values, step: run.log(values, step=step), run.finish
            )
        else:
            import mlflow

            ids[name] = mlflow.start_run(former, run_name=title).info.run_id
            mlflow.log_text(cfg.dump(), "config.yaml")
            writer = TrackerWriter(
                name, lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run
            )
    except ImportError as error:
        raise ConfigError(
            f"--logger {name} needs a package that is not installed ({error}). Run "
            f"pip install {PACKAGES[name]}."
        ) from error
    except Exception as error:  # each tracker has its own
        message = shorten(str(error), quote=False)
        raise ConfigError(f"--logger {name} cannot be used: {message}") from error
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(ids))
    return writer
