"""Augmentation of decoded faces on the device: uint8 images (N, 3, H, W), RGB, in and out.

N images of H x W pixels; M of them chosen by a step. What happens to an image is a function of (seed, epoch, sample
id, place in the list, name) alone: not of the batch that it is in, the rank or the number of ranks. Sums are taken over
whole numbers that float32 holds exactly, so their order, and with it the batch and the device, does not matter either.

The table maps a YAML name to its class.
"""

from gkd.data.augment.augment import Augment
from gkd.data.augment.augmentation import Augmentation
from gkd.data.augment.crop_resize import CropResize
from gkd.data.augment.cutout import Cutout
from gkd.data.augment.draws import Draws
from gkd.data.augment.flip import Flip
from gkd.data.augment.grey import Grey
from gkd.data.augment.jpeg import Jpeg
from gkd.data.augment.low_resolution import LowResolution
from gkd.data.augment.lower_face import LowerFace
from gkd.data.augment.photometric import Photometric

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "flip": Flip,
    "low_resolution": LowResolution,
    "jpeg": Jpeg,
    "crop_resize": CropResize,
    "photometric": Photometric,
    "grey": Grey,
    "cutout": Cutout,
    "lower_face": LowerFace,
}

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "Augmentation",
    "CropResize",
    "Cutout",
    "Draws",
    "Flip",
    "Grey",
    "Jpeg",
    "LowResolution",
    "LowerFace",
    "Photometric",
]
