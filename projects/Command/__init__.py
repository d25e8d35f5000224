"""The command ``gnws``. Imports neither torch nor Detectron2, so that its help appears at once."""
