"""Person pictures as samples: for the stage that trains the Content Guider. Who shows no face is left out."""

import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dreamoving_cli.dataset.captions import described
from dreamoving_cli.dataset.crops import cloth_box, garment, shrunk
from dreamoving_cli.dataset.looks import blur
from dreamoving_cli.dataset.rules import Drop, Rules
from dreamoving_cli.dataset.samples import THUMBNAIL_SIDE, Place, Sample, finished
from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.face import crop_face
from dreamoving_cli.media.images import read_image, resize, write_image
from dreamoving_cli.media.suffixes import PICTURES


@dataclass(frozen=True)
class Picture:
    """One picture of a folder or of a tar."""

    name: str
    source: Path  # the file, or the tar it is in
    member: str = ""  # "" = a file of its own

    def content(self) -> bytes:
        """The bytes of the file."""
        if not self.member:
            return self.source.read_bytes()
        found = open_tar(self.source).extractfile(self.member)
        assert found is not None
        return found.read()


@lru_cache(maxsize=4)
def open_tar(path: Path) -> tarfile.TarFile:
    """An uncompressed tar; a member is read where it lies."""
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{path} is no uncompressed tar ({error})", "Unpack it, or give a plain .tar."
        ) from error


def find_pictures(sources: list[Path]) -> list[Picture]:
    """Every picture of the given files, folders and tars, sorted by name."""
    found: list[Picture] = []
    for source in sources:
        if source.is_dir():
            files = (p for p in source.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            found += [Picture(str(p.relative_to(source)), p) for p in files]
        elif source.suffix.lower() == ".tar":
            names = (m.name for m in open_tar(source).getmembers() if m.isfile())
            pictures = (n for n in names if Path(n).suffix.lower() in PICTURES)
            found += [Picture(name, source, name) for name in pictures]
        elif source.is_file():
            found.append(Picture(source.name, source))
        else:
            raise InputError(f"{source} does not exist", "Give pictures, folders of them, or tars.")
    if not found:
        raise InputError("there are no pictures in what was given", f"Known: {' '.join(sorted(PICTURES))}.")
    return sorted(found, key=lambda picture: (picture.name, str(picture.source)))


def make_picture(file: Path, caption: str, rules: Rules, place: Place) -> Sample:
    """Write the members of one picture into an empty folder; what is damaged or shows no face is dropped."""
    try:
        image = read_image(file)
    except InputError as error:
        return Sample(place.key, {}, Drop("unreadable", error.problem))
    soft = blur(image)
    height, width = image.shape[:2]
    small = THUMBNAIL_SIDE / max(height, width)
    thumbnail = resize(image, max(round(height * small), 1), max(round(width * small), 1))
    write_image(place.thumbnail, thumbnail, overwrite=True)
    if min(height, width) < rules.side:
        return Sample(place.key, {}, Drop("small", f"{width}x{height} pixels, at least {rules.side} a side"))
    if soft > rules.blur:
        return Sample(place.key, {}, Drop("blurred", f"blur {soft:.2f}, at most {rules.blur:g}"))
    try:
        face = crop_face(image)
    except InputError:
        return Sample(place.key, {}, Drop("no face"))
    factor = rules.side / min(height, width)
    stored = resize(image, round(height * factor), round(width * factor))
    members = {"jpg": stored, "face": shrunk(face), "cloth": worn(image)}
    for name, picture in members.items():
        if picture is not None:
            write_image(place.folder / f"{name}.jpg", picture)
            (place.folder / f"{name}.jpg").rename(place.folder / name)
    words = caption or described(file, rules.captioner)
    facts = {"height": stored.shape[0], "width": stored.shape[1], "blur": round(soft, 3), "caption": words,
             "cloth": members["cloth"] is not None}  # fmt: skip
    return finished(facts, place)


def worn(image: np.ndarray) -> np.ndarray | None:
    """The garment of the person in a picture, uint8 h w c; None where the torso does not show."""
    from dreamoving_cli.extract.light import LightDetector  # its runtime takes a while to load

    [(points, scores)] = LightDetector(whole_body=False)(image[None])
    box = cloth_box(points[0], scores[0], (image.shape[0], image.shape[1])) if len(points) else None
    return None if box is None else garment(image, box)
