"""The repository's `projects/`, installed with the package; `setup.py` says which."""
