"""Example inputs: a short dance with sound, a portrait, a garment. Nobody real: we rendered all three.

Not here: how they are made (train/example_media.py).
"""

from pathlib import Path

from dreamoving_cli.errors import OutputError
from dreamoving_cli.paths import PACKAGE
from dreamoving_cli.whole import whole_file, writing

EXAMPLES = ("dance.mp4", "me.jpg", "shirt.png")


def write_examples(folder: Path) -> list[Path]:
    """Copy the example inputs into `folder`, made if absent; a file of the user's own is never replaced."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = {folder / name: (PACKAGE / "example_media" / name).read_bytes() for name in EXAMPLES}
    for path, data in content.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != data):
            raise OutputError(f"{path} already exists and is another file", "Choose another folder.")
    for path, data in content.items():
        with whole_file(path) as part:
            part.write_bytes(data)
    return list(content)
