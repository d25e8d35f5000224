from coco_files import file, forget_sources  # noqa: F401
