"""What grows with the number of ranks: connections do not."""

from conftest import fork

PROGRAM = """
import os
import torch
from fdtrain import distributed
from fdtrain.resilience.consensus import Consensus

distributed.connect(60)
consensus = Consensus(("stop",), 60)
for _ in range(3):
    consensus.exchange()
consensus._work.wait()
open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
print(sum("socket:" in file for file in open_files), distributed.rank())
# Until all have counted.
distributed.all_reduce_sum(torch.zeros(1))
"""


def test_a_rank_is_connected_with_those_to_whom_it_speaks(tmp_path):
    """A mesh of twelve would be eleven sockets a rank, in each of two groups."""
    (tmp_path / "program.py").write_text(PROGRAM)
    result = fork([str(tmp_path / "program.py")], tmp_path, processes=12)
    assert result.returncode == 0, result.stderr
    sockets = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(sockets) == 12
    # Rank 0 runs the store.
    assert max(sockets[1:]) <= 8, sockets
