"""ImageNet weights for a new run's backbone."""

from __future__ import annotations

from dataclasses import replace
from zipfile import BadZipFile

from tqdm import tqdm

from model.backbones.mobilenet_v1 import MobileNetV1
from model.fcn import FCN
from training.config import ConfigError, TrainConfig
from training.datasets import SegmentationDataset
from training.loader import training_batches

_BATCH = 8


def load_imagenet(network: FCN, config: TrainConfig, data: SegmentationDataset) -> None:
    """ImageNet weights, and norms that fit them, if the recipe names a file; else nothing.

    Raises: ConfigError if the file is missing, damaged or for another network.
    """
    path = config.init.imagenet
    if path is None:
        return
    backbone = network.backbone
    try:
        backbone.load_imagenet(path)
    except FileNotFoundError as error:
        raise ConfigError(f"init.imagenet: there is no file {path}") from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ConfigError(f"init.imagenet: cannot use {path}: {error}") from error
    if not isinstance(backbone, MobileNetV1):
        return  # has no norms
    augment = replace(config.augment, min_scale=1.0, max_scale=1.0)
    count = min(config.init.calibration_images, len(data))
    batches = training_batches(
        data,
        augment,
        batch_size=min(_BATCH, count),
        seed=config.seed,
        start=0,
        total=max(1, count // _BATCH),
        workers=0,
    )
    bar = tqdm(batches, "measuring norms", unit="batch")
    backbone.restore_norms(images.float() for images, _target in bar)
