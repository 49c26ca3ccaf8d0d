"""The page: controls, panels that fill as stages are decoded, and the server. The only module that knows Gradio.

Nothing is kept between two requests except the files that a browser shows, so visitors do not affect each other.
Requests wait in a queue; a few run at once.
"""

import itertools
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from stepladder.demo import markup
from stepladder.demo.pictures import enlarged, error_map, write_png
from stepladder.demo.settings import AS_IT_IS, AS_NAMED, SIZES, STEPS, Limits, Settings, check_seed, from_link
from stepladder.demo.trial import Offered, View, in_words, run_trial, run_trials
from stepladder.errors import ConfigError, ImageError
from stepladder.files import reason
from stepladder.images import load_image, side_by_side

__all__ = ["serve"]

_TALLEST = 520
"""Height of a picture on the page at most, in pixels of the screen."""

_MOST_SENT = 4
"""Files up to so many times the limit reach the page, which says what to do; larger ones are refused by Gradio."""

_FONTS = ["system-ui", "sans-serif"]
"""Of the visitor's machine: nothing is fetched from another host."""

_EMPTY = "Choose an image and press Reconstruct."
_READY = "Press Reconstruct, or choose another image."
"""What the page says before there is an image, and when there is one."""

_Updates = dict[Any, Any]


