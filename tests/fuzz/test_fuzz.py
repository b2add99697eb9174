"""Reads some hundred mutations of each kind of other people's bytes, the same ones in every run.

`make fuzz` reads millions, led by what they reach in the code.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.target import mutated
from tests.fuzz.targets import TARGETS

RUNS = 250


@pytest.mark.parametrize("name", [name for name in TARGETS if not TARGETS[name].may_crash])
@pytest.mark.timeout(120)  # some are read in milliseconds, none in seconds
@pytest.mark.filterwarnings("default")  # of the libraries, on what is damaged
def test_only_our_own_errors_come_out(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    chance = random.Random(name)
    found = {target.run(seed) for seed in seeds}
    found |= {target.run(mutated(chance, seeds)) for _ in range(RUNS)}
    assert found >= target.least
