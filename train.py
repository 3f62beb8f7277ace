"""`python train.py preset=medium data.dir=photos`: train; `--help` lists every setting."""

from effnet_lit.composition import main

if __name__ == "__main__":
    main()
