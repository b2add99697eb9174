"""Batch norms are measured anew on images, in batches as large as one likes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.backbones.norms import measure


@pytest.fixture
def network() -> nn.Sequential:
    """Two norms, the second behind a ReLU, whose statistics are those of no image."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
    )
    return layers.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return 40 * torch.rand(count, 3, 9, 8, generator=torch.Generator().manual_seed(seed)) + 7


def norms(network: nn.Sequential) -> list[nn.BatchNorm2d]:
    return [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]


def test_measured_on_one_batch_a_network_does_what_it_does_in_training(
    network: nn.Sequential,
) -> None:
    batch = images(6)
    assert not torch.allclose(network(batch), network.train()(batch), atol=0.1)
    network.eval()
    weights = [parameter.clone() for parameter in network.parameters()]
    measure(network, [batch])
    assert not any(layer.training for layer in network)
    assert [norm.momentum for norm in norms(network)] == [0.1, 0.1]
    served = network(batch)
    torch.testing.assert_close(served, network.train()(batch), rtol=1e-4, atol=1e-4)
    for before, after in zip(weights, network.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_statistics_are_of_all_batches_together(network: nn.Sequential) -> None:
    """And not the mean of each one's, which knows nothing of what differs between batches."""
    dark, light = images(2), images(3, seed=2) + 100
    measure(network, [dark, light])
    first = network[0](torch.cat([dark, light]))
    norm = norms(network)[0]
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, first.var(dim=(0, 2, 3), correction=0))


def test_a_network_in_training_stays_in_training(network: nn.Sequential) -> None:
    network.train()
    measure(network, [images(2)])
    assert all(layer.training for layer in network)


def test_without_images_nothing_is_measured(network: nn.Sequential) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="at least one batch"):
        measure(network, [])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
