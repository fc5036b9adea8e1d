"""Figures of the papers, for reading beside those that were measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What a paper reports of Mask R-CNN on COCO val2017, fine-tuned for 12 epochs (the 1x schedule).

    Attributes:
        method: how the encoder was pretrained (on ImageNet-1K).
        encoder: its architecture.
        box, mask: AP of boxes and of masks, in percent.
        source: where it is reported.
    """

    method: str
    encoder: str
    box: float
    mask: float
    source: str

    @property
    def name(self) -> str:
        """Method and encoder."""
        return f"{self.method}, {self.encoder}"

    @property
    def figures(self) -> dict[str, float]:
        """The figures by the names that are used here."""
        return {"coco/bbox/AP": self.box, "coco/segm/AP": self.mask}


COCO = (
    Published("SelfPatch (DINO)", "ViT-S/16", 42.1, 38.5, "as compared in arXiv 2306.13337"),
    Published("ADCLR", "ViT-S/16", 44.3, 39.7, "arXiv 2306.13337"),
    Published("FLSL", "ViT-S/16", 44.9, 40.8, "arXiv 2306.06203"),
    Published("FLSL", "ViT-S/8", 46.5, 42.1, "arXiv 2306.06203"),
)
