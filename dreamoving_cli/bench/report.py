"""The tables of a benchmark, in Markdown, from the same values that --json prints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

NAME_LENGTH = 90  # of a kernel, whose templates are longer


def report(found: Mapping[str, Any]) -> str:
    """All sections that were measured."""
    return "\n\n".join(TABLES[name](value) for name, value in found.items() if name in TABLES)


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"### {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def settings(values: Row) -> str:
    return table("Settings", ("what", "value"), list(values.items()))


def machine(values: Row) -> str:
    rate = {"matrix rate": f"{values['matmul_flops'] / 1e9:,.0f} GFLOP/s"}
    packages = ", ".join(f"{name} {number}" for name, number in values["packages"].items())
    plain = {key: value for key, value in values.items() if key not in ("matmul_flops", "packages")}
    return table("Machine", ("what", "value"), list({**plain, "packages": packages, **rate}.items()))


def contenders(title: str) -> Callable[[Sequence[Row]], str]:
    """The table of a section whose rows are contenders."""
    names = (
        "contender",
        "s per frame and step",
        "CPU s",
        "times ours",
        "by CPU",
        "peak GiB",
        "first run s",
        "compiling s",
    )

    def laid_out(rows: Sequence[Row]) -> str:
        rated, seen = (any(name in row for row in rows) for name in ("mfu", "frames_per_s"))
        heads = (*names, *(("GFLOP/s", "of matrix rate") if rated else ()), *(("frames/s",) if seen else ()))
        lines = [
            (
                row["contender"],
                f"{row['seconds_per_frame_step']:.4f}",
                f"{row['cpu_seconds_per_frame_step']:.4f}",
                f"{row['times_ours']:.2f}",
                f"{row['cpu_times_ours']:.2f}",
                f"{row['peak_gib']:.2f}",
                f"{row['first_run_s']:.1f}",
                "" if row["compile_s"] is None else f"{row['compile_s']:.0f}",
                *((f"{row['flops'] / 1e9:,.0f}", f"{100 * row['mfu']:.0f} %") if rated else ()),
                *((f"{row['frames_per_s']:.3g}",) if seen else ()),
            )
            for row in rows
        ]
        return table(title, heads, lines)

    return laid_out


def length(rows: Sequence[Row]) -> str:
    names = ("frames", "frames of all windows", "s per window-frame", "CPU s", "peak GiB")
    lines = [
        (
            row["frames"],
            row["window_frames"],
            f"{row['seconds_per_window_frame']:.4f}",
            f"{row['cpu_seconds_per_window_frame']:.4f}",
            f"{row['peak_gib']:.3f}",
        )
        for row in rows
    ]
    return table("Cost against length", names, lines)


def stages(values: Row) -> str:
    title = f"Stages of a render of {values['frames']} frames in {values['steps']} steps"
    lines = [
        (name, f"{values['seconds'][name]:.4f}", f"{100 * share:.1f} %")
        for name, share in values["share"].items()
    ]
    work = ", ".join(f"{name} {value:,.1f}" for name, value in values["gflop_per_frame"].items())
    rates = ", ".join(f"{name} {value / 1e9:,.1f}" for name, value in values["rate"].items())
    speed = ", ".join(f"{name} {value:.3g}" for name, value in values["frames_per_s"].items())
    note = (
        "Seconds: text and pictures once a render, hint, decode and write once a frame, the others once a "
        f"frame and step.\nGFLOP of one frame: {work}. Reached, GFLOP/s: {rates}.\n"
        f"Output frames a second, no frame in two windows: {speed}."
    )
    return f"{table(title, ('stage', 's', 'share'), lines)}\n\n{note}"


def kernels(values: Row) -> str:
    busy = values["busy_seconds"]
    note = f"One run, under the profiler: {values['seconds']:.3f} s, of which the device worked {busy:.3f} s."
    tables = [
        table(title, ("name", "calls", "ms", "share"), [kernel(row) for row in values[name]])
        for name, title in (("operations", "Operations of the denoise loop"), ("kernels", "Kernels of CUDA"))
        if values[name]
    ]
    return "\n\n".join([*tables, note, attention(values["attention"]), projections(values["projections"])])


def attention(rows: Sequence[Row]) -> str:
    """Ways of attention, as times of torch's own choice: below 1, a way is quicker."""
    ways = [name for name in rows[0] if name not in ("name", "seconds")]
    lines = [(row["name"], f"{1e3 * row['seconds']:.3f}", *(ratio(row[way]) for way in ways)) for row in rows]
    return table("Attention: torch's choice, and the time of each way over it", ("what", "ms", *ways), lines)


def projections(rows: Sequence[Row]) -> str:
    lines = [(row["name"], f"{1e3 * row['seconds']:.3f}", ratio(row["one"])) for row in rows]
    return table("Queries, keys and values", ("what", "three products, ms", "one, over it"), lines)


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def kernel(row: Row) -> tuple[object, ...]:
    name = row["name"].replace("|", "/")[:NAME_LENGTH]
    return name, row["calls"], f"{1e3 * row['seconds']:.2f}", f"{100 * row['share']:.1f} %"


def extraction(values: Row) -> str:
    names = ("what", "frames", "size", "frames/s", "of one core", "bar", "loading, CPU s", "shares")
    lines = [
        (
            row["what"],
            row["frames"],
            row["size"],
            f"{row['frames_per_s']:.1f}",
            f"{row['frames_per_cpu_s']:.1f}",
            verdict(row["frames_per_cpu_s"], row["bar"]),
            f"{row['loading_s']:.2f}",
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["share"].items()),
        )
        for row in values["rows"]
    ]
    notes = [
        "Frames a second: from file to file, networks loaded. Of one core: by processor seconds.",
        f"Threads of torch: {values['threads']}; the light pose networks have one.",
        *(
            f"Not measured, as its networks are not here: {name} (dreamoving models pull {group})."
            for name, group in values["missing"].items()
        ),
    ]
    note = "\n".join(notes)
    return f"{table('Extraction', names, lines)}\n\n{note}"


def verdict(value: float, bar: float | None) -> str:
    """Whether a bar is met."""
    return "" if bar is None else f"{bar:g}: {'met' if value >= bar else 'missed'}"


def startup(rows: Sequence[Row]) -> str:
    lines = [(row["what"], f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}") for row in rows]
    return table("Start-up", ("what", "s", "CPU s"), lines)


TABLES: dict[str, Callable[[Any], str]] = {
    "settings": settings,
    "machine": machine,
    "window": contenders("One window"),
    "long": contenders("Several windows"),
    "whole": contenders("The whole clip as one window"),
    "render": contenders("From words and control pictures to pictures"),
    "length": length,
    "stages": stages,
    "kernels": kernels,
    "extraction": extraction,
    "startup": startup,
}
