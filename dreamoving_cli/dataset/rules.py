"""What becomes a sample and what is left out, as data; checked where it is born."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from dreamoving_cli.errors import UsageError

CONTROLS = ("pose", "depth")


@dataclass(frozen=True)
class Rules:
    """How footage is cut and judged; DreaMoving's clips last 8 to 10 seconds."""

    min_s: Fraction = Fraction(8)
    max_s: Fraction = Fraction(10)
    fps: Fraction | None = None  # of the stored clips; None = the source's, halved while above 30
    side: int = 512  # pixels of the stored shorter side, at most
    controls: tuple[str, ...] = ("pose",)
    detector: str = "auto"
    keep_people_less: bool = False
    static: float = 3.0  # least change of the liveliest cells in a quarter of a second, of 255
    blur: float = 0.85  # most blur, 0 sharp .. 1 blurred
    people: float = 0.8  # least share of the frames that show the dancer
    shard_mb: int = 512
    captioner: str = "off"  # who describes what nobody has words for

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.max_s:
            raise UsageError(
                f"clips of {float(self.min_s):g} to {float(self.max_s):g} s were asked for",
                "Give a --min above 0 and a --max that is not below it.",
            )
        if unknown := [kind for kind in self.controls if kind not in CONTROLS]:
            raise UsageError(f"there is no control '{unknown[0]}'", f"Choose some of: {', '.join(CONTROLS)}.")
        limits = {"side": (64, 4096), "shard_mb": (1, 100_000), "people": (0, 1), "blur": (0, 1)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is {getattr(self, name)}", f"Choose {low} to {high}.")

    def told(self) -> dict[str, Any]:
        """The rules as JSON values, for the manifest."""
        values = {k: str(v) if isinstance(v, Fraction) else v for k, v in asdict(self).items()}
        return values | {"controls": list(self.controls)}


@dataclass(frozen=True)
class Drop:
    """Why something is no sample: a word to count by, and what was measured."""

    reason: str
    detail: str = ""
