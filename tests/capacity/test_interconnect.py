import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, environment

from fdtrain.capacity.interconnect import REDUCE_TO_OWNERS, Interconnect, least, step, traffic

G = 4 * 10**8
NETWORK = Interconnect(devices_per_node=8, inside=100e9, between=5e9, latency=0.0)


def test_bytes_by_stage():
    assert least(G, 2) == G
    for stage in (0, 1, 2):
        assert traffic(G, 8, stage).total == pytest.approx(least(G, 8))
    assert traffic(G, 8, 2, passes=3).total == pytest.approx(2 * least(G, 8))
    assert traffic(G, 8, 3).total == pytest.approx(1.5 * least(G, 8))
    assert traffic(G, 2 * REDUCE_TO_OWNERS, 1).total == pytest.approx(1.5 * least(G, 2 * REDUCE_TO_OWNERS))


def test_one_device_talks_to_nobody():
    alone = step(0.1, G, 1, 1, NETWORK)
    assert (alone.seconds, alone.efficiency) == (0.1, 1.0)


def test_a_step_by_hand():
    """Eight devices in a node: 7/8 of 0.4 GB to reduce and to gather, at 100 GB/s."""
    found = step(1.0, G, 8, 1, NETWORK)
    assert found.reduce == found.gather == pytest.approx(0.0035)
    assert found.seconds == pytest.approx(1.0035)
    slow = step(1.0, G, 8, 1, NETWORK, overlap=False)
    assert slow.seconds == pytest.approx(1.007)
    assert step(1.0, G, 8, 0, NETWORK).seconds == pytest.approx(1.007)
    assert slow.efficiency == pytest.approx(1 / 1.007)


def test_the_narrowest_link_and_latency():
    assert NETWORK.bandwidth(8) == 100e9
    assert NETWORK.bandwidth(16) == 40e9
    assert replace(NETWORK, between=500e9).bandwidth(16) == 100e9
    hops = replace(NETWORK, latency=1e-3)
    # A tree of depth 12, there and back, for each of twelve buckets.
    late, early = (step(1.0, G, 4096, 0, network).reduce for network in (hops, NETWORK))
    assert late - early == pytest.approx(12 * 24e-3)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_more_devices_never_cost_less(stage):
    seconds = [step(0.05, G, n, stage, Interconnect()).seconds for n in (1, 2, 4, 8, 16, 64, 512, 4096)]
    assert seconds == sorted(seconds)


def test_the_bytes_of_real_steps():
    """Two processes, ZeRO 0, 1 and 2, counted where torch.distributed is called: within 5 % of a ring's least."""
    command = [sys.executable, "benchmarks/scaling.py", "--volume", "--images", "2"]
    out = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    ratios = [float(line.split()[-4]) for line in out.splitlines() if line.startswith("ZeRO")]
    assert len(ratios) == 3
    assert all(0.99 < ratio < 1.05 for ratio in ratios)
