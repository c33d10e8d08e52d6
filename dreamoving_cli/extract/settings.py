"""What can be chosen about finding poses, checked where it is born; no work and nothing heavy here."""

from dataclasses import dataclass, field
from pathlib import Path

from dreamoving_cli.errors import UsageError
from dreamoving_cli.extract.dwpose import PERSON_NETWORK, POSE_NETWORK
from dreamoving_cli.extract.repair import RepairOptions
from dreamoving_cli.extract.smoothing import SMOOTHERS
from dreamoving_cli.extract.tracking import RULES

DETECTORS = ("auto", "dwpose", "light")
MAX_PEOPLE = 8  # that the light detector follows at once


@dataclass(frozen=True)
class PoseOptions:
    """How poses are found in footage."""

    detector: str = "auto"  # of DETECTORS
    person: str = "largest"  # largest, central, all, or a number
    whole_body: bool = True  # hands and face too
    max_people: int = MAX_PEOPLE
    detect_every: int = 4  # frames between two searches of DWPose
    person_network: str = PERSON_NETWORK  # ids in models.lock, or ONNX files
    pose_network: str = POSE_NETWORK
    repair: RepairOptions = field(default_factory=RepairOptions)

    def __post_init__(self) -> None:
        _one_of("detector", self.detector, DETECTORS)
        _one_of("smoothing", self.repair.smoothing, (*SMOOTHERS, "none"))
        if not (self.person in RULES or (self.person.isdigit() and int(self.person) > 0)):
            raise UsageError(
                f"person is '{self.person}'", f"Choose {', '.join(RULES)} or a number from 1 on."
            )
        for name, low, high in (("max_people", 1, 64), ("detect_every", 1, 120)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is {getattr(self, name)}", f"Choose {low} to {high}.")
        if not 0 <= self.repair.fill_s <= 5:
            raise UsageError(f"fill is {self.repair.fill_s:g} s", "Choose 0 to 5.")
        for name in (self.person_network, self.pose_network):
            if Path(name).suffix == ".onnx" and not Path(name).is_file():
                raise UsageError(f"there is no file {name}", "Give an ONNX file, or an id of models.lock.")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} is '{value}'", f"Choose one of: {', '.join(known)}.")
