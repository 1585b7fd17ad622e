import hashlib

import pytest
import torch

from lightning_modules.metrics.features import InceptionV3


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """Weights of the reference's architecture, drawn here: the real ones must be downloaded."""
    import torch_fidelity.feature_extractor_inceptionv3 as reference

    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(reference.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    network = reference.FeatureExtractorInceptionV3("inception-v3", ["2048"])
    monkeypatch.undo()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(InceptionV3, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path
