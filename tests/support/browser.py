"""A real browser that measures a page: does it fit, can it be read, does a tap answer.

Headless Chromium shows the page in frames of several widths; a script beside them, not in the page, measures.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

MEASURE = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const light = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const part = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
};
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + .05) / (y + .05); };
const inside = (a, b) => a.left >= b.left - .5 && a.right <= b.right + .5 && a.top >= b.top - .5 && a.bottom <= b.bottom + .5;
const behind = (element, view) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = view.getComputedStyle(at).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
const measured = frame => {
  const view = frame.contentWindow, page = view.document, found = {faults: [], texts: 0, tiles: 0};
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth) found.faults.push(`wider than its window: ${root.scrollWidth}`);
  for (const element of page.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    if (box.width && !element.closest("svg") && (box.left < -.5 || box.right > root.clientWidth + .5))
      found.faults.push(`past the edge: ${element.tagName} ${element.textContent.slice(0, 40)}`);
  }
  for (const text of page.querySelectorAll("svg text")) {
    const box = text.getBoundingClientRect();
    if (!box.width) continue;
    found.texts++;
    if (!inside(box, text.ownerSVGElement.getBoundingClientRect())) found.faults.push(`out of its picture: ${text.textContent}`);
    const tiles = [...text.ownerSVGElement.querySelectorAll("rect")].filter(tile => {
      const room = tile.getBoundingClientRect();
      return box.left >= room.left - .5 && box.left <= room.right && box.top + box.height / 2 >= room.top && box.top + box.height / 2 <= room.bottom;
    });
    const tile = tiles.at(-1);
    if (!tile || !inside(box, tile.getBoundingClientRect())) found.faults.push(`out of its tile: ${text.textContent}`);
    else {
      const fill = view.getComputedStyle(tile).fill;
      if (!fill.startsWith("url") && contrast(fill, view.getComputedStyle(text).fill) < 4.5) found.faults.push(`hard to read: ${text.textContent} on ${fill}`);
    }
  }
  for (const element of page.querySelectorAll("h1, h2, p, dt, dd, li b, li span, th, td, summary")) {
    const ratio = contrast(view.getComputedStyle(element).color, behind(element, view) || "white");
    if (ratio < 4.5) found.faults.push(`hard to read: ${element.textContent.slice(0, 40)}: ${ratio}`);
  }
  for (const picture of page.querySelectorAll("svg[role=img]")) {
    const [title, words] = picture.getAttribute("aria-labelledby").split(" ").map(id => page.getElementById(id)?.textContent);
    if (!title || !words) found.faults.push("a picture without title or description");
  }
  const tile = [...page.querySelectorAll("rect > title")].find(title => title.parentElement.getBoundingClientRect().width);
  if (tile) {
    tile.parentElement.dispatchEvent(new view.MouseEvent("click", {bubbles: true}));
    if (page.querySelector("output")?.textContent !== tile.textContent) found.faults.push("a tap says nothing");
  }
  found.tiles = page.querySelectorAll("rect").length;
  found.background = view.getComputedStyle(page.body).backgroundColor;
  return found;
};
addEventListener("load", () => {
  document.title = "measured";
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
});
"""


def measured(page: Path, folder: Path, *, widths: Sequence[int], dark: bool) -> list[dict[str, Any]]:
    """What is wrong with `page` in windows of `widths` pixels, one value each: `faults`, and how much was looked at."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="width:{w}px;height:3000px;border:0"></iframe>' for w in widths
    )
    wrapper = folder / "frames.html"
    wrapper.write_text(
        f"<!doctype html><meta charset=utf-8><script>{MEASURE}</script>{frames}<pre id=found></pre>", "utf-8"
    )
    done = _chromium(
        folder, wrapper, dark, "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=5000"
    )
    found = re.search(r"<pre id=\"found\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-500:] + done.stderr[-2000:]
    value = json.loads(html.unescape(found[1]))
    assert isinstance(value, list)
    return value


def screenshot(page: Path, folder: Path, *, width: int, height: int, dark: bool) -> bytes:
    """The page as a PNG; `width` is at least 500, the smallest window."""
    out = folder / "screenshot.png"
    _chromium(folder, page, dark, f"--screenshot={out}", f"--window-size={width},{height}", "--hide-scrollbars")
    return out.read_bytes()


def _chromium(folder: Path, page: Path, dark: bool, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    argv = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    argv += [f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={int(not dark)}", *options]
    return subprocess.run([*argv, page.as_uri()], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
