"""Write a checkpoint for release: the weights and their config only, with 8 digits of their SHA-256 in the name.

Optimizer, schedules and logs are left out. OUT.safetensors becomes OUT-<hash>.safetensors; any other suffix stands for
the format of torch.
"""

import argparse

from rich.console import Console

from se_mm.conversion import save_weights
from se_mm.engine import guard
from se_mm.weights import read_checkpoint


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', help='checkpoint of training')
    parser.add_argument('out_file', help='file to write, .safetensors or .pth')
    return parser.parse_args()


def main():
    args = parse_args()
    checkpoint = read_checkpoint(args.in_file)
    keys = ('backbone', 'cfg', 'data_preprocessor', 'dataset_meta', 'epoch', 'iter', 'seed')
    meta = {key: value for key, value in (checkpoint.get('meta') or {}).items() if key in keys}
    path = save_weights(checkpoint['state_dict'], args.out_file, meta, hashed=True)
    Console().print(f'{path}: {len(checkpoint["state_dict"])} tensors')


if __name__ == '__main__':
    with guard():
        main()
