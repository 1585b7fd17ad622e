#!/usr/bin/env bash
# The FID of torchmetrics with reset_real_features=False, called as a function. torchmetrics 1.9.0, torch 2.14.1.
#
# Expected: metric(images, real=False) adds generated images, as update does, and returns a value for this batch.
# Seen: it doubles the real images: to measure the batch it saves the state, resets, updates and adds the saved state to
# the new one, and this reset keeps the real images. After two batches 50 count as 200, and with the covariance the FID
# is another one. KID and MIFID do the same.
# So: call update() alone; a metric of two sets had better refuse to be called.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 torchmetrics==1.9.0 \
    torch-fidelity==0.4.0
cat >"$folder/look.py" <<'PY'
import torch
from torchmetrics.image.fid import FrechetInceptionDistance


class Features(torch.nn.Identity):
    num_features = 4


torch.manual_seed(0)
real, generated = torch.randn(50, 4), torch.randn(50, 4) + 1
values = []
for how in ("update", "call"):
    metric = FrechetInceptionDistance(feature=Features(), reset_real_features=False)
    metric.update(real, real=True)
    for batch in generated.split(25):
        metric.update(batch, real=False) if how == "update" else metric(batch, real=False)
    values.append(float(metric.compute()))
    print(f"{how}: {int(metric.real_features_num_samples)} real images")
print("the same FID" if abs(values[0] - values[1]) < 1e-5 else "another FID")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
update: 50 real images
call: 200 real images
another FID
SEEN
