#!/usr/bin/env bash
# Kernel distance of torchmetrics on two processes, one with a batch more. torchmetrics 1.9.0, torch 2.14.1.
#
# Expected: compute() gathers the features of all processes; processes may differ in their number of batches.
# Seen: each batch in a state is gathered by a call of its own (dist_reduce_fx=None). The process with fewer batches
# takes the other's last real batch for a generated one and never sees its last two generated ones: a number without an
# error, of the wrong sets, while the other process waits. MIFID, inception score and LPIPS keep their states alike.
# Equal numbers of batches gather rightly, but each process draws subsets of its own and reports another number.
# So: keep rows of numbers with dist_reduce_fx="cat", which are joined before they are sent, and draw from a fixed seed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 torchmetrics==1.9.0 \
    torch-fidelity==0.4.0
cat >"$folder/look.py" <<'PY'
import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.image.kid import KernelInceptionDistance

warnings.simplefilter("ignore")


def work(rank, task, port, numbers):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=20))
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subset_size=5, subsets=3)
    if task == "uneven":
        for _ in range(2 + rank):  # 1 is real, -1 generated
            metric.update(torch.ones(10, 4), real=True)
            metric.update(-torch.ones(10, 4), real=False)
        try:
            metric.sync()
        except RuntimeError:  # the other process has gone
            return
        if rank == 0:
            print("generated:", [float(batch.mean()) for batch in metric.fake_features], flush=True)
    else:
        torch.manual_seed(rank)
        for _ in range(2):
            metric.update(torch.randn(10, 4), real=True)
            metric.update(torch.randn(10, 4), real=False)
        numbers[rank] = float(metric.compute()[0])


if __name__ == "__main__":
    numbers = mp.get_context("spawn").Manager().list([0.0, 0.0])
    for task, port in (("uneven", 29871), ("even", 29872)):
        processes = [mp.get_context("spawn").Process(target=work, args=(r, task, port, numbers)) for r in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    print("equal numbers of batches:", "one number" if numbers[0] == numbers[1] else "two numbers")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/look.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
generated: [-1.0, 1.0, -1.0, -1.0]
equal numbers of batches: two numbers
SEEN
