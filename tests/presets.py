"""The shipped algorithm files: which lie over any environment, and which bring a network for images."""

import yaml

from lightning_dqn.shipped import shipped_configs

_FILES = {name: path for name, path in shipped_configs().items() if path.parent.name == "algorithm"}

IMAGE_PRESETS = sorted(name for name, path in _FILES.items() if "torso" in yaml.safe_load(path.read_text())["model"])
ALGORITHMS = sorted(set(_FILES) - set(IMAGE_PRESETS))
