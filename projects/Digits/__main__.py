"""Make the Digits dataset if it does not exist yet; print its folder."""

import argparse
import logging

from gnws_d2.errors import one_line_errors

from .make import make_digits


@one_line_errors(OSError)
def main() -> None:
    argparse.ArgumentParser("python -m gnws_d2.projects.digits", description=__doc__).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(make_digits())


if __name__ == "__main__":
    main()
