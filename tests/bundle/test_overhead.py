"""What a bundle costs beside its kernels. Bounds are ample; a quiet machine's figures are in brackets."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np

from tests.bundle.conftest import WIDTH

LOAD = """
import json, resource, sys
from tvm_doping import load
import numpy as np
session = load({path!r}, verify=True)
session.step(np.zeros((1, 8), np.float32))
used = resource.getrusage(resource.RUSAGE_SELF)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024  # ru_maxrss would count the parent that forked
print(json.dumps([used.ru_utime + used.ru_stime, peak, sorted(sys.modules)]))
"""


def test_loading_takes_moments_and_little_memory(saved):
    code = LOAD.format(path=str(saved))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, mebibytes, modules = json.loads(done.stdout)
    assert {"torch", "tvm", "safetensors.torch"} & set(modules) == set()
    assert seconds < 2.0  # [0.3 s of processor time, the interpreter included]
    assert mebibytes < 250  # [56 MiB]


def test_a_step_costs_microseconds(bundle):
    session = bundle.session(batch=1)
    x = np.zeros((1, WIDTH), np.float32)
    best = float("inf")
    for _ in range(20):
        start = time.thread_time()
        for _ in range(500):
            session.step(x)
        best = min(best, (time.thread_time() - start) / 500)
    assert best < 50e-6  # [8 us, of which the model's seven kernels take 5.5]
