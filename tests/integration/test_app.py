"""`moevision demo` over its API: what comes back is what `moevision.api` gives, and strangers cannot do harm."""

import http.server
import json
import re
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moevision
from moevision.api import restoration_task
from moevision.imaging.picture import picture_from_array
from moevision.imaging.read import read_picture
from moevision.imaging.video import VideoWriter, read_frames
from moevision.imaging.write import write_picture

gradio_client = pytest.importorskip("gradio_client", reason="the extra `app` is not installed")
pytest.importorskip("av", reason="the extra `video` is not installed")
httpx = pytest.importorskip("httpx")

# One client, for a new one costs 50 ms; a kept connection must not be used while the server, after 5 s, closes it.
WEB = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=64, keepalive_expiry=2), trust_env=False)
EXAMPLES = Path(__file__).parents[2] / "app" / "examples"
SCENES = EXAMPLES.parent / "scenes"
SITE = SCENES / "meadow-site.json"
FULL = {"uint8": 255, "uint16": 65535}


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory):
    return gradio_client.Client(demo.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The part of the example in which the cyclist appears, 3.5 s."""
    path = tmp_path_factory.mktemp("clip") / "meadow.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for number, frame in enumerate(read_frames(SCENES / "meadow-odd.mp4")):
            if 5 <= number < 40:
                writer.write(frame.pixels_HWC)
    return path


def sent(path):
    return gradio_client.handle_file(str(path))


def failure(client, *arguments, api_name):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(*arguments, api_name=api_name)
    text = str(caught.value)
    assert "Traceback" not in text
    assert "\n" not in text
    assert "/tmp" not in text
    return text


def picture_file(path, dtype, size_hw=(60, 80)):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size_hw[1])[None, :, None] * np.ones((*size_hw, 3)) + 0.02 * rng.random((*size_hw, 3))
    values = ramp.clip(0, 1)
    pixels = values.astype(np.float32) if dtype == "float32" else np.rint(values * FULL[dtype]).astype(dtype)
    write_picture(picture_from_array(pixels), path)
    return path


def test_the_four_jobs_are_named_and_nothing_else_is(client):
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == [
        "/detect", "/fuse", "/restore", "/segment",
    ]  # fmt: skip


def test_restore_is_the_api_and_keeps_format_and_depth(client, tmp_path):
    files = [EXAMPLES / "drops-dogs.png", picture_file(tmp_path / "deep.png", "uint16")]
    files += [picture_file(tmp_path / "deep.tif", "uint16"), picture_file(tmp_path / "float.tiff", "float32")]
    for file in files:
        views, words, saved, experts, table = client.predict(sent(file), 1.0, [], api_name="/restore")
        assert experts is None
        assert "%" not in table
        source, result = read_picture(file), read_picture(Path(saved))
        assert Path(saved).name == f"{file.stem}-restored{file.suffix}"
        assert (result.format, result.pixels_HWC.dtype) == (source.format, source.pixels_HWC.dtype)
        np.testing.assert_array_equal(result.pixels_HWC, moevision.restore(str(file), device="cpu"))
        assert [Image.open(view).size for view in views] == [source.pixels_HWC.shape[1::-1]] * 2
        assert re.match(r"### (rain|drops|snow|haze|clean), [01]\.\d\d\n", words)


def test_restore_does_what_it_is_told(client):
    file = EXAMPLES / "drops-dogs.png"
    _, _, saved, *_ = client.predict(sent(file), 0.0, [], api_name="/restore")
    np.testing.assert_array_equal(read_picture(Path(saved)).pixels_HWC, read_picture(file).pixels_HWC)
    _, words, saved, *_ = client.predict(sent(file), 0.5, ["haze"], api_name="/restore")
    expected = moevision.restore(str(file), device="cpu", strength=0.5, weather=["haze"])
    np.testing.assert_array_equal(read_picture(Path(saved)).pixels_HWC, expected)
    assert "Taken away: haze" in words


def test_who_decided_what_is_told_when_asked_for(client):
    file = SCENES / "meadow-visible.png"
    *_, seen, words = client.predict(sent(file), 1.0, [], True, api_name="/restore")
    expected = restoration_task(device="cpu", experts_map=True)((read_picture(file),))
    assert Image.open(seen).size == expected.maps["experts"].pixels_HWC.shape[1::-1]
    number, share = next(iter(expected.facts["experts"].items()))
    assert f"oftenest expert {int(number) + 1}, in {100 * share:.0f} % of the picture" in words


def test_a_visitor_chooses_among_what_the_owner_offers(client, demo):
    file = EXAMPLES / "haze-hills.jpg"
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/segment"]["parameters"]
    assert parameters[-1]["type"]["enum"] == ["tiny", "segmentation-camvid", "segmentation-camvid-weather"]
    *_, saved = client.predict(sent(file), False, "segmentation-camvid", api_name="/segment")
    np.testing.assert_array_equal(np.asarray(Image.open(saved)), moevision.segment(str(file), device="cpu").ids_HW)
    for model in (str(demo.segmentation_model), "../tiny"):
        with pytest.raises(gradio_client.exceptions.AppError, match="not in the list"):
            client.predict(sent(file), False, model, api_name="/segment")


def test_fuse_is_the_api(client):
    files = [SCENES / f"meadow-{kind}.png" for kind in ("infrared", "visible")]
    _, weights, words, saved = client.predict(*map(sent, files), False, api_name="/fuse")
    expected = moevision.fuse(*map(str, files), device="cpu")
    np.testing.assert_array_equal(read_picture(Path(saved)).pixels_HWC, expected)
    assert Image.open(weights).size == expected.shape[1::-1]
    assert re.match(r"### Visible \d+ %, infrared \d+ %", words)


def test_segment_is_the_api(client, demo):
    file = EXAMPLES / "haze-hills.jpg"
    for first in (False, True):
        _, table, words, saved = client.predict(sent(file), first, api_name="/segment")
        found = moevision.segment(
            str(file), model=demo.segmentation_model, device="cpu", restore="auto" if first else "off"
        )
        np.testing.assert_array_equal(np.asarray(Image.open(saved)), found.ids_HW)
        name, share = max(found.areas.items(), key=lambda item: item[1])
        assert f"{100 * share:.1f} %" in table
        assert f"Mostly {name.lower()}" in words
        assert ("Restored first" in words) == first


def test_detect_is_the_api_and_tells_how_far_it_is(client, clip):
    job = client.submit(sent(clip), sent(SITE), 6, api_name="/detect")
    heat, plot, table, words, files = job.result(120)
    expected = moevision.detect(clip, site=SITE, device="cpu")
    (events_file,) = (Path(file) for file in files if file.endswith("events.json"))
    events = json.loads(events_file.read_text())["events"]
    assert [event["start_s"] for event in events] == [event.start_s for event in expected.events]
    assert [row[2] for row in table["data"]] == [round(event.peak_score, 2) for event in expected.events]
    assert sum(1 for _ in read_frames(Path(heat))) == len(expected.scores)
    assert Image.open(plot).size[0] > 300
    assert "event" in words
    assert any("Frame" in str(output[3]) for output in job.outputs())


def test_cancelling_ends_the_work_and_its_process(client, demo):
    # A result of the other tests may have left a process waiting, no more.
    job = client.submit(sent(SCENES / "meadow-odd.mp4"), sent(SITE), 6, api_name="/detect")
    wait_for(lambda: job.outputs())
    busy = demo.children()
    job.cancel()
    wait_for(lambda: len(demo.children()) <= 1)
    assert busy
    assert not list(demo.temporary.glob("moevision-demo-*/*/unfinished-*"))
    client.predict(sent(EXAMPLES / "drops-dogs.png"), 1.0, [], api_name="/restore")


def wait_for(condition, seconds=60):
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_bad_input_is_told_in_one_line(client, tmp_path, clip):
    text = tmp_path / "a<img src=x onerror=alert(1)>.png"
    text.write_text("no picture")
    assert "not an image file" in (said := failure(client, sent(text), 1.0, [], api_name="/restore"))
    assert "<" not in said
    assert "choose one first" in failure(client, None, 1.0, [], api_name="/restore")
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_header(20_000, 20_000))
    assert "over the limit of 1,500,000" in failure(client, sent(bomb), 1.0, [], api_name="/restore")
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((EXAMPLES / "haze-hills.jpg").read_bytes()[:9000])
    assert "damaged" in failure(client, sent(damaged), 1.0, [], api_name="/restore")
    assert "infrared picture" in failure(client, None, sent(EXAMPLES / "haze-hills.jpg"), False, api_name="/fuse")
    assert (
        "same shape"
        in (
            said := failure(
                client, sent(SCENES / "meadow-infrared.png"), sent(EXAMPLES / "rain-dogs.jpg"), False, api_name="/fuse"
            )
        )
        or "view" in said
    )
    shutil.copy(EXAMPLES / "haze-hills.jpg", tmp_path / "film.mp4")
    assert "not a video" in failure(client, sent(tmp_path / "film.mp4"), None, 6, api_name="/detect")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    assert "not a video" in failure(client, sent(playlist), None, 6, api_name="/detect")
    site = tmp_path / "site.json"
    site.write_text("[" * 100_000)
    assert "site.json" in failure(client, sent(clip), sent(site), 6, api_name="/detect")
    long = tmp_path / "long.mp4"
    with VideoWriter(long, Fraction(10)) as writer:
        for _ in range(150):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert "lasts 15 s, the limit is 12 s" in failure(client, sent(long), None, 6, api_name="/detect")


def png_header(width, height):
    """A PNG that claims to be large, with hardly any pixels in it."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    packed = (len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def traversals(demo):
    work = demo.temporary / "work"
    secrets = ["/etc/passwd", str(work / "secret.txt"), str(work / ".env"), str(demo.segmentation_model)]
    steps = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "....//", "..\\", "..%5c", "%c0%ae%c0%ae/", ".%00./"]
    for secret in secrets:
        yield f"gradio_api/file={secret}"
        yield f"gradio_api/file=//{secret}"
        yield f"gradio_api/file=file://{secret}"
    for step in steps:
        yield f"gradio_api/file={6 * step}etc/passwd"
        yield f"assets/{6 * step}etc/passwd"
    yield from (
        "gradio_api/file=secret.txt",
        "gradio_api/file=.env",
        "gradio_api/file=SECRET.TXT",
        "static/..%2fapp.py",
    )
    for address in ("http://127.0.0.1/secret.txt", "https://example.com/a.png"):
        yield from (f"gradio_api/file={address}", f"gradio_api/proxy={address}")


