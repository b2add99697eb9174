"""What a GPU makes of the networks, alone and behind the server, in one run and one JSON.

    make bench-gpu                                        # eight minutes on a GPU
    python -m bench.gpu --only latency --minutes 3        # a part; the others' results stay
    python -m bench.gpu --provider cpu --quick            # everything once, tiny, on any machine

Networks have random weights: the time does not depend on them. Run from the project's root; nothing
of the project needs to be installed. What a part lacks here (a package, a driver) is said in its
place in the JSON, and the run goes on.
"""
