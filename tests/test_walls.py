"""The walls and budgets of the code (docs/architecture.md), read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dreamoving_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 7
TORCHY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors"}
# Imported inside the function that needs them, in one file each: slow to load, or not on every platform.
TOUCHY = {
    "controlnet_aux",
    "decord",
    "ai_edge_litert",
    "onnxruntime",
    "scenedetect",
    "anny",
    "numba",
    "bitsandbytes",
}
# module or folder -> the parts of our package that it may import at all
ARROWS = {
    "errors": set(),
    "paths": {"errors"},
    "whole": {"errors"},
    "frozen": {"errors"},
    "windows": {"errors"},
    "prompts": {"errors"},
    "options": {"errors", "frozen", "prompts", "windows"},
    "presets": {"errors", "frozen", "options", "paths"},
    "weights": {"errors", "paths", "weights", "whole"},
    "media": {"errors", "media", "whole"},
    "models": {"errors", "models", "whole"},
    "caption": {"caption", "errors", "media", "models", "options", "paths", "prompts", "weights", "whole"}
    | {"controls", "device", "recipes"},
    "dataset": {"caption", "dataset", "errors", "extract", "media", "weights", "whole"},
    "extract": {"device", "errors", "extract", "media", "models", "paths", "weights", "whole"},
}
TORCH_FREE = (set(ARROWS) - {"models"}) | {
    "bench_command", "caption_command", "cli", "dataset_command", "depth_command", "evaluate_command",
    "extraction_flags", "flags", "models_command", "outputs", "pose_command", "progress", "render_command",
    "terminal", "train_command", "__init__", "__main__",
}  # fmt: skip
MANY_PARAMETERS = {
    "write_video"
}  # the one sink of all pictures: each of its eight says one thing about the file
TALKS = (  # who may print
    "bench_command", "caption_command", "cli", "dataset_command", "depth_command", "evaluate_command",
    "extraction_flags", "models_command", "pose_command", "render_command", "terminal", "train",
    "train_command",
)  # fmt: skip
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}


def part_of(path: Path) -> str:
    """The top-level module or folder of our package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Dotted names that are imported; those under TYPE_CHECKING cost nothing and are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if inside_functions:
                yield from imports(node, inside_functions=True)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from imports(node, inside_functions=inside_functions)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def ours(names: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("dreamoving_cli.")}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_torch_at_the_top_of_torch_free_modules(path: Path) -> None:
    if part_of(path) not in TORCH_FREE:
        return
    found = {name.split(".")[0] for name in imports(parsed(path), inside_functions=False)}
    assert not found & TORCHY


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_arrows_go_one_way(path: Path) -> None:
    names = ours(imports(parsed(path), inside_functions=True)) - {"__version__"}
    allowed = ARROWS.get(part_of(path))
    if allowed is not None:
        assert names <= allowed
    assert part_of(path) in ("cli", "__main__") or "cli" not in names
    if part_of(path) != "train":
        trains = ("cli", "evaluate_command", "examples", "train_command")
        assert part_of(path) in trains or "train" not in names


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_touchy_packages_are_imported_inside_functions(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(parsed(path), inside_functions=False)}
    allowed = (
        {"numba"} if part_of(path) == "train" else set()
    )  # the renderer's kernels are numba through and through
    assert not found & (TOUCHY - allowed)


def test_touchy_packages_are_imported_in_one_file_each() -> None:
    users: dict[str, set[str]] = {}
    for path in FILES:
        for name in imports(parsed(path), inside_functions=True):
            users.setdefault(name.split(".")[0], set()).add(str(path.relative_to(PACKAGE)))
    several = {
        name: sorted(files) for name, files in users.items() if name in TOUCHY - {"numba"} and len(files) > 1
    }
    assert not several


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_short_and_well_named(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    assert path.stem not in BANNED_NAMES
    assert path.stem == "__init__" or ast.get_docstring(parsed(path)), (
        "every module says what it is and what it is not"
    )


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A Typer command: its parameters are its flags, however many."""
    return any(
        "command" in (text := ast.unparse(d)) or "preset_flags" in text for d in function.decorator_list
    )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for function in functions(parsed(path)):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= MAX_FUNCTION_LINES, f"{function.name} has {lines} lines"
        named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        given = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
        assert is_command(function) or function.name in MANY_PARAMETERS or len(given) <= MAX_PARAMETERS, (
            f"{function.name} takes {len(given)} parameters"
        )


def test_most_functions_are_tiny() -> None:
    lengths = sorted(
        (function.end_lineno or function.lineno) - function.lineno + 1
        for path in FILES
        for function in functions(parsed(path))
    )
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(len(lengths) * 0.9)] <= 45


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_class_is_a_function_in_disguise(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef):
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
            assert methods != ["__call__"], f"{node.name} is a function"


def test_only_the_command_line_prints_and_only_device_asks_for_cuda() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert "typer.echo" not in source or part_of(path) in TALKS
        assert "cuda.is_available" not in source or path.stem == "device"
