"""The report in a real browser: every picture is decoded, nothing is asked of the network, a phone can show it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.evaluation import evaluate_folders

QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
PROBE = """
<script>
const errors = [];
window.addEventListener("error", event => errors.push(String(event.message)));
window.addEventListener("load", () => {
  const found = {
    pictures: [...document.images].map(image => image.complete && image.naturalWidth > 0),
    asked: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    wider: document.documentElement.scrollWidth - window.innerWidth,
    headings: [...document.querySelectorAll("h2")].map(heading => heading.textContent),
    errors,
  };
  document.body.innerHTML = "";
  const shown = document.body.appendChild(document.createElement("pre"));
  [shown.id, shown.textContent] = ["found", JSON.stringify(found)];
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three cases, one of them missed, and a copy of the page that tells what it is made of."""
    root, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    for case in range(3):
        reference = np.zeros((20, 20, 20), np.uint8)
        reference[4:12, 5:13, 6:14], reference[12:16, 5:13, 6:14] = 1, 2
        prediction = np.roll(reference, case, axis=0) * (rng.random(reference.shape) > 0.02)
        prediction[prediction == 2] = 0 if case == 2 else 2
        for folder, labels in (("ref", reference), ("pred", prediction)):
            (root / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), root / folder / f"case{case}.nii.gz")
    evaluate_folders(root / "pred", root / "ref", root / "out", labels={"organ": 1, "lesion": 2}, progress=False)
    text = (root / "out" / "report.html").read_text(encoding="utf-8")
    probed = root / "probed.html"
    probed.write_text(text.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    return probed


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_in_chromium(page: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *QUIET]
    words += [f"--user-data-dir={tmp_path}", f"--window-size={width},900", "--virtual-time-budget=10000", "--dump-dom"]
    shown = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(shown.partition('<pre id="found">')[2].partition("</pre>")[0])
    assert found["pictures"] == [True] * 5
    assert found["asked"] == []
    assert found["errors"] == []
    assert found["wider"] <= 0
    assert "Scores by class" in found["headings"]
