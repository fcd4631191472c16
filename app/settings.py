"""What whoever starts the page decides: where it computes, with which weights, and how much a visitor may ask for."""

from dataclasses import dataclass

_MIB = 2**20
QUEUE_PLACES = 16
DECODE_S = 20.0
"""How long a picture, or a frame of a video, may take to be decoded."""


@dataclass(frozen=True)
class Settings:
    """Settings of one server.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        max_file_mb: largest upload, in MiB.
        max_megapixels: largest picture, and largest frame of a video.
        max_video_s: longest video.
        restoration_model, fusion_model, segmentation_model: names from `moevision models` or .safetensors files.
    """

    device: str = "auto"
    max_file_mb: float = 25.0
    max_megapixels: float = 24.0
    max_video_s: float = 60.0
    restoration_model: str = "restoration-small"
    fusion_model: str = "fusion-small"
    segmentation_model: str = "segmentation-camvid"

    @property
    def max_file_bytes(self) -> int:
        """Of an upload."""
        return round(self.max_file_mb * _MIB)

    @property
    def max_pixels(self) -> int:
        """Of a picture or a frame."""
        return round(self.max_megapixels * 1e6)

    @property
    def decode_memory_bytes(self) -> int:
        """What a process that decodes may take beyond what it starts with: several copies of four deep channels."""
        return 768 * _MIB + 48 * self.max_pixels
