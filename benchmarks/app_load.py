"""What the page costs and stands: time to the page, what the browser adds, memory, crowds, and attacks.

    python benchmarks/app_load.py --json record.json [--requests 1000] [--crowd 200] [--browser chromium]

Starts `moevision demo` in a temporary folder and prints what was measured beside what is asked and aimed at. Times are
of this machine as it is: its load is written beside them, and what the page adds is given as a difference to
`moevision.restore` run beside it, one after the other in turns. Needs the extras app and test.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

CANARY = "canary-of-the-load-test"
_FILE_MB = 4


class Server:
    """A `moevision demo` of its own folder, and how long it took to give its address."""

    def __init__(self, folder):
        (folder / "work").mkdir()
        for name in ("secret.txt", ".env"):
            (folder / "work" / name).write_text(CANARY)
        self.secret = folder / "work" / "secret.txt"
        command = [sys.executable, "-P", "-m", "moevision", "demo", "--device", "cpu", "--max-file-mb", str(_FILE_MB)]
        start_s = time.monotonic()
        self.log = folder / "log"
        self.process = subprocess.Popen(
            command, cwd=folder / "work", env={**os.environ, "TMPDIR": str(folder)}, text=True, stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
        )  # fmt: skip
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log.read_text()
        self.start_s = time.monotonic() - start_s
        self.web = httpx.Client(
            base_url=self.url, timeout=300, limits=httpx.Limits(keepalive_expiry=2), trust_env=False
        )
        config = self.web.get("config").json()
        self.restore_index = next(one["id"] for one in config["dependencies"] if one["api_name"] == "restore")

    def resident_mb(self):
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    def upload(self, path):
        answer = self.web.post("gradio_api/upload", files={"files": (path.name, path.read_bytes())})
        return answer.json()[0] if answer.status_code == 200 else answer

    def restore(self, uploaded):
        """The last message about a request for an uploaded file."""
        data = [{"path": uploaded, "meta": {"_type": "gradio.FileData"}}, 1.0, [], False]
        session = os.urandom(6).hex()
        join = {"data": data, "fn_index": self.restore_index, "session_hash": session}
        self.web.post("gradio_api/queue/join", json=join).raise_for_status()
        with self.web.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
            for line in stream.iter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data:"))
        raise AssertionError("no answer")


def photograph(path, width, height):
    """A hazy slope with some grain: as slow as any picture of its size."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(90, 210, height)[:, None, None] + 12 * rng.standard_normal((height, width, 3))
    Image.fromarray(np.clip(ramp, 0, 255).astype(np.uint8)).save(path, quality=92)
    return path


def in_the_browser(server, browser, picture, rounds):
    """Seconds until the page can be used, and of round trips beside calls of the API in this process."""
    from playwright.sync_api import sync_playwright

    import moevision

    moevision.restore(str(picture), device="cpu")  # both are warm when times are taken
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = driver.chromium.launch(executable_path=shutil.which(browser), args=flags)
        page = chromium.new_page()
        page.set_default_timeout(180_000)
        begin = time.monotonic()
        page.goto(server.url)
        button = page.get_by_role("button", name="Restore", exact=True)
        button.wait_for()
        open_s = time.monotonic() - begin
        panel = page.get_by_role("tabpanel")
        panel.locator("input[type=file]").first.set_input_files(picture)
        panel.get_by_role("button", name="Remove").or_(panel.get_by_label("Remove Image")).first.wait_for()
        trips_s, calls_s = [], []
        for number in range(rounds + 1):
            link = panel.locator('a[download$="-restored.jpg"]')
            before = link.first.get_attribute("href") if number else None
            begin = time.monotonic()
            button.click()
            page.wait_for_function(
                """before => { const a = document.querySelector('a[download$="-restored.jpg"]');
                               return a && a.getAttribute("href") !== before; }""",
                arg=before,
            )
            trip_s = time.monotonic() - begin
            begin = time.monotonic()
            moevision.restore(str(picture), device="cpu")
            if number:
                trips_s.append(trip_s)
                calls_s.append(time.monotonic() - begin)
        chromium.close()
    return {
        "page_opens_s": open_s,
        "restore_1mp_in_the_browser_s": statistics.median(trips_s),
        "restore_1mp_call_s": statistics.median(calls_s),
        "browser_adds_s": statistics.median(trip - call for trip, call in zip(trips_s, calls_s, strict=True)),
    }


def one_after_the_other(server, picture, count):
    """Memory before and after `count` restorations that follow twenty others, all of a small picture."""
    uploaded = server.upload(picture)
    for _ in range(20):
        assert server.restore(uploaded)["success"]
    before_mb, failed, begin = server.resident_mb(), 0, time.monotonic()
    for _ in range(count):
        failed += not server.restore(uploaded)["success"]
    growth = server.resident_mb() / before_mb - 1
    return {
        "requests": count, "failed": failed, "a_request_s": (time.monotonic() - begin) / count,
        "resident_mb": before_mb, "growth": growth,
    }  # fmt: skip


