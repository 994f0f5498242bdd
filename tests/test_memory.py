"""Peak memory: of the GPU as torch counts it, else of the process as Linux counts it."""

import os
import re
from pathlib import Path

import numpy as np
import torch

from drgrade.memory import peak_memory_gb, reset_peak_memory


def test_on_a_cpu_it_is_the_resident_memory_of_the_process():
    """At least the high-water mark of this program, less than the machine has, and it never falls."""
    block = np.ones(200_000_000, np.uint8)
    peak = peak_memory_gb()
    status = Path("/proc/self/status").read_text()
    high_water = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9
    assert high_water * 0.99 <= peak <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    assert peak > block.nbytes / 1e9
    del block
    reset_peak_memory()
    assert peak_memory_gb() >= peak


def test_on_a_gpu_it_is_that_of_tensors_since_it_was_reset(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_500_000_000)
    reset_peak_memory()
    assert calls == ["reset"]
    assert peak_memory_gb() == 3.5
