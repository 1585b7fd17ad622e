#!/usr/bin/env bash
# Kernel distance of torchmetrics on two processes that have seen equally many batches. torchmetrics 1.9.0, torch 2.14.1.
#
# Expected: compute() gathers the features of all processes, so every process reports one and the same number.
# Seen: the features are gathered rightly (both processes hold the same sum of them), but each process draws subsets by a
# random state of its own: two numbers of one score, of which a logger on the first process keeps one.
# In words alone, for the other process waits then: with a batch more on one process, each batch of a state being
# gathered by a call of its own (dist_reduce_fx=None), real features were counted among generated ones without an error.
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

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.image.kid import KernelInceptionDistance

warnings.simplefilter("ignore")


def work(rank, sums, numbers):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29872")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subset_size=5, subsets=3)
    torch.manual_seed(rank)
    for _ in range(2):
        metric.update(torch.randn(10, 4), real=True)
        metric.update(torch.randn(10, 4), real=False)
    with metric.sync_context():
        sums[rank] = float(torch.cat(metric.real_features).double().sum())
    numbers[rank] = float(metric.compute()[0])
    dist.destroy_process_group()


if __name__ == "__main__":
    manager = mp.get_context("spawn").Manager()
    sums, numbers = manager.list([0.0, 0.0]), manager.list([0.0, 0.0])
    processes = [mp.get_context("spawn").Process(target=work, args=(r, sums, numbers)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print("features:", "the same" if sums[0] == sums[1] else "others")
    print("kernel distance:", "one number" if numbers[0] == numbers[1] else "two numbers")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/look.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
features: the same
kernel distance: two numbers
SEEN
