"""Tables, captions and sentences as HTML. What is text is escaped here: a name of a file can be anything."""

from collections.abc import Sequence
from html import escape
from statistics import fmean

from stepladder.demo.pictures import ERROR_LIMIT, error_scale, inline, middle
from stepladder.demo.settings import AS_IT_IS, AS_NAMED
from stepladder.demo.trial import View

__all__ = ["HEAD", "LINK", "STYLE", "alert", "error_caption", "facts", "heading", "means", "note", "strip"]

_THUMBNAIL = 256
_COARSEST = 64
"""Pixels of the first stage that a thumbnail shows at most."""

HEAD = """<header class="sl-head"><h1>Stepladder</h1>
<p>An image is encoded to a small latent and decoded again, up a ladder of scales, coarse stages first.</p></header>"""

STYLE = """
.sl-head h1 {font-size: 1.6rem; margin: 0;} .sl-head p {margin: .1rem 0 0; opacity: .75;}
.sl-alert, .sl-note {border-left: 4px solid; border-radius: 4px; padding: .6rem .8rem; margin: 0 0 .4rem;}
.sl-alert {border-color: #dc2626; background: rgba(220, 38, 38, .10);}
.sl-note {border-color: #6366f1; background: rgba(99, 102, 241, .10);}
.sl-name {font-size: 1.05rem; font-weight: 600; margin: 0;}
.sl-strip {display: flex; flex-wrap: wrap; gap: .5rem;}
.sl-strip figure {flex: 1 1 90px; max-width: 200px; margin: 0;}
.sl-strip img, .sl-strip .sl-wait {width: 100%; border-radius: 4px; display: block;}
.sl-strip .sl-wait {background: rgba(127, 127, 127, .15);}
.sl-strip figcaption, .sl-caption {font-size: .8rem; opacity: .8; margin-top: .2rem; line-height: 1.25;}
.sl-scale {width: 6rem; height: .55rem; border-radius: 2px; display: inline-block; vertical-align: middle;}
.sl-scroll {overflow-x: auto;} .sl-facts, .sl-facts tr {border: 0 !important;}
.sl-facts {border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem; width: 100%;}
.sl-facts th, .sl-facts td {white-space: nowrap;}
.sl-facts th, .sl-facts td {padding: .3rem; text-align: right;
  border: 0 solid rgba(127, 127, 127, .3) !important; border-bottom-width: 1px !important;}
.sl-facts th:first-child, .sl-facts td:first-child {text-align: left;}
.sl-facts th {font-weight: 600;}
.html-container {padding: 0 !important;} footer {display: none !important;}
#examples .grid-wrap, #sheet .grid-wrap {height: auto; min-height: 0; max-height: none; overflow: visible;
  padding-top: 1.6rem;}
#sheet .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)) !important;}
#sheet .thumbnail-lg {aspect-ratio: 2 / 1;}
#examples .grid-container {grid-template-columns: repeat(6, minmax(0, 1fr)) !important; height: auto;
  grid-template-rows: none !important; grid-auto-rows: auto !important;}
#examples .caption-label {display: none;} #examples .thumbnail-lg {aspect-ratio: 1; height: auto; min-height: 0;}
.panel-errors .image-frame, .panel-errors button {height: auto !important; width: 100% !important;}
.panel-errors img {width: 100%; height: auto; max-height: 520px; object-fit: contain; image-rendering: pixelated;}
"""

LINK = """(models, steps, seed, size, example) => {
  const link = new URL(window.location.href);
  const chosen = {models: (models || []).join(','), steps, seed, size, example};
  for (const [key, value] of Object.entries(chosen)) {
    if (value === null || value === undefined || value === '' || UNSAID.includes(value)) link.searchParams.delete(key);
    else link.searchParams.set(key, value);
  }
  window.history.replaceState(null, '', link.toString().replaceAll('%2C', ',').replaceAll('%40', '@'));
}""".replace("UNSAID", str([AS_IT_IS, AS_NAMED]))
"""Writes the settings into the address of the page."""


def alert(*sentences: str) -> str:
    """Sentences on what went wrong."""
    return "".join(f'<div class="sl-alert" role="alert">{escape(sentence)}</div>' for sentence in sentences)