def serve(
    models: Sequence[Offered],
    photographs: Mapping[str, Image.Image],
    limits: Limits,
    *,
    folder: Path,
    host: str,
    port: int | None,
    on_ready: Callable[[str], None],
) -> None:
    """Serves the page until the process is interrupted.

    Args:
        models: Those that visitors may choose; the first of them is chosen at first.
        photographs: The examples, by name.
        limits: What the page takes.
        folder: For the files that browsers fetch; the environment names it as `GRADIO_TEMP_DIR`.
        host: The address to listen on.
        port: The port to listen on; None for the first free one from 7860 on.
        on_ready: Called with the link of the page once it answers.

    Raises:
        ConfigError: If the address or the port cannot be used.
    """
    page = _Page(models, photographs, limits, folder).build()
    try:
        _, address, _ = page.queue(max_size=limits.waiting).launch(
            server_name=host,
            server_port=port,
            max_file_size=_MOST_SENT * limits.file_size,
            theme=gr.themes.Default(primary_hue="indigo", font=_FONTS, font_mono=["monospace"]),
            css=markup.STYLE,
            footer_links=[],
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        raise ConfigError(
            f"The page cannot listen on {place} ({reason(error)}). Any address of this machine and any free port "
            "will do. Pass another --port, or leave --host and --port out."
        ) from error
    try:
        on_ready(address)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where one model is shown."""

    column: gr.Column
    comparison: gr.ImageSlider
    strip: gr.HTML
    errors: gr.Image
    caption: gr.HTML

    def cleared(self, *, visible: bool) -> _Updates:
        """Empty, and there or not."""
        return {
            self.column: gr.Column(visible=visible),
            self.comparison: None,
            self.strip: "",
            self.errors: gr.Image(None, visible=False),
            self.caption: "",
        }


class _Page:
    """The components, and what they do. Attributes never change after the page is built."""

    def __init__(self, models: Sequence[Offered], photographs: Mapping[str, Image.Image], limits: Limits, folder: Path):
        self._offered = {model.name: model for model in models}
        self._photographs, self._limits, self._folder = dict(photographs), limits, folder

    def build(self) -> gr.Blocks:
        """Lays the page out and connects it."""
        with gr.Blocks(title="Stepladder", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
            gr.HTML(markup.HEAD)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._controls()
                with gr.Column(scale=3, min_width=320):
                    self._results()
            self._connect(page)
        return page

    def _controls(self) -> None:
        names = list(self._offered)
        self.picture = gr.Image(
            label="Image", type="filepath", format="png", sources=["upload", "clipboard"], height=250, elem_id="picture"
        )
        # Gradio opens an upload by itself, and has words of its own for a damaged one: here the page reads the file.
        self.picture.preprocess = lambda payload: payload.path if payload else None
        self.gallery = gr.Gallery(
            [(photo, name) for name, photo in self._photographs.items()],
            label="Examples",
            columns=6,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=bool(self._photographs),
            elem_id="examples",
        )
        self.models = gr.CheckboxGroup(names, value=names[:1], label="Models", elem_id="models")
        with gr.Row():
            self.steps = gr.Dropdown(STEPS, value=AS_NAMED, label="Steps per stage", min_width=120, elem_id="steps")
            self.size = gr.Dropdown(SIZES, value=AS_IT_IS, label="Size", min_width=120, elem_id="size")
        self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        self.example = gr.Textbox("", label="Example", visible="hidden", elem_id="example")
        with gr.Row():
            self.start = gr.Button("Reconstruct", variant="primary", elem_id="start")
            self.all = gr.Button("All examples", visible=bool(self._photographs), elem_id="all")
            self.stop = gr.Button("Stop", min_width=80, elem_id="stop")

    def _results(self) -> None:
        self.status = gr.HTML(markup.note(_READY if self._photographs else _EMPTY), elem_id="status")
        self.table = gr.HTML(elem_id="facts")
        with gr.Row():
            self.panels = {name: self._panel(name) for name in self._offered}
        self.sheet = gr.Gallery(
            label="Original left, reconstruction right",
            columns=2,
            object_fit="contain",
            format="png",
            visible=False,
            elem_id="sheet",
        )

    def _panel(self, name: str) -> _Panel:
        with gr.Column(min_width=320, visible=False, elem_classes="panel") as column:
            gr.HTML(markup.heading(name))
            with gr.Row():
                buttons = ["fullscreen", "download"]
                with gr.Column(min_width=300):
                    comparison = gr.ImageSlider(
                        label=f"Original | {name}",
                        format="png",
                        max_height=_TALLEST,
                        buttons=buttons,
                        elem_classes="panel-slider",
                    )
                    strip = gr.HTML(elem_classes="panel-strip")
                with gr.Column(min_width=300):
                    errors = gr.Image(
                        label="Error map",
                        format="png",
                        buttons=buttons,
                        interactive=False,
                        visible=False,
                        elem_classes="panel-errors",
                    )
                    caption = gr.HTML()
        return _Panel(column, comparison, strip, errors, caption)

    def _connect(self, page: gr.Blocks) -> None:
        controls = [self.models, self.steps, self.seed, self.size, self.example]
        shown = [self.status, self.table, self.sheet]
        shown += [component for panel in self.panels.values() for component in panel.cleared(visible=False)]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(self._open, outputs=[*controls, self.picture, self.status], **quick)
        self.picture.upload(self._take, self.picture, [self.picture, self.example, self.status], **quick)
        self.picture.clear(lambda: ("", markup.note(_EMPTY)), outputs=[self.example, self.status], **quick)
        self.gallery.select(self._choose, outputs=[self.picture, self.example, self.status], **quick)
        for control in controls:
            control.change(None, controls, js=markup.LINK, **quick)
        slow: dict[str, Any] = {
            "show_progress": "hidden",  # the status says what there is to say
            "concurrency_limit": self._limits.at_once,
            "concurrency_id": "decode",
            "api_visibility": "private",
        }
        waiting = f"() => {json.dumps(markup.note('Waiting for a free place ...'))}"
        for button in (self.start, self.all):
            button.click(None, outputs=self.status, js=waiting, **quick)
        one = self.start.click(self._reconstruct, [self.picture, *controls], shown, **slow)
        every = self.all.click(self._reconstruct_examples, controls, shown, **slow)
        self.stop.click(lambda: markup.note("Stopped."), outputs=self.status, cancels=[one, every], **quick)

    def _open(self, request: gr.Request) -> list[Any]:
        """What the controls hold at first: what the link says."""
        settings, refused = from_link(
            dict(request.query_params), models=list(self._offered), examples=list(self._photographs)
        )
        photo = self._photographs.get(settings.example)
        said = markup.alert(*refused) if refused else markup.note(_READY if photo else _EMPTY)
        picture = self._stored(photo) if photo else None
        return [list(settings.models), settings.steps, settings.seed, settings.size, settings.example, picture, said]

    def _take(self, path: str | None) -> tuple[str | None, str, str]:
        """Reads an upload, and shows it as the models will see it."""
        try:
            return self._stored(self._load(path)), "", markup.note(_READY)
        except Exception as error:
            return None, "", markup.alert(in_words(error, "Reading the image"))

    def _choose(self, event: gr.SelectData) -> tuple[str, str, str]:
        name = list(self._photographs)[event.index]
        return self._stored(self._photographs[name]), name, markup.note(_READY)

    def _reconstruct(self, path: str | None, *controls: Any) -> Iterator[_Updates]:
        """The chosen models on the image, stage by stage."""
        try:
            settings = self._settings(*controls)
            image = self._load(path)
        except Exception as error:
            yield {self.status: markup.alert(in_words(error, "The page"))}
            return
        yield self._cleared(settings) | {self.status: markup.note(f"Encoding with {settings.models[0]} ...")}
        finished: list[View] = []
        for name in settings.models:
            original = ""
            for view in run_trial(self._offered[name], image, settings):
                original = original or self._stored(view.original)
                done = view.fidelity is not None or view.failure
                finished += [view] if done else []
                said = f"{name}: {len(view.stages)} of {view.decode.num_stages} stages" if view.decode else name
                news = {self.status: markup.note(f"{said} ..."), self.table: markup.facts(finished)}
                yield self._drawn(view, original) | news
        yield {self.status: _summary(finished)}

    def _reconstruct_examples(self, *controls: Any) -> Iterator[_Updates]:
        """The chosen models on all photographs, one picture after the other."""
        try:
            settings = self._settings(*controls)
        except Exception as error:
            yield {self.status: markup.alert(in_words(error, "The page"))}
            return
        pairs = list(itertools.product(self._photographs, settings.models))
        chosen = [self._offered[name] for name in settings.models]
        begun = {self.status: markup.note(f"0 of {len(pairs)} ..."), self.sheet: gr.Gallery([], visible=True)}
        yield self._cleared(settings, panels=False) | begun
        sheet: list[tuple[str, str]] = []
        finished: list[View] = []
        views = run_trials(chosen, self._photographs, settings)
        for number, ((photo, name), view) in enumerate(zip(pairs, views, strict=True), start=1):
            finished.append(view)
            if view.fidelity is not None:
                both = side_by_side([view.original, view.stages[-1].image])
                quality = "equal" if view.fidelity.psnr_db is None else f"{view.fidelity.psnr_db:.2f} dB"
                sheet.append((self._stored(both), f"{photo}, {name}: {quality}"))
            yield {
                self.status: markup.note(f"{number} of {len(pairs)} ..."),
                self.sheet: sheet,
                self.table: markup.means(finished),
            }
        yield {self.status: _summary(finished)}

    def _drawn(self, view: View, original: str) -> _Updates:
        """A view in its panel."""
        panel = self.panels[view.model]
        if view.failure:
            return {panel.column: gr.Column(visible=False)}
        newest = view.stages[-1]
        seen = self._stored(enlarged(newest.image, newest.downscale, view.original.size))
        updates: _Updates = {panel.strip: markup.strip(view), panel.comparison: (original, seen)}
        if view.fidelity is not None:
            updates[panel.errors] = gr.Image(self._stored(error_map(newest.image, view.original)), visible=True)
            updates[panel.caption] = markup.error_caption()
        return updates

    def _cleared(self, settings: Settings, *, panels: bool = True) -> _Updates:
        updates: _Updates = {self.table: "", self.sheet: gr.Gallery([], visible=False)}
        for name, panel in self.panels.items():
            updates |= panel.cleared(visible=panels and name in settings.models)
        return updates

    def _settings(self, models: Sequence[str], steps: str, seed: Any, size: str, example: str) -> Settings:
        if not models:
            raise ConfigError(f"No model is chosen. Offered: {', '.join(self._offered)}. Choose one or several.")
        kept = tuple(name for name in self._offered if name in models)
        return Settings(models=kept, steps=steps, seed=check_seed(seed), size=size, example=example)

    def _load(self, path: str | None) -> Image.Image:
        if path is None:
            raise ImageError("There is no image yet. Any PNG, JPEG or WebP will do. Drop one, or choose an example.")
        name, most = Path(path).name, self._limits.file_size
        size = Path(path).stat().st_size if Path(path).exists() else 0  # it may be deleted by now
        if size > most:
            raise ImageError(
                f"Cannot read image {name}: the file has {size / 1e6:.1f} MB; at most {most / 1e6:g} MB are read. "
                "Save it as JPEG or WebP, or make it smaller."
            )
        return load_image(path, name=name, max_pixels=self._limits.pixels)

    def _stored(self, image: Image.Image) -> str:
        """The path of a file that browsers may fetch; it is deleted after an hour, and all are at the end."""
        return str(write_png(image, self._folder / secrets.token_hex(16) / "image.png"))


def _summary(finished: Sequence[View]) -> str:
    """What is said at the end: what failed, each reason once, and what the rest took."""
    said = markup.alert(*dict.fromkeys(view.failure for view in finished if view.failure))
    done = [view.seconds for view in finished if view.fidelity is not None]
    return said + (markup.note(f"Done; encoding and decoding took {sum(done):.2f} s.") if done else "")
