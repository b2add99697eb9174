"""Scores in the middle of a run, and logs a few predictions."""

from __future__ import annotations

from training.datasets import SegmentationDataset
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import Confusion
from training.evaluation.predictors import NetworkPredictor
from training.learner import Learner
from training.run_log import RunLog

_IMAGES = 4


def validate(learner: Learner, data: SegmentationDataset, run_log: RunLog | None) -> Confusion:
    """Evaluate the averaged weights on the whole of `data`, its images shared among the processes;
    `run_log` gets a few predictions."""
    with learner.averaged_weights():
        predict = NetworkPredictor(learner.network, bf16=learner.bf16)
        confusion = evaluate(predict, data, progress=False, world=learner.world)
        if run_log is not None:
            step = max(1, len(data) // _IMAGES)
            for index in range(0, len(data), step)[:_IMAGES]:
                sample = data[index]
                run_log.image(f"val/{index}", learner.iteration, sample, predict(sample.image))
    learner.network.train()
    return confusion
