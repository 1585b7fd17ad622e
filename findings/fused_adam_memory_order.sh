#!/usr/bin/env bash
# A run saved channels first and resumed channels last, with fused Adam on a CPU. torch 2.14.1.
#
# Expected: weights and Adam's averages are numbers; how they lie in memory changes the speed, not the result.
# Seen: load_state_dict keeps the averages in the order of the file. The fused step walks weight, gradient and averages
# by their place in memory, so in a channels-last network each weight gets another weight's averages: after three steps
# at a rate of 0.01 weights are up to 0.04 off, without a word. The default step gives the same weights in both orders.
# So: bring the averages into their parameter's order when a checkpoint is loaded, or refuse it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat >"$folder/look.py" <<'PY'
import torch


def train(network, optimizer, images):
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


def resumed_in(order, fused):
    torch.manual_seed(0)
    network, images = torch.nn.Conv2d(3, 4, 2), torch.randn(8, 3, 5, 5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=fused)
    train(network, optimizer, images)
    again = torch.nn.Conv2d(3, 4, 2).to(memory_format=order)
    its_optimizer = torch.optim.Adam(again.parameters(), lr=0.01, fused=fused)
    again.load_state_dict(network.state_dict())
    its_optimizer.load_state_dict(optimizer.state_dict())
    train(again, its_optimizer, images)
    return again.weight.detach().contiguous()


for fused in (False, True):
    weights = [resumed_in(order, fused) for order in (torch.contiguous_format, torch.channels_last)]
    off = float((weights[0] - weights[1]).abs().max())
    print(f"fused={fused}: {'more than 0.01' if off > 0.01 else 'at most 0.000001' if off <= 1e-6 else off}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
fused=False: at most 0.000001
fused=True: more than 0.01
SEEN
