"""Both nodes, their links, three hosts and a clock in one thread: the real cores, by seed.

    python tests/sim/run.py --seeds 2000          python tests/sim/run.py --seed 17 --verbose
    python -m pytest tests/sim --seeds 200        python tests/sim/mutants.py

    scenario.py   what a seed decides: traffic, habits, settings, faults, cuts, failovers
    plans.py      the connections, as scripts            host.py      a host without I/O: connection.py, habits.py
    wire.py       frames to fields and back              world.py     clock, hosts and processes; see there
    checker.py    the invariants, held against the trace show.py      the trace in words
    known.py      faults that are known and not mended   mutants.py   guards of guards.py taken out one by one
                                                         caught.json  and seeds that notice it

`wire`, `host` and `checker` share no code with the cores: what those read wrongly is read rightly here.
"""
