"""What a run is told about the machine."""

import sys

import pytest
import torch

from vlprompt.machine import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not reset it")
def test_peak_memory_counts_anew_for_each_run() -> None:
    large = torch.ones(2**26)  # 256 MiB
    with_large = peak_memory(CPU)
    del large
    reset_peak_memory(CPU)
    without = peak_memory(CPU)
    assert with_large is not None
    assert without is not None
    assert with_large - without > 2**27
