"""How OpenMP's threads in a child process wait for each other."""

from __future__ import annotations

from inhouse.core.settings import own_cores, usable_cores

SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}  # a job's children have inherited what it does
LOOK_S = 0.1
BUSY_PERCENT = 25.0  # of the cores that this process may use, used by others just before the start


def waiting(spins: int) -> dict[str, str]:
    """What a child's environment says of it, so that it suits the machine now: it changes the speed, no result.

    Threads spin where the machine is quiet, so many times, and sleep beside other work: there a spinning thread burns
    the time that the other one needs.
    """
    import psutil

    used, cores = psutil.cpu_percent(interval=LOOK_S, percpu=True), own_cores()
    busy = sum(used[core] for core in cores if core < len(used)) / len(cores)
    quiet = 1 < usable_cores() <= len(cores) and busy < BUSY_PERCENT
    return {"GOMP_SPINCOUNT": str(spins)} if quiet else SLEEPING
