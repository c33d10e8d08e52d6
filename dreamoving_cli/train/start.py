"""How a run starts: from a pack, or from nothing with the miniature's shape and the captions' words."""

from pathlib import Path
from typing import Any

from dreamoving_cli.dataset.shards import read_index
from dreamoving_cli.errors import InputError
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.encoders import learn_tokenizer
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.loop import Run, settings, train
from dreamoving_cli.train.mini import mini_config
from dreamoving_cli.train.shard_store import ShardSample, is_sharded


def start(run: Run) -> Path:
    """Train one stage and return the folder of the exported pack."""
    stage = settings(run)  # an unknown stage is refused before anything is read
    if not is_sharded(run.data):
        store = require_clips(run.data)
        require_frames(store, stage.longest_run)
        if stage.data != "crop" and not run.device.startswith("cuda"):
            require_latents(store)
    if run.init is not None:
        return train(run)
    config = mini_config()
    return train(run, config, learn_words(run.data, config))


def learn_words(data: Path, config: PackConfig) -> Any:
    """A tokenizer merged as in the training clips' captions, as large as the text encoder takes."""
    return learn_tokenizer(said_in(data), config.text["vocab_size"], config.text["max_position_embeddings"])


def said_in(data: Path) -> list[str]:
    """Every caption of a data set."""
    if is_sharded(data):
        return [ShardSample(key, members).caption for key, members in read_index(data).items()]
    store = ClipStore(data)
    return [str(caption) for seed in store.seeds for caption in store.facts(seed)["captions"]]


def require_frames(store: ClipStore, frames: int) -> None:
    """Refuses clips that are all shorter than what a stage draws."""
    longest = max(len(store.array(seed, "frames")) for seed in store.seeds)
    if longest < frames:
        raise InputError(
            f"no clip in '{store.folder}' has the {frames} frames the stage needs; the longest has {longest}",
            f"Render longer ones: python -m dreamoving_cli.train synth --frames {frames}.",
        )


def require_latents(store: ClipStore) -> None:
    """Refuses clips that were rendered after others had been encoded; on CUDA a run encodes them itself."""
    missing = [seed for seed in store.seeds if not (store.folder / f"{seed}.latents.npy").exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(store.seeds)} clips in '{store.folder}' have no latents",
            f"Run: python -m dreamoving_cli.train latents --pack PACK --data '{store.folder}'.",
        )


def require_clips(data: Path, held_out: bool = False) -> ClipStore:
    """The clips of a folder; refused where there are none of the wanted kind."""
    store = ClipStore(data, held_out)
    if not store.seeds:
        kind, first = ("held-out", "--first 1000000 ") if held_out else ("training", "")
        remedy = f"Render some: python -m dreamoving_cli.train synth {first}--clips 24 --out '{data}'."
        raise InputError(f"no {kind} clips in '{data}'", remedy)
    return store
