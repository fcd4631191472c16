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
        restoration_models, fusion_models, segmentation_models: names from `moevision models` or .safetensors files
            that visitors can choose beside the shipped ones; the first is the default.
    """

    device: str = "auto"
    max_file_mb: float = 25.0
    max_megapixels: float = 24.0
    max_video_s: float = 60.0
    restoration_models: tuple[str, ...] = ()
    fusion_models: tuple[str, ...] = ()
    segmentation_models: tuple[str, ...] = ()

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