def crowd(server, picture, count):
    """`count` restorations asked for at once: what came back to how many."""
    uploaded = server.upload(picture)
    data = [{"path": uploaded, "meta": {"_type": "gradio.FileData"}}, 1.0, [], False]

    async def ask(web, number):
        session = f"crowd{number}"
        join = {"data": data, "fn_index": server.restore_index, "session_hash": session}
        answer = await web.post("gradio_api/queue/join", json=join)
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.json()['detail']}"
        async with web.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
            async for line in stream.aiter_lines():
                if "process_completed" in line:
                    return "restored" if json.loads(line.removeprefix("data:"))["success"] else "failed"
        return "no answer"

    async def ask_all():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits, trust_env=False) as web:
            return await asyncio.gather(*(ask(web, number) for number in range(count)))

    return dict(Counter(asyncio.run(ask_all())))


def traversals(server, uploaded):
    """Addresses that would lead out of the server's folder."""
    here = str(Path(uploaded).parent)
    for step in (
        "../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%252f",
        "....//",
        "..\\",
        "..%5c",
        "%c0%ae%c0%ae/",
        ".%00./",
    ):
        yield f"gradio_api/file={12 * step}etc/passwd"
        yield f"gradio_api/file={here}/{12 * step}etc/passwd"
        yield f"gradio_api/file={here}/{5 * step}{str(server.secret).lstrip('/')}"
        yield f"assets/{12 * step}etc/passwd"
        yield f"static/{12 * step}etc/passwd"
    for secret in ("/etc/passwd", str(server.secret), "secret.txt", ".env", f"file://{server.secret}"):
        yield from (f"gradio_api/file={secret}", f"gradio_api/file//{secret}", f"gradio_api/proxy={secret}")
    for address in ("http://127.0.0.1:1/a.png", "https://example.com/a.png"):
        yield from (f"gradio_api/file={address}", f"gradio_api/proxy={address}")


def attacks(server, folder, picture):
    """How many addresses were tried and how many leaked; what damaged, oversized and malformed things were told."""
    uploaded = server.upload(picture)
    tried, leaks = 0, []
    for form in traversals(server, uploaded):
        tried += 1
        raw = httpx.URL(server.url).copy_with(raw_path=f"/{form}".encode())
        answer = server.web.send(httpx.Request("GET", raw))
        if CANARY in answer.text or "root:" in answer.text or answer.status_code == 200:
            leaks.append(form)
    told = {}
    for path in damaged_files(folder, picture):
        sent = server.upload(path)
        if isinstance(sent, str):
            message = server.restore(sent)
            told[path.name] = "restored" if message["success"] else str(message["output"].get("error"))
        else:
            told[path.name] = f"{sent.status_code}: {sent.text[:80]}"
    bodies = [b"", b"{", b"[]", b"null", b'{"data": 1}', b"\xff\xfe", b"[" * 50_000, b"x" * (2**20 + 1)]
    headers = {"content-type": "application/json"}
    codes = [server.web.post("gradio_api/queue/join", content=body, headers=headers).status_code for body in bodies]
    return {"addresses": tried, "leaks": leaks, "told": told, "malformed_requests": codes}


def damaged_files(folder, picture):
    """Files that are no pictures, or that a picture should not be."""
    data = picture.read_bytes()
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"):
        bomb += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    contents = {
        "letter.png": b"Dear Sir or Madam", "empty.png": b"", "bomb.png": bomb, "cut.png": data[: len(data) // 2],
        "flipped.png": data[:200] + bytes(200) + data[400:], "page.jpg": b"<script>alert(1)</script>",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "large.png": bytes(_FILE_MB * 2**20 + 2**17),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--crowd", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="round trips of the browser")
    parser.add_argument("--browser", default="chromium", help="program, or empty for none")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="app-load-") as name:
        folder = Path(name)
        server = Server(folder)
        found = {"load_before": load, "processors": os.cpu_count(), "start_to_address_s": server.start_s}
        small, large = photograph(folder / "small.png", 96, 64), photograph(folder / "large.jpg", 1152, 868)
        if options.browser:
            found |= in_the_browser(server, options.browser, large, options.rounds)
            found["start_to_interactive_s"] = server.start_s + found["page_opens_s"]
        found["attacks"] = attacks(server, folder, small)
        found["in_a_row"] = one_after_the_other(server, small, options.requests)
        found["at_once"] = crowd(server, small, options.crowd)
        # Whoever comes after all that is served.
        Client(server.url, verbose=False, download_files=str(folder)).predict(
            handle_file(str(small)), 1.0, [], api_name="/restore"
        )
        server.process.terminate()
        found["ended_with"] = server.process.wait(30)
        found["traces_of_bugs"] = server.log.read_text().count("a request failed")
    found["load_after"] = os.getloadavg()[0]
    text = json.dumps(found, indent=1, ensure_ascii=False)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
