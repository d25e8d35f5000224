from coco_files import forget_sources  # noqa: F401
