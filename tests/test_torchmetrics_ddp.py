"""Two processes give what one gives, in a LightningModule of somebody else's."""

import os
import subprocess
import sys

import metrics_script
import pytest
import torch
from conftest import ROOT

from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.frechet import frechet_distance_of
from lightning_modules.metrics.kernel import kernel_distance


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with pytest.warns(UserWarning, match="of the real images the first 13 are used"):
        return metrics_script.main(1, str(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "metrics_script.py"), "2", str(folder)],
        cwd=ROOT,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"2-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_what_a_module_logs_is_what_the_plain_functions_give(alone):
    net, images = RandomConvNet(), metrics_script.pictures()
    real, fake = net(images), net(metrics_script.generated(images))
    logged = alone["epochs"][0]
    assert logged["frechet"] == pytest.approx(frechet_distance_of(real, fake), rel=1e-6)
    assert logged["KernelDistance"] == pytest.approx(kernel_distance(real, fake), rel=1e-6)
    assert logged["first"] == pytest.approx(kernel_distance(real[:13], fake[:13]), rel=1e-6)
    assert logged["kept"] == logged["exact"] > 0.1
    assert {"precision", "recall", "density", "coverage", "SlicedWasserstein", "pairs"} <= logged.keys()


def test_every_epoch_begins_anew_and_real_images_are_kept_where_asked(alone):
    first, second = alone["epochs"]
    assert first == second


@pytest.mark.slow
def test_two_processes_log_what_one_logs(alone, both):
    for process in both:
        assert len(process["epochs"]) == 2
        for one, two in zip(alone["epochs"], process["epochs"], strict=True):
            assert two["exact"] == one["exact"]  # sums without rounding: to the bit
            assert two == pytest.approx(one, rel=1e-5)  # batches of 5 or 10 round features otherwise
    assert both[0]["epochs"] == both[1]["epochs"]


@pytest.mark.slow
@pytest.mark.parametrize("share", ["uneven", "empty"])
def test_the_share_of_a_process_does_not_matter(alone, both, share):
    for process in both:
        assert process[share]["FrechetDistance"] == alone[share]["FrechetDistance"]
        assert process[share] == pytest.approx(alone[share], rel=1e-6)
        assert process[share]["images"] == 31


def test_no_weights_and_no_states_are_in_the_modules_checkpoint(alone):
    assert alone["state"] == ["weight"]
