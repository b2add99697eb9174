"""Fetches a model before the server starts: MODEL_URL into MODEL_FILE below /models.

A file that does not have MODEL_SHA256 is not put there, and the pod does not start.
"""

import hashlib
import os
import sys
import urllib.request
from pathlib import Path

TIMEOUT_S = 30


def main(folder: Path) -> str | None:
    """Returns what is wrong, if anything is."""
    url, wanted = os.environ["MODEL_URL"], os.environ["MODEL_SHA256"].lower()
    place = folder / os.environ["MODEL_FILE"]
    incoming = place.with_name(".incoming")
    place.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    try:
        request = urllib.request.urlopen(url, timeout=TIMEOUT_S)
        with request as reply, incoming.open("wb") as file:
            while part := reply.read(1 << 20):
                found.update(part)
                file.write(part)
    except (OSError, ValueError) as error:
        return f"{url} cannot be fetched: {error}: check MODEL_URL and the NetworkPolicy"
    if found.hexdigest() != wanted:
        incoming.unlink()
        return f"{url} has SHA-256 {found.hexdigest()}, not {wanted}: another file is there"
    incoming.rename(place)
    sys.stdout.write(f"{place}: {wanted}\n")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "/models")))
