"""What a run is told about the machine."""

import sys
import time

import pytest
import torch

from vlprompt.training.device import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not reset it")
def test_peak_memory_counts_anew_for_each_run() -> None:
    reset_peak_memory(CPU)  # of what earlier tests took
    large = torch.ones(2**26)  # 256 MiB
    with_large = peak_memory(CPU)
    assert with_large is not None
    del large
    limit = time.monotonic() + 20
    while True:  # systems may take their time to count what was given back
        reset_peak_memory(CPU)
        without = peak_memory(CPU)
        assert without is not None
        if with_large - without > 2**27:
            break
        assert time.monotonic() < limit
        time.sleep(0.05)
