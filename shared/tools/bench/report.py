"""The results as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.machine import Json


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the first row is the head, the first column names things."""

    title: str
    rows: list[list[str]]
    picture: str = ""
    """The file of the picture that shows the same."""


def tables(results: Json) -> list[Table]:
    """Return a table for each part that was measured."""
    made = []
    if start := results.get("start"):
        title = "From `ctr run` to the first 200, ms"
        made.append(Table(title, start_rows(start["seconds"]), "start.svg"))
    if command := results.get("command"):
        title = "`start`, the command that containerd executes, ms; the zygote runs"
        made.append(Table(title, start_rows(command["seconds"])))
    for name, result in results.get("waterfall", {}).items():
        title = f"Where the time of a warm start of {name} goes, ms"
        made.append(Table(title, waterfall_rows(result), f"waterfall-{name}.svg"))
    if pods := results.get("pods"):
        title = f"{pods['count']} pods asked for at the same moment, over CRI; seconds"
        made.append(Table(title, pods_rows(pods["runs"])))
    if memory := results.get("memory"):
        title = "Memory (PSS) by number of containers, MB"
        made.append(Table(title, memory_rows(memory), "memory.svg"))
    if http := results.get("http"):
        made.append(Table("Requests over 50 connections, one container; medians", http_rows(http)))
    if bodies := results.get("bodies"):
        title = "Request bodies echoed by a guest, one after the other"
        made.append(Table(title, bodies_rows(bodies["sizes"])))
    if waiting := results.get("waiting"):
        made += waiting_tables(waiting)
    if routing := results.get("routing"):
        title = "To find the route of a request, µs, by number of routes; medians"
        made.append(Table(title, routing_rows(routing)))
    if fibers := results.get("fibers"):
        title = f"{fibers['requests']} guests that wait 100 ms each in an asynchronous import"
        head = ["", "answered", "seconds", "at a time", "threads"]
        figures = (fibers["succeeded"], f"{fibers['seconds']:.2f}", fibers["most_waiting"])
        made.append(Table(title, [head, ["fibers", *map(str, (*figures, fibers["threads"]))]]))
    return made


def waiting_tables(waiting: Json) -> list[Table]:
    """Of guests that wait on Redis, and of one that never ends."""
    made = []
    for name, found in (("Spin", waiting), ("Slight", waiting.get("slight", {}))):
        if "redis" in found:
            title = (
                f"{found['requests']} requests at once to {name}, each waiting on Redis for "
                f"{1000 * waiting['wait_seconds']:.0f} ms; seconds until the last answer"
            )
            made.append(Table(title, redis_rows(found["redis"])))
    if "stuck" in waiting:
        title = "Requests over 50 connections, while one guest loops until its deadline of 1 s"
        made.append(Table(title, stuck_rows(waiting["stuck"])))
    return made


def start_rows(seconds: dict[str, list[float]]) -> list[list[str]]:
    """``of runc`` is the ratio of the medians."""
    rows = [["", "runs", "min", "quartiles", "median", "max", "of runc"]]
    for name, values in seconds.items():
        of_runc = f"{median(values) / median(seconds['runc']):.2f}" if "runc" in seconds else "-"
        low, high = quartiles(values)
        rows.append(
            [
                name,
                str(len(values)),
                milliseconds(min(values)),
                f"{milliseconds(low)} … {milliseconds(high)}",
                milliseconds(median(values)),
                milliseconds(max(values)),
                of_runc,
            ]
        )
    return rows


def waterfall_rows(result: Json) -> list[list[str]]:
    """Each phase by its median; the sum of medians is not the median of sums."""
    rows = [["who", "what", "median", "quartiles"]]
    for phase in result["phases"]:
        low, high = quartiles(phase["seconds"])
        spread = f"{milliseconds(low)} … {milliseconds(high)}"
        rows.append([phase["who"], phase["what"], milliseconds(median(phase["seconds"])), spread])
    for name, key in (("all", "seconds"), ("all, nobody watching", "unwatched_seconds")):
        low, high = quartiles(result[key])
        spread = f"{milliseconds(low)} … {milliseconds(high)}"
        rows.append([name, "", milliseconds(median(result[key])), spread])
    return rows


def pods_rows(runs: dict[str, list[Json]]) -> list[list[str]]:
    rows = [["", "runs", "all have answered", "spread", "all are gone"]]
    for name, bursts in runs.items():
        starts = [burst["start_seconds"] for burst in bursts]
        stops = [burst["stop_seconds"] for burst in bursts]
        spread = f"{min(starts):.2f} … {max(starts):.2f}"
        medians = [f"{median(starts):.2f}", spread, f"{median(stops):.2f}"]
        rows.append([name, str(len(bursts)), *medians])
    return rows


