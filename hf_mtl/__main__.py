"""`python -m hf_mtl` is `hf-mtl`."""

from hf_mtl.cli import main

if __name__ == "__main__":
    main()
