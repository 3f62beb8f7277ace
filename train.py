"""`python train.py preset=medium data.dir=photos`: train; `--help` lists every setting."""

from effnet_lit.train_command import main

if __name__ == "__main__":
    main()
