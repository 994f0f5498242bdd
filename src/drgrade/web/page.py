"""The web page of ``drgrade demo``, built with Gradio, and the server of this machine that shows it."""

import ipaddress
import logging
import os
import signal
import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2

from drgrade.data.hospital import Photograph, plan_segmentation
from drgrade.errors import UserError
from drgrade.images.rules import RGBImage
from drgrade.params import Demo, LesionBoxes
from drgrade.predict.model import Model
from drgrade.synthetic.painter import paint
from drgrade.web.grader import Answer, WebGrader
from drgrade.web.lesions import LesionFinder

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

LARGEST_UPLOAD = "400mb"
"""Enough for the largest photograph that is read, uncompressed in 16 bits."""
DELETE = (600, 3600)
"""Seconds between two looks for old uploads and drawings, and the age at which they are deleted. What is left
is deleted when the server stops."""
NOTICE = (
    "**For research. A grade is not a diagnosis.** Photographs are graded by the machine that runs this page "
    "and sent nowhere else. They are deleted within two hours, and when the page is stopped."
)
EMPTY = "<p>Drop a photograph of a retina, or try the sample.</p>"
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
)
"""Content security policy: the browser refuses whatever the page would load from, or send to, elsewhere."""
STYLE = """
.answer h2 { font-size: 1.5rem; margin: 0 0 .75rem; }
.answer dl { display: grid; grid-template-columns: 15rem 1fr; gap: .25rem 1rem; margin: 0 0 1rem; }
.answer dt { font-weight: 600; }
.answer dd { margin: 0; }
.answer .bars { width: 100%; margin: 0 0 1rem; font-variant-numeric: tabular-nums; }
.answer table.bars, .answer .bars :is(tbody, tr, th, td) { border: 0; }
.answer .bars :is(th, td) { padding: .1rem .75rem .1rem 0; font-weight: 400; text-align: left; }
.bars caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
.bars th { width: 8.5rem; }
.bars td:last-child { width: 3.5rem; }
.bars div { background: #3b76af; height: .9rem; min-width: 1px; border-radius: .15rem; }
"""


def serve(model: str, host: str, port: int, detector: Path | None, boxes: LesionBoxes) -> None:
    """Show the web page until the process is interrupted.

    Args:
        model: see :meth:`drgrade.predict.model.Model.load`.
        host: address to listen on; anything but a loopback address opens the page to the network.
        port: port to listen on; 0: a free one.
        detector: folder of a trained lesion detector; None: lesions are not searched, unless the model has a
            lesion network.
        boxes: how the detector's training photographs were cut.

    Raises:
        UserError: Gradio is not installed, the address cannot be used, or there is no such model or detector.
    """
    if find_spec("gradio") is None:
        raise UserError(
            "demo: the web page needs Gradio; run `uv sync --extra page` or `pip install drgrade[page]`"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then too
    with (
        suppress(KeyboardInterrupt),
        _listening(host, port) as listener,
        TemporaryDirectory(prefix="drgrade_demo_") as folder,
    ):
        loaded, sample = Model.load(model), _paint_sample(Path(folder))
        finder = None if detector is None else LesionFinder.load(detector, boxes)
        grader = WebGrader.of(loaded, finder, sample)
        # Gradio reads these when it is imported and when components are made
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{folder}/uploads"}
        _run(page(grader, sample), listener)


def page(grader: WebGrader, sample: Path) -> "gr.Blocks":
    """Build the page: a photograph goes in on the left, the answer stands on the right, images below.

    Args:
        grader: grades the photographs.
        sample: a photograph to try it with.
    """
    import gradio as gr

    def show(path: str | None) -> list[Any]:
        answer = Answer(EMPTY) if path is None else grader.grade(Path(path))
        return [answer.html, *(gr.update(value=image, visible=image is not None) for image in answer[1:])]

    def image(label: str) -> gr.Image:
        return gr.Image(
            label=label, visible=False, interactive=False, format="png", buttons=["download", "fullscreen"]
        )

    with gr.Blocks(title="drgrade", analytics_enabled=False, delete_cache=DELETE) as blocks:
        gr.Markdown(f"# Diabetic retinopathy: grade a photograph\n{NOTICE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="Photograph (PNG, JPEG, TIFF, DICOM)", type="filepath", height=160)
                button = gr.Button("Try the sample photograph (synthetic)")
                gr.Markdown(f"Model: {grader.model.experiment} ({', '.join(grader.model.members)})")
            with gr.Column(scale=2, min_width=320):
                answer = gr.HTML(EMPTY, elem_classes="answer")
        with gr.Row():
            images = [image("Photograph"), image("Heat map"), image("Lesions")]
        upload.change(show, upload, [answer, *images], api_visibility="private")
        button.click(lambda: str(sample), None, upload, api_visibility="private")
    return blocks


def sample_photograph() -> Photograph:
    """Plan the sample: severe retinopathy, drawn by a seed that none of the synthetic datasets uses."""
    return plan_segmentation(Demo(segmentation=2, seed=2))[1]


def _paint_sample(folder: Path) -> Path:
    image: RGBImage = paint(sample_photograph().eye)[0]
    path = folder / "sample.png"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; warns if others than this machine reach it.

    Raises:
        UserError: the address is wrong or in use.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; name another") from None
    address, chosen = listener.getsockname()[:2]
    if not ipaddress.ip_address(address).is_loopback:
        log.warning("--host %s: whoever reaches this machine can use the page; it has no password", host)
    log.info("loading the model; then open http://%s:%d/", f"[{host}]" if ":" in host else host, chosen)
    return listener


def _run(blocks: "gr.Blocks", listener: socket.socket) -> None:
    """Serve the page without share link, footer or history, until it is interrupted."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        "/",
        theme=theme,
        css=STYLE,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    headers = [("Content-Security-Policy", POLICY), ("Referrer-Policy", "no-referrer")]
    config = uvicorn.Config(app, log_level="warning", headers=headers, timeout_graceful_shutdown=2)
    log.info("ready; press Ctrl+C to stop")
    uvicorn.Server(config).run(sockets=[listener])
