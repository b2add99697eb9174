"""The id a request is known by in answers and logs, whichever transport it came through."""

from __future__ import annotations

import random
import re

HEADER = "x-request-id"

# Seeded by the system once. An id is no secret, and asking the system for each cost 31 us.
_random = random.Random()

# No CR, LF or other character that could forge a header or a log line.
_VALID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(offered: str | None) -> str:
    """The caller's id if it has 1 to 128 of the characters A-Z a-z 0-9 . _ : -, else a fresh one.

    An unusable id does not fail the request: tracing must not cost anyone an answer.
    """
    if offered is not None and is_valid(offered):
        return offered
    return f"{_random.getrandbits(128):032x}"


def is_valid(offered: str) -> bool:
    """Whether it may be an id: also that of an item of a stream."""
    return _VALID.fullmatch(offered) is not None
