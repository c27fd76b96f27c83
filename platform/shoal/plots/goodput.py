"""What the seconds of a run went to, as a picture: a bar for each attempt, along the wall clock."""

from collections.abc import Mapping, Sequence

from shoal.plots.figure import new_figure, to_png

# By class; those of useful work are green, of lost work red.
COLOURS = {
    "kept_steps": "tab:green",
    "repeated_steps": "tab:red",
    "start": "tab:gray",
    "restore": "tab:olive",
    "checkpoint": "tab:blue",
    "evaluation": "tab:cyan",
    "tracking": "tab:purple",
    "waiting": "tab:pink",
    "hang": "darkred",
    "down": "black",
    "delivery": "tab:brown",
}


def goodput_bars(
    spans: Sequence[tuple[float, float, str]],
    begun_s: Sequence[float],
    seconds: Mapping[str, float],
    title: str,
) -> bytes:
    """Return a PNG.

    Args:
        spans: from, to and class of the run's time, in Unix seconds.
        begun_s: when each attempt began.
        seconds: by class.
    """
    figure, axes = new_figure(title)
    first = spans[0][0]
    ends = [*begun_s[1:], spans[-1][1]]
    for name, colour in COLOURS.items():
        if not seconds.get(name):
            continue
        for number, (begun, end) in enumerate(zip(begun_s, ends, strict=True), 1):
            own = [
                (since - first, until - since)
                for since, until, of in spans
                if of == name and begun <= since < end
            ]
            axes.broken_barh(own, (number - 0.4, 0.8), facecolors=colour)
        share = seconds[name] / sum(seconds.values())
        axes.plot([], [], color=colour, linewidth=6, label=f"{name.replace('_', ' ')} {share:.1%}")
    axes.set_xlabel("seconds since the first submission")
    axes.set_ylabel("attempt")
    axes.set_ylim(len(begun_s) + 0.6, 0.4)
    axes.locator_params(axis="y", integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_png(figure)
