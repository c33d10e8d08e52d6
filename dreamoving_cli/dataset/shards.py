"""Samples into WebDataset tars, and their index back: `KEY.mp4`, `KEY.pose.json`, `KEY.txt`, ...

The same samples give the same bytes: sorted, without times or owners. Any WebDataset reader reads them; ours
goes straight to a member, so that training can go on at any sample.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dreamoving_cli.errors import InputError
from dreamoving_cli.whole import whole_file

SUFFIX = {
    "face": "face.jpg",
    "cloth": "cloth.jpg",
}  # what a member is called in a tar, where it is not its file
MB = 10**6


@dataclass(frozen=True)
class Packed:
    """A sample's files, ready to be packed."""

    key: str
    folder: Path

    def members(self) -> list[tuple[str, Path]]:
        """(name in the tar, file), sorted."""
        return sorted((f"{self.key}.{SUFFIX.get(p.name, p.name)}", p) for p in self.folder.iterdir())

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self.members())


def in_shards(samples: Sequence[Packed], shard_mb: int) -> Iterator[list[Packed]]:
    """Samples in order, as many a shard as fit into it; at least one."""
    shard: list[Packed] = []
    size = 0
    for sample in samples:
        if shard and size + sample.size_bytes > shard_mb * MB:
            yield shard
            shard, size = [], 0
        shard.append(sample)
        size += sample.size_bytes
    if shard:
        yield shard


def write_shard(path: Path, samples: Sequence[Packed]) -> Path:
    """One tar, whole or not at all."""
    with whole_file(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, file in sample.members():
                info = tarfile.TarInfo(name)
                info.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(info, content)
    return path


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie."""

    shard: Path
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)


@lru_cache(maxsize=4096)
def index_shard(path: Path) -> dict[str, dict[str, Member]]:
    """key -> suffix -> member of a tar, in its order."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                samples.setdefault(key, {})[suffix] = Member(path, info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is no shard ({error})", "Build the data set again.") from error
    return samples


def read_index(folder: Path) -> dict[str, dict[str, Member]]:
    """All samples of a folder's shards, in order."""
    shards = sorted(folder.glob("*.tar"))
    return {key: members for shard in shards for key, members in index_shard(shard).items()}
