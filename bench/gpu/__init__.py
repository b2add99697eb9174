"""Measures what a GPU makes of the networks, alone and behind the server, into one JSON.

    make bench-gpu                                        # everything
    python -m bench.gpu --only latency --networks vgg16   # a part; the others' results stay
    python -m bench.gpu --provider cpu --quick            # everything once, tiny, on any machine

Networks have random weights: the time does not depend on them. Run from the project's root; nothing
of the project needs to be installed. A part that fails says why in its place, and the run goes on.
No card has run this yet: it is what is worth knowing first, and no more.
"""
