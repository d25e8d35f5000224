"""What is aimed at, as a ratio to another variant of the same model, and whether it is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import CASE, Row, describe
from variants import BASE, CONTROL, OURS

NOT_MEASURED = "not measured yet"
MET, MISSED, UNDECIDED = "met", "**missed**", "undecided"


@dataclass(frozen=True)
class Aim:
    """``variant`` takes at most ``most`` times the ``metric`` ("time" or "memory") of ``base`` in
    all rows that have the values of ``where``; with ``noise``, more is met up to the upper end of
    the control's interval. Times are compared with GN alone."""

    text: str
    device: str
    where: dict[str, Any]
    most: float
    metric: str = "time"
    variant: str = OURS
    base: str = BASE
    noise: bool = False
    models: tuple[str, ...] = ()


_R50 = ("faster_rcnn_R_50_FPN", "mask_rcnn_R_50_FPN")
_TRAIN = {"mode": "train", "batch": 1}
_REBUILT = f"{OURS}, convolutions rebuilt"

AIMS = [
    *(
        Aim(f"inference, {name}: no slower", device, {"mode": "infer"}, 1.0, noise=True)
        for name, device in (("CPU", "cpu"), ("GPU", "cuda"))
    ),
    *(
        Aim(
            f"training, CPU, R-50, {size[0]} x {size[1]}: {most} in time",
            "cpu",
            {**_TRAIN, "size": size},
            most,
            models=_R50,
        )
        for size, most in (([800, 1333], 1.02), ([512, 512], 1.05))
    ),
    *(
        Aim(
            f"training, GPU, {precision}, {name}: {most} in {metric}",
            "cuda",
            {"mode": "train", "precision": precision},
            most,
            metric,
            variant,
        )
        for precision in ("fp32", "bf16")
        for variant, name, time, memory in (
            (OURS, "WS alone", 1.01, 1.01),
            (f"{OURS}, fused, rebuilt", "fused and rebuilt", 0.85, 0.65),
            (_REBUILT, "convolutions rebuilt too", 0.85, 0.65),
        )
        for metric, most in (("time", time), ("memory", memory))
    ),
    *(
        Aim(
            f"training, {name}, convolutions rebuilt too: the memory of FrozenBN",
            device,
            {"mode": "train"},
            1.0,
            "memory",
            _REBUILT,
            "FrozenBN",
        )
        for name, device in (("CPU", "cpu"), ("GPU", "cuda"))
    ),
]


def aims_table(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """For each aim, each row of the runs (by the names of their files) that it is measured by: the
    aim, the case, the run, the ratio, the interval of the control, and the verdict."""
    lines = []
    for aim in AIMS:
        found = [
            _line(aim, row, run["rows"], Path(file).stem)
            for file, run in runs.items()
            for row in run["rows"]
            if _is_of(aim, row)
        ]
        lines += found or [[aim.text, "", "", "", "", NOT_MEASURED]]
    return lines


def _is_of(aim: Aim, row: Row) -> bool:
    return (
        row["level"] in ("backbone", "model")
        and row["variant"] == aim.variant
        and row["device"].startswith(aim.device)
        and (not aim.models or row["model"] in aim.models)
        and all(row[key] == value for key, value in aim.where.items())
    )


def _line(aim: Aim, row: Row, rows: list[Row], run: str) -> list[str]:
    others = {other["variant"]: other for other in rows if _case(other) == _case(row)}
    if aim.metric == "memory":
        value = row["memory"] / others[aim.base]["memory"]
        shown, noise = f"{value:.3f}", ""
        verdict = MET if value <= aim.most else MISSED
    else:
        value, low, high = row["ratio"]
        _, control_low, control_high = others[CONTROL]["ratio"]
        shown = f"{value:.3f} ({low:.3f} to {high:.3f})"
        noise = f"{control_low:.3f} to {control_high:.3f}"
        verdict = _verdict(row["ratio"], (control_low, control_high), aim)
    return [aim.text, f"{row['level']}, {describe(row)}", run, shown, noise, verdict]


def _verdict(ratio: list[float], control: tuple[float, float], aim: Aim) -> str:
    value, low, high = ratio
    if not control[0] <= 1 <= control[1]:
        return UNDECIDED  # the same model twice, and a difference: any other may be none
    most = max(aim.most, control[1]) if aim.noise else aim.most
    if low > most:
        return MISSED
    return MET if (value if aim.noise else high) <= most else UNDECIDED


def _case(row: Row) -> list[Any]:
    return [row[key] for key in (*CASE, "level", "mode", "device")]
