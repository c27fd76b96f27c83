"""How a notebook shows a result: metrics, the run folder and a picture of it."""

import base64
from collections.abc import Mapping
from html import escape

from shoal.storage.run_folder import RunFolder

__all__ = ["escape", "run_page"]


def run_page(
    name: str, status: str, metrics: Mapping[str, float], folder: RunFolder, picture: str | None
) -> str:
    """Return a run as a small HTML page.

    Args:
        picture: a PNG file of the run folder, which is shown if it is there.
    """
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{value:.6g}</td></tr>" for key, value in sorted(metrics.items())
    )
    parts = [f"<b>{escape(name)}</b> {escape(status)}", f"<table>{rows}</table>"]
    if picture and folder.exists(picture):
        data = base64.b64encode(folder.read(picture)).decode()
        parts.append(f'<img src="data:image/png;base64,{data}" style="max-width: 480px"/>')
    return "".join([*parts, f"<p><code>{escape(folder.uri)}</code></p>"])
