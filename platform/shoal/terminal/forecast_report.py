"""The forecast of a sweep as text: `python jobs/tune.py dry_run=true`."""

from shoal.models.size import readable
from shoal.terminal.tables import duration
from shoal.tune.report.text import params_text
from shoal.workflows.tune.forecast import Forecast


def forecast_report(forecast: Forecast) -> str:
    """Return the forecast as lines for a person."""
    lines = [
        f"trials         {forecast.trials}",
        f"side by side   {forecast.slots}",
        f"worker-hours   {_worker_hours(forecast)}",
        f"time           about {duration(forecast.seconds)}",
        f"disk           {_disk(forecast)}",
    ]
    lines += [f"infeasible     {params_text(point)}: {reason}" for point, reason in forecast.infeasible]
    return "\n".join([*lines, "nothing was started"])


def _worker_hours(forecast: Forecast) -> str:
    hours, share = forecast.worker_hours, forecast.share
    expected = f"{hours.expected:.4f} ({hours.expected * 3600:.0f} s)"
    if share.least == 1:
        return expected
    return (
        f"{expected}, {hours.least:.4f} to {hours.most:.4f} by chance: the scheduler leaves "
        f"{share.least:.0%} to {share.most:.0%} of the training"
    )


def _disk(forecast: Forecast) -> str:
    least, most = readable(forecast.disk_bytes.least), readable(forecast.disk_bytes.most)
    expected = f"{readable(forecast.disk_bytes.expected)}B"
    return expected if least == most else f"{expected}, {least}B to {most}B by whose model is best"
