"""``python -m lightning_dqn.ray``."""

from lightning_dqn.ray.cli import main

if __name__ == "__main__":
    main()