def note(sentence: str) -> str:
    """A sentence on what goes on."""
    return f'<div class="sl-note" role="status">{escape(sentence)}</div>'


def heading(model: str) -> str:
    """The name of a model above its pictures."""
    return f'<p class="sl-name">{escape(model)}</p>'


def strip(view: View) -> str:
    """The stages of a decode from left to right, with their times; those to come are empty.

    Of large images the middle is shown: small pictures of the whole would all look the same.
    """
    if view.decode is None:
        return ""
    share = min(1, _COARSEST / max(view.stages[0].image.size)) if view.stages else 1
    figures = []
    for stage in view.stages:
        width, height = stage.image.size
        picture = f'<img alt="stage" src="{inline(middle(stage.image, share), side=_THUMBNAIL)}">'
        figures.append(_figure(picture, f"{width} x {height}", _milliseconds(stage.seconds)))
    shape = f'style="aspect-ratio: {view.original.width} / {view.original.height}"'
    missing = view.decode.num_stages - len(view.stages)
    figures += [_figure(f'<div class="sl-wait" {shape}></div>', "...", "")] * missing
    caption = '<p class="sl-caption">Stages: the middle of the image, enlarged</p>' if share < 1 else ""
    return f'<div class="sl-strip">{"".join(figures)}</div>{caption}'


def error_caption() -> str:
    """What the colours of an error map mean."""
    return (
        f'<p class="sl-caption">Error map: mean over channels, 0 <img class="sl-scale" alt="colour scale" '
        f'src="{inline(error_scale(), side=256)}"> {ERROR_LIMIT}+ of 255</p>'
    )


def facts(views: Sequence[View]) -> str:
    """A row for each model that is done: latent, fidelity and times."""
    rows = []
    for view in views:
        if view.decode is None or view.fidelity is None:
            continue
        stages = " + ".join(f"{stage.seconds * 1000:.0f}" for stage in view.stages)
        rows.append(
            (
                view.model,
                *_fidelity(view),
                f"{' x '.join(map(str, view.decode.latent_shape))}, {_size(view.decode.latent_bits)}",
                f"{view.bits_per_pixel:.2f}",
                f"{view.decode.encoding_seconds * 1000:.0f}",
                stages,
                f"{view.seconds:.2f}",
            )
        )
    names = ("model", "PSNR, dB", "SSIM", "colour shift", "latent", "bits per pixel", "encode, ms", "stages, ms")
    return _table((*names, "total, s"), rows)


def means(views: Sequence[View]) -> str:
    """A row for each model: means over the images that it is done with."""
    rows = []
    for name in dict.fromkeys(view.model for view in views):
        done = [view for view in views if view.model == name and view.fidelity is not None]
        decibels = [view.fidelity.psnr_db for view in done if view.fidelity and view.fidelity.psnr_db is not None]
        if not done or not decibels:
            continue
        similar = [view.fidelity.ssim for view in done if view.fidelity and view.fidelity.ssim is not None]
        rows.append(
            (
                name,
                str(len(done)),
                f"{fmean(decibels):.2f}",
                f"{fmean(similar):.4f}" if similar else "-",
                f"{fmean(view.bits_per_pixel for view in done):.2f}",
                f"{fmean(view.seconds for view in done):.2f}",
            )
        )
    return _table(("model", "images", "mean PSNR, dB", "mean SSIM", "bits per pixel", "seconds per image"), rows)


def _fidelity(view: View) -> tuple[str, str, str]:
    found = view.fidelity
    assert found is not None, "only finished views have one"
    decibels = "equal" if found.psnr_db is None else f"{found.psnr_db:.2f}"
    return decibels, "-" if found.ssim is None else f"{found.ssim:.4f}", f"{found.colour_shift:.4f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="sl-scroll"><table class="sl-facts"><tr>{head}</tr>{body}</table></div>'


def _figure(picture: str, *lines: str) -> str:
    return f"<figure>{picture}<figcaption>{'<br>'.join(map(escape, lines))}</figcaption></figure>"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _size(bits: float) -> str:
    return f"{bits / 8 / 1024:.1f} KiB"