def test_no_form_of_a_path_leaves_the_upload_folder(demo):
    forms = list(traversals(demo))
    assert len(forms) >= 30
    with httpx.Client(base_url=demo.url) as http_client:
        for form in forms:
            answer = http_client.send(httpx.Request("GET", httpx.URL(demo.url).copy_with(raw_path=f"/{form}".encode())))
            assert answer.status_code in (307, 400, 403, 404, 405, 422), form
            assert "root:" not in answer.text
            assert "CANARY" not in answer.text


@pytest.fixture(scope="module")
def restore_index(demo):
    config = WEB.get(f"{demo.url}config").json()
    return next(one["id"] for one in config["dependencies"] if one["api_name"] == "restore")


def join(demo, fn_index, data):
    """Ask as a browser does, with whatever data; the session to hear of it in, and the answer."""
    session = f"test{time.monotonic_ns()}"
    body = {"data": data, "fn_index": fn_index, "session_hash": session}
    return session, WEB.post(f"{demo.url}gradio_api/queue/join", json=body)


def outcome(demo, session):
    with WEB.stream("GET", f"{demo.url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data:"))
    raise AssertionError("no answer")


def test_a_request_names_neither_files_of_the_server_nor_addresses(demo, restore_index):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    meta = {"meta": {"_type": "gradio.FileData"}}
    paths = ["/etc/passwd", str(demo.temporary / "work" / "secret.txt"), "secret.txt"]
    paths += [f"http://127.0.0.1:{server.server_port}/a.png", f"http://localhost:{server.server_port}/b.png"]
    for path in paths:
        session, answer = join(demo, restore_index, [{"path": path, **meta}, 1.0, []])
        assert answer.status_code == 200
        message = outcome(demo, session)
        assert message["success"] is False
        assert "root:" not in json.dumps(message)
    assert asked == []
    server.shutdown()


