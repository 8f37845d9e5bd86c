"""Trains the embedded model ``ddpm_fashion``, as ``qdexp.zoo.training`` says.

python -m qdexp.zoo.train_ddpm --out runs/ddpm_fashion
"""

from qdexp.zoo.training import NoiseTraining, parse, train

if __name__ == "__main__":
    train(NoiseTraining, "ddpm_fashion", parse(__doc__, batch=64, lr=8e-4))
