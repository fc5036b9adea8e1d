"""From the bytes of an image file to a tensor of pixels, the way training reads images: as fast as libjpeg-turbo is.

simplejpeg is a thin binding of libjpeg-turbo. Where it is not installed Pillow decodes everything: to the same pixels,
through four-byte pixels of its own and copies out of them.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from flsl.data.decode import decode_jpeg, open_image, reason, to_rgb
from flsl.runtime.errors import UserError


def decode_pixels(data: bytes, name: object) -> Tensor:
    """Return the pixels (3, height, width), uint8, that :func:`flsl.data.decode.load_rgb` would give.

    Usual JPEGs are decoded by simplejpeg; everything else, and what it refuses, by Pillow.

    Args:
        data: the file's bytes.
        name: of the file, for messages.

    Raises:
        UserError: naming the file, when it cannot be decoded.
    """
    try:
        # Pillow reads the header in any case: it knows more kinds, and refuses decompression bombs
        image = open_image(BytesIO(data))
        if decode_jpeg is not None and image.format == "JPEG" and image.mode == "RGB":
            with suppress(ValueError):
                return torch.from_numpy(decode_jpeg(data, "RGB")).permute(2, 0, 1)
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    except Exception as error:  # whatever a parser of damaged bytes may raise
        raise UserError(f"{name}: not a readable image: {reason(error)}") from error
