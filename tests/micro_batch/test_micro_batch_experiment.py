"""The jobs of an experiment: a result for each, run once; the best learning rate for each norm."""

import json
from pathlib import Path

import experiment
import processes
import pytest
from experiment import Preset

PRESET = Preset(images=8, lrs=(0.1, 0.2), norms=("BN", "GN"), batches=(2,), seeds=(0,))
JOBS = PRESET.jobs("test", {})
SCORES = {("BN", 0.1): 7.0, ("BN", 0.2): 8.0, ("GN", 0.1): 5.0}


def train(job: experiment.Job) -> dict:
    """Diverges for GN at 0.2; raises an error where it has been called before."""
    Path(f"{job.norm}{job.reference_lr}").touch(exist_ok=False)
    if (job.norm, job.reference_lr) not in SCORES:
        raise FloatingPointError("the loss is nan at step 3")
    return {"score": SCORES[job.norm, job.reference_lr]}


def test_a_job_sees_as_many_images_or_makes_as_many_steps_at_a_rate_linear_in_the_batch():
    by_images = Preset(images=16, seeds=(0,)).jobs("test", dict.fromkeys(experiment.NORMS, 0.1))
    assert {(job.batch, job.steps) for job in by_images} == {(1, 16), (2, 8), (4, 4), (8, 2)}
    assert all(job.lr == pytest.approx(0.1 * job.batch / 8) for job in by_images)
    by_steps = Preset(steps=5, lrs=(0.1,)).jobs("test", {})
    assert {job.steps for job in by_steps} == {5}


@pytest.mark.slow
def test_each_job_has_one_result_and_the_best_rate_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment.multiprocessing, "get_context", lambda _: processes.context())
    folder = tmp_path / "results"
    for jobs in (JOBS[:1], JOBS, JOBS):  # train fails if one is run again
        experiment.run_jobs(train, jobs, folder, processes=1)
    assert len(list(folder.iterdir())) == 4
    diverged = json.loads(JOBS[3].result_file(folder).read_text())
    assert diverged["diverged"] == "the loss is nan at step 3" and "score" not in diverged
    assert experiment.best_lrs(JOBS, folder, "score") == {"BN": 0.2, "GN": 0.1}

    JOBS[0].result_file(folder).unlink()
    with pytest.raises(FileExistsError):
        experiment.run_jobs(train, JOBS, folder, processes=1)
