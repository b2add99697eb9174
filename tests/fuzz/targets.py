"""Lists all that is fuzzed."""

from __future__ import annotations

from tests.fuzz.files import FILES
from tests.fuzz.images import IMAGES
from tests.fuzz.requests import REQUESTS

TARGETS = {target.name: target for target in (*IMAGES, *REQUESTS, *FILES)}
