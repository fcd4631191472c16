"""Files <-> arrays: reading, writing, metadata and tiling of images, without any model code or torch."""
