"""What images are normalised by."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue in [0, 1], over ImageNet's training images."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviations of the same."""