def test_what_is_too_large_or_malformed_is_refused(demo, restore_index):
    large = {"files": ("a.png", bytes(3 * 2**20))}
    assert WEB.post(f"{demo.url}gradio_api/upload", files=large).status_code == 413
    join_url = f"{demo.url}gradio_api/queue/join"
    assert WEB.post(join_url, content=b"x" * (2**20 + 1)).status_code == 413
    assert WEB.post(join_url, content=(b"x" * 2**16 for _ in range(20))).status_code in (400, 413)  # states no length
    for body in (b"", b"{", b"[]", b"null", b'{"data": 1}', b'{"fn_index": "x"}', b"\xff\xfe", b"[" * 50_000):
        answer = WEB.post(join_url, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code <= 500, body[:20]
        assert "Traceback" not in answer.text
    for data in ([], ["x", "y", "z"], [{"path": None}, "strong", "rain"], [None, 1e9, ["fog"]]):
        session, answer = join(demo, restore_index, data)
        if answer.status_code == 200:
            assert outcome(demo, session)["success"] is False
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}, {"host": "[x"}):
        assert WEB.get(demo.url, headers=headers).status_code == 421, headers
    assert WEB.get(demo.url, headers={"origin": demo.url.rstrip("/")}).status_code == 200
    answer = WEB.get(demo.url)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_nothing_of_gradio_is_reached_that_the_page_does_not_use(demo):
    film = {"video": ("a.mp4", b"x")}
    for path in ("process_recording", "vibe-edit", "stream/x", "component_server", "component_server/"):
        assert WEB.post(f"{demo.url}gradio_api/{path}", files=film).status_code == 404, path
    for path in ("monitoring", "gradio_api/deep_link", "gradio_api/runs", "gradio_api/dev/reload", "docs", "login"):
        assert WEB.get(f"{demo.url}{path}").status_code == 404, path


def test_many_at_once_leave_the_server_alive_and_a_full_queue_says_so(demo, client, restore_index):
    with ThreadPoolExecutor(60) as pool:
        pages = list(pool.map(lambda _: WEB.get(demo.url, timeout=60).status_code, range(60)))
        joined = list(pool.map(lambda _: join(demo, restore_index, [None, 1.0, []])[1], range(60)))
    assert pages == [200] * 60
    codes = {answer.status_code for answer in joined}
    assert codes <= {200, 503}
    for answer in joined:
        if answer.status_code == 503:
            assert "full" in answer.text
    client.predict(sent(EXAMPLES / "drops-dogs.png"), 1.0, [], api_name="/restore")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_requests(demo, restore_index):
    def used():
        return int(Path(f"/proc/{demo.process.pid}/statm").read_text().split()[1])

    def ask(count):
        for _ in range(count):
            assert WEB.get(f"{demo.url}config").status_code == 200
            session, _ = join(demo, restore_index, [None, 1.0, []])
            assert outcome(demo, session)["success"] is False

    ask(20)
    before = used()
    ask(40)  # a thousand restorations: benchmarks/app_load.py
    assert used() < 1.1 * before
