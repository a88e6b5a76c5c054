"""Train a model or learn a word: `python main.py --base configs/finetune.yaml -t ...`.

The module also has the classes that configurations of the original code base name, such as
`main.ImageLogger`.
"""

from ldm.cli.commands import train
from ldm.cli.train import __getattr__ as __getattr__
from ldm.cli.train import main as main

if __name__ == "__main__":
    train()
