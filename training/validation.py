"""Scores in the middle of a run, and pictures for its log."""

from __future__ import annotations

from training.datasets import SegmentationDataset
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import Scores
from training.evaluation.predictors import NetworkPredictor
from training.learner import Learner
from training.record import Record

_PICTURES = 4


def validate(learner: Learner, data: SegmentationDataset, record: Record | None) -> Scores:
    """Scores of the averaged weights on the whole of `data`, its images shared among the processes;
    `record` gets a few predictions."""
    with learner.averaged_weights():
        predict = NetworkPredictor(learner.network, bf16=learner.bf16)
        scores = evaluate(predict, data, progress=False, ranks=learner.ranks).scores()
        step = max(1, len(data) // _PICTURES)
        for index in range(0, len(data), step)[:_PICTURES]:
            if record is not None:
                sample = data[index]
                record.picture(f"val/{index}", learner.iteration, sample, predict(sample.image))
    learner.network.train()
    return scores
