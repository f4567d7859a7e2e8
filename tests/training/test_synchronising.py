"""A step does not wait for the device: all that the host asks for within it is on the host.

At fp16 ZeRO asks whether a gradient has overflowed, and with an optimiser that is offloaded for its norm.
"""

import re

import pytest
from conftest import fork

ON_THE_HOST = {
    # Counts of the averages.
    "ema_pytorch.py:update",
    "ema_pytorch.py:get_current_decay",
    "ema.py:get_current_decay",
    # A number of the step before, copied by then.
    "state.py:read",
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_host_waits_for_nothing_of_a_step(launch, stage):
    settings = ["training.optimizer=muon", "ema.lengths=[0.1]", "ema.snapshot_every=100", "monitor.log_every=100"]
    settings += [f"training.zero_stage={stage}"]
    command = launch.command(*settings, processes=0)[2:]
    result = fork(["tests/training/synchronising.py", *command], launch.folder)
    assert result.returncode == 0, result.stderr
    found = set(re.findall("^waits: (.+)$", result.stdout, re.MULTILINE))
    assert found == ON_THE_HOST