def memory_rows(memory: Json) -> list[list[str]]:
    rows = [["", "containers", "all together", "each", "one more adds", "zygote, alone"]]
    for name, result in memory.items():
        for point in result["points"]:
            zygote = megabytes(sum_pss(result["zygote"])) if "zygote" in result else "-"
            rows.append(
                [
                    name,
                    str(point["count"]),
                    megabytes(point["total_bytes"]),
                    megabytes(point["containers_bytes"] / point["count"]),
                    megabytes(median(point["growth_bytes"])),
                    zygote,
                ]
            )
    return rows


def http_rows(http: dict[str, list[Json]]) -> list[list[str]]:
    rows = [["", "runs", "requests/s", "spread", "p50 ms", "p99 ms", "p99.9 ms", "errors"]]
    for name, runs in http.items():
        rates = [run["requests_per_second"] for run in runs]
        latencies = [
            f"{1000 * median(run[key] for run in runs):.2f}"
            for key in ("p50_seconds", "p99_seconds", "p999_seconds")
        ]
        errors = sum(sum(run["errors"].values()) for run in runs)
        spread = f"{min(rates):.0f} … {max(rates):.0f}"
        rows.append([name, str(len(runs)), f"{median(rates):.0f}", spread, *latencies, str(errors)])
    return rows


def bodies_rows(sizes: dict[str, Json]) -> list[list[str]]:
    """The memory is the serving process's, before and after each request."""
    rows = [["", "runs", "seconds", "MB/s", "memory before", "after the last", "most"]]
    for size, result in sizes.items():
        seconds, memory = median(result["seconds"]), result["pss_bytes"]
        figures = [f"{seconds:.3f}", f"{int(size) / seconds:.0f}"]
        sizes_of_memory = [megabytes(value) for value in (memory[0], memory[-1], max(memory))]
        name, runs = f"{size} MB", str(len(result["seconds"]))
        rows.append([name, runs, *figures, *sizes_of_memory])
    return rows


def redis_rows(rounds: dict[str, list[float]]) -> list[list[str]]:
    rows = [["round", "runs", "median", "spread"]]
    for name, values in rounds.items():
        spread = f"{min(values):.2f} … {max(values):.2f}"
        rows.append([name, str(len(values)), f"{median(values):.2f}", spread])
    return rows


def stuck_rows(runs: list[Json]) -> list[list[str]]:
    """Its deadlines are in seconds."""
    (head, figures) = http_rows({"spin": runs})
    cut_off = [seconds for run in runs for seconds in run["cut_off_seconds"]]
    figures += [f"{median(cut_off):.2f}", f"{max(cut_off):.2f}"]
    return [[*head, "cut off after s", "at most"], figures]


def routing_rows(routing: Json) -> list[list[str]]:
    rows = [["", *routing["exact"]]]
    for kind, by_count in routing.items():
        rows.append([kind, *(f"{1e6 * median(times):.2f}" for times in by_count.values())])
    return rows


# Numbers


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; of one value, that twice."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def sum_pss(processes: Iterable[Json]) -> int:
    return sum(process["pss_bytes"] for process in processes)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f}"


# Text


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def describe(machine: Json) -> list[str]:
    """Return lines that say where and when the figures come from."""
    lines = [
        f"{machine['cores']} cores, {machine['cpu']}, Linux {machine['kernel']}",
        f"{machine['containerd']}; {machine['runc']}; wasmtime {machine['wasmtime']}",
        f"revision {machine['revision']}",
    ]
    for moment in ("before", "after"):
        loads = " ".join(f"{load:.2f}" for load in machine[f"load_{moment}"])
        lines.append(f"load {moment}: {loads}")
    return lines


def as_text(results: Json) -> str:
    lines: list[str] = []
    for table in tables(results):
        lines += ["", table.title.replace("`", ""), *align(table.rows)]
    return "\n".join(lines)


def as_markdown(document: Json, results: Json) -> str:
    """Return a page; pictures are expected beside it."""
    lines = ["# Figures", "", f"Written by `make bench` on {document['began']}.", ""]
    lines += [f"- {line}" for line in describe(document["machine"])]
    for table in tables(results):
        lines += ["", f"## {table.title}", "", *markdown_table(table.rows)]
        if table.picture:
            lines += ["", f"![{table.title.replace('`', '')}]({table.picture})"]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *others]
