"""train_net.py, whose processes are forked: an import of torch is most of what they would take."""

import functools

import torch.multiprocessing as mp

from gnws.arguments import parse
from gnws_d2.projects.detection import train_net

if __name__ == "__main__":
    mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
    train_net.main(parse("train"))
