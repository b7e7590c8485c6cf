"""axe-core on the page in Chromium, light and dark, wide and narrow. DSPKD_AXE names its axe.min.js."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dspkd_bench.report import render_report

pytest.importorskip("jinja2")
AXE = os.environ.get("DSPKD_AXE", "")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RUN = (
    "axe.run().then(done => document.body.setAttribute("
    "'data-axe', JSON.stringify(done.violations.map(found => [found.impact, found.id]))))"
)


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.skipif(not AXE, reason="DSPKD_AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_axe_finds_no_violation(report_data, tmp_path, dark, narrow):
    page = render_report(report_data)
    # The policy forbids scripts. Both styles can be had for sure only by making their conditions true.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    if dark:
        page = page.replace("@media (prefers-color-scheme: dark)", "@media all")
    if narrow:
        page = page.replace("@media (max-width: 40rem)", "@media all")
    script = Path(AXE).read_text(encoding="utf-8").replace("</script", "<\\/script")
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script><script>{RUN}</script></body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=500,900" if narrow else "--window-size=1280,900", "--virtual-time-budget=20000"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-axe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    assert json.loads(found[1].replace("&quot;", '"')) == []
