#!/usr/bin/env bash
# Frechet Radiomics Distance, version 1 (the default), of small PNG files. frd-score 1.0.1, pyradiomics 3.0.1, Python 3.11.
#
# Expected: a distance: 0 for a set and itself, the same both ways, of pictures, whatever numbers their files hold them in.
# Seen: it is the logarithm of a squared distance: -inf (or, by rounding, a large negative number) for a set and itself,
# which no mean or interval survives, and negative values for near sets. Features are z-scored by the first set, so the
# order changes the value. To the features come pyradiomics' diagnostics, among them mean and range of the raw file: the
# same pictures in files of 8 and of 16 bits are as far apart as unlike sets. LoG features are asked for and skipped in
# two dimensions: 385 features and 13 diagnostics, not the 464 of the settings' header. Three features, the means of the
# wavelet's detail bands, are 0 but for rounding (1e-15, of values with deviation 100), and count as much as any other once
# they are z-scored. One flat picture ends the
# comparison with an error that does not name it.
# pyradiomics does not build by pip alone: its setup imports numpy and versioneer, which it does not ask for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip numpy==2.4.6 setuptools==80.9.0 wheel versioneer==0.29
pip --no-build-isolation pyradiomics==3.0.1
pip frd-score==1.0.1
cat >"$folder/look.py" <<'PY'
import contextlib
import io
import logging
import sys
from pathlib import Path

import numpy as np
from frd_score import frd
from PIL import Image

logging.disable(logging.CRITICAL)
folder, random = Path(sys.argv[1]), np.random.default_rng(0)


def written(name, pictures):
    (folder / name).mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / name / f"{i}.png")
    return str(folder / name)


def distance(*sets):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return frd.compute_frd(list(sets), num_workers=1)


flat = np.full((20, 20), 7, np.uint8)
pictures = random.integers(0, 256, (12, 20, 20)).astype(np.uint8)
smooth = [np.asarray(Image.fromarray(one).resize((10, 10)).resize((20, 20))) for one in pictures]
a, b = written("a", pictures), written("b", smooth)
a16 = written("a16", pictures.astype(np.uint16) * 257)
with_flat = written("with_flat", [*pictures, flat])

itself, there, back = distance(a, a), distance(a, b), distance(b, a)
print("a set and itself: below -10, or -inf:", bool(itself < -10))
print("one way and back differ by more than 0.2:", bool(abs(there - back) > 0.2))
print("8 and 16 bits of the same pictures are more than 10 apart:", bool(distance(a, a16) > 10))
extractor = frd.get_feature_extractor("v1", image_dim=2)
(_, found, _) = frd.process_image_mask_pair((f"{a}/0.png", None), feature_extractor=extractor)
print("features:", sum(not name.startswith("diag") for name in found), "diagnostics:",
      sum(name.startswith("diag") for name in found))
bands = [abs(found[f"wavelet-{band}_firstorder_Mean"]) for band in ("LH", "HL", "HH")]
print("means of the detail bands are rounding:", max(bands) < 1e-12)
try:
    distance(a, with_flat)
except ValueError as error:
    print("one flat picture:", error)
print(f"seen: itself {itself:.2f}, there {there:.2f}, back {back:.2f}", file=sys.stderr)
PY
"$folder/venv/bin/python" -W ignore "$folder/look.py" "$folder" 2>"$folder/errors" | tee "$folder/seen" || { cat "$folder/errors"; exit 1; }
tail -1 "$folder/errors"
diff "$folder/seen" - <<'SEEN'
a set and itself: below -10, or -inf: True
one way and back differ by more than 0.2: True
8 and 16 bits of the same pictures are more than 10 apart: True
features: 385 diagnostics: 13
means of the detail bands are rounding: True
one flat picture: arange: cannot compute length
SEEN
