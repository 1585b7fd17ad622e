"""The images themselves, shrunken: vectors in which only copies are near each other."""

from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.features import FeatureExtractor


class Pixels(FeatureExtractor):
    """Pixels of images that were shrunken to 32 on the longer side by averaging areas, and never enlarged.

    They are divided by the root of their number, so that the Euclidean distance of two vectors is the root mean square
    difference of two images, in the unit of the pixels. The length of a vector depends on the shape of the images.
    """

    score_name = "pixels"
    longer_side = 32
    dimensions = longer_side**2  # of one square channel

    def identity(self) -> dict[str, str]:
        """Return name, "none" for the weights, and preprocessing."""
        return {
            "extractor": "pixels",
            "weights_sha256": "none",
            "preprocessing": f"area-averaged to at most {self.longer_side} pixels on the longer side",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to pixels (N, C h w), h and w at most 32."""
        scale = min(1.0, self.longer_side / max(images.shape[2:]))
        size = [max(1, round(scale * side)) for side in images.shape[2:]]
        flat = F.interpolate(images, size, mode="area").flatten(1)
        return flat / flat.shape[1] ** 0.5
