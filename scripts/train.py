"""`hf-mtl train` as a script, for launchers: `accelerate launch scripts/train.py RECIPE --output-dir DIR`."""

import sys

from hf_mtl.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
