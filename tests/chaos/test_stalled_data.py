"""A rank whose data stands still, at each stage of ZeRO: all end in time, and it is named.

In CI at two stages, which reduce in different ways; ``make chaos`` tries all.
"""

import os
import signal

import psutil
import pytest
from jobs import Group, message, wait_for_step

STAGES = (0, 1, 2, 3) if "FDTRAIN_CHAOS_KILLS" in os.environ else (0, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_waits_for_its_data(launch, stage):
    settings = ["training.heartbeat_timeout_s=10", "training.collective_timeout_s=20", "training.steps=100000"]
    with Group(2, launch.command(*settings, f"training.zero_stage={stage}", processes=0)) as jobs:
        wait_for_step(launch, 2, jobs[0])
        (reader,) = psutil.Process(jobs[0].pid).children()
        reader.send_signal(signal.SIGSTOP)
        for job in jobs:
            # Twenty seconds and the diagnosis; torch's own patience is half an hour.
            said = message(job, 150)
            assert f"rank 0 (process {jobs[0].pid} on " in said
            assert "held up the others for longer than training.collective_timeout_s (20 s), though alive" in said
        reader.wait(20)
