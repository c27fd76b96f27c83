"""Take the pictures of the README anew: .venv/bin/python docs/pictures.py

It sweeps the digits (a minute or two), and needs Debian's chromium and chromium-driver.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser, missing, shoal_ui  # noqa: E402

CLOSE_NOTICES = "for (const one of document.querySelectorAll('[aria-label*=close i]')) one.click()"
COLOURS = 128  # of a picture, which is a third of the bytes then


def main() -> None:
    """Sweep, open MLflow and the report, take their pictures."""
    if lack := missing():
        sys.exit(f"error: {lack}")
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        command = [
            sys.executable,
            str(ROOT / "jobs" / "tune.py"),
            str(ROOT / "jobs" / "configs" / "tune.yaml"),
        ]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        (page,) = re.findall(r"http://127\.0\.0\.1:5000/(\S+)", done.stdout)
        (report,) = folder.glob("runs/*/*/report/report.html")
        with shoal_ui(folder) as address, Browser(1300, 760) as browser:
            browser.open(f"{address}/{page}")
            browser.wait(lambda text: "t0002" in text, "the runs are shown")
            browser.run(CLOSE_NOTICES)
            save(browser, "mlflow_runs.png")
            browser.open(report.as_uri())
            save(browser, "sweep_report.png")


def save(browser: Browser, name: str) -> None:
    """Take a picture of the page once it has settled, in few colours."""
    time.sleep(2)
    path = PICTURES / name
    path.parent.mkdir(exist_ok=True)
    browser.picture(path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
