"""What all instruments must keep to."""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_modules.metrics as package
from lightning_modules.metrics.agreement import MomentAgreement, MomentNeighbours
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.from_torchmetrics import TorchmetricsScore
from lightning_modules.metrics.inception_score import InceptionScore
from lightning_modules.metrics.score import DistributionScore, Instrument, MemorisationScore


def all_instruments():
    found = []
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        module = importlib.import_module(f"lightning_modules.metrics.{path.stem}")
        found += [
            cls
            for name, cls in vars(module).items()
            if inspect.isclass(cls) and issubclass(cls, Instrument) and cls.__module__ == module.__name__
            if hasattr(cls, "measure") and not inspect.isabstract(cls) and not name.startswith("_")
        ]
    return found


INSTRUMENTS = all_instruments()
ARGUMENTS = {TorchmetricsScore: ("torchmetrics.image.kid.KernelInceptionDistance", {"subset_size": 20})}


def example(cls, *counts, seed=0):
    """Sets of vectors that the instrument takes: probabilities, moments, or 1,568 numbers for one level of patches."""
    random = torch.Generator().manual_seed(seed)
    sets = [torch.randn(n, 5 if cls in (MomentAgreement, MomentNeighbours) else 1568, generator=random) for n in counts]
    return [x.softmax(dim=1) for x in sets] if cls is InceptionScore else sets


def measured(cls, counts=(60, 55, 50)):
    sets = example(cls, *counts)
    return cls(*ARGUMENTS.get(cls, ())).measure(*(sets if issubclass(cls, MemorisationScore) else sets[:2]))


def test_no_two_instruments_give_the_same_name():
    names = [name for cls in INSTRUMENTS for name in measured(cls)]
    assert len(INSTRUMENTS) == 19
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z_]*[a-z]", name) for name in names)
    assert not {"fid", "kid"} & set(names)


@pytest.mark.parametrize("cls", INSTRUMENTS)
def test_plain_finite_numbers_that_repeat(cls):
    values = measured(cls)
    assert values and all(type(value) is float and np.isfinite(value) for value in values.values())
    assert measured(cls) == values


@pytest.mark.parametrize("cls", INSTRUMENTS)
def test_attributes_make_sense(cls):
    instrument = cls(*ARGUMENTS.get(cls, ()))
    assert issubclass(cls, DistributionScore) != issubclass(cls, MemorisationScore)
    assert instrument.better in ("lower", "higher", "as real")
    assert instrument.reads is None or isinstance(instrument.reads, FeatureExtractor)
    assert 2 <= instrument.at_least <= instrument.enough(240) <= instrument.enough(2048)
    assert instrument.at_most is None or instrument.at_least < instrument.at_most


@pytest.mark.parametrize("cls", INSTRUMENTS)
def test_what_is_not_finite_is_refused(cls):
    sets = example(cls, 60, 55, 50)[: 3 if issubclass(cls, MemorisationScore) else 2]
    sets[1][3, 4] = torch.nan
    with pytest.raises(ValueError, match=f"{cls.__name__}: a vector holds values that are not finite"):
        cls(*ARGUMENTS.get(cls, ())).measure(*sets)


@pytest.mark.parametrize("cls", INSTRUMENTS)
def test_the_global_generators_are_left_alone(cls):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    measured(cls)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
