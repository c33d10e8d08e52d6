"""Where the presets, models.lock, the miniature's weights and the user's weight cache are."""

import os
from pathlib import Path

from platformdirs import user_cache_path

PACKAGE = Path(__file__).resolve().parent
DATA = PACKAGE / "_data" if (PACKAGE / "_data").is_dir() else PACKAGE.parent  # wheel, else checkout
PRESETS = DATA / "presets"
LOCK = DATA / "models.lock"
MINI = PACKAGE / "mini"  # the embedded model pack: config.json and *.safetensors
MINI_CAPTIONER = PACKAGE / "caption" / "mini"  # the embedded captioner


def weight_cache() -> Path:
    """The folder of fetched weights: $DREAMOVING_CACHE, else the platform's cache folder."""
    chosen = os.environ.get("DREAMOVING_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("dreamoving")
