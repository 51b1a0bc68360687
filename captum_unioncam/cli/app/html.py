"""What the app shows of a result: HTML that needs nothing from elsewhere.

An overlay is the image with the colours of its map on top. The browser blends them by
the opacity that the slider sets, so that it needs no new computation.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.image import imsave
from PIL import Image
from torch import Tensor

from captum_unioncam._pictures import note_of
from captum_unioncam.cli.explaining import ClassExplanation
from captum_unioncam.cli.text import label
from captum_unioncam.explanation import title_of
from captum_unioncam.visualization import overlay_images

OPACITY = "--unioncam-opacity"
PREVIEW_SIDE = 480

CSS = f"""
.unioncam-maps {{display: grid; gap: 12px; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(200px, 1fr));}}
.unioncam-maps figure {{margin: 0;}}
.unioncam-stack {{position: relative; line-height: 0;}}
.unioncam-stack img {{width: 100%; border-radius: 4px;}}
.unioncam-stack img + img {{position: absolute; inset: 0; height: 100%;
  opacity: var({OPACITY}, 0.5);}}
.unioncam-maps figcaption {{padding-top: 4px; overflow-wrap: break-word;}}
.unioncam-gains {{border-collapse: collapse; border: none !important; width: 100%;}}
.unioncam-gains caption {{text-align: left; padding: 8px 0 4px; font-weight: 600;}}
.unioncam-gains tbody, .unioncam-gains tr, .unioncam-gains th, .unioncam-gains td {{
  border: none !important; background: none !important;}}
.unioncam-gains th {{text-align: left; font-weight: 400; width: 1%;
  white-space: nowrap;}}
.unioncam-gains td:last-child {{text-align: right; width: 5em;
  font-variant-numeric: tabular-nums;}}
.unioncam-gains th, .unioncam-gains td {{padding: 3px 6px 3px 0;}}
.unioncam-bar {{height: 1em; min-width: 1px; background: #8a94a6;
  border-radius: 2px;}}
.unioncam-selected {{font-weight: 600;}}
.unioncam-selected th {{font-weight: 600;}}
.unioncam-selected .unioncam-bar {{background: #d1495b;}}
.unioncam-negative {{opacity: 0.4;}}
.unioncam-preview img {{max-width: 100%; max-height: 260px; border-radius: 4px;}}
.unioncam-model {{margin: 0 0 8px; overflow-wrap: anywhere;}}
.unioncam-note {{margin: 8px 0 0;}}
"""


def preview_html(name: str, image: Image.Image) -> str:
    """Returns an image, made small."""
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    source = _data_url(buffer.getvalue(), "jpeg")
    return (
        f'<div class="unioncam-preview"><img src="{source}" alt="{escape(name)}"></div>'
    )


def maps_html(photo: str, model: str, found: ClassExplanation) -> str:
    """Returns what was explained, an overlay for each method, and what to mind."""
    explanation = found.explanation
    target = explanation.to_dict()["images"][0]["target"]
    figures = [
        _overlay(title_of(name), explanation.pictures, maps, _caption(found, name))
        for name, maps in explanation.maps.items()
    ]
    note = ""
    if bool(explanation.unsure[0]):
        note = (
            '<p class="unioncam-note">The confidence in this class is about 0, so that '
            "the gains may say nothing.</p>"
        )
    layer = f", layer {explanation.layer}" if explanation.layer else ""  # RISE has none
    shown = f"{photo}: {label(target)}, confidence {target['confidence']:.1%}"
    return (
        f"<h3>{escape(shown)}</h3>"
        f'<p class="unioncam-model">{escape(model)}{escape(layer)}</p>'
        f'<div class="unioncam-maps">{"".join(figures)}</div>{note}'
    )


def _caption(found: ClassExplanation, name: str) -> str:
    kept, seconds = found.kept[name][0].item(), found.seconds[name]
    note = note_of(found.explanation.maps[name][0])
    shown = f"keeps {kept:.0%} of the confidence, {seconds:.1f} s"
    return f"{shown}; {note}" if note else shown


def _overlay(title: str, picture: Tensor, maps: Tensor, caption: str) -> str:
    """Returns an image, and the colours of its map on top of it."""
    images = [
        _data_url(_png(overlay_images(picture, maps, alpha=alpha)[0]), "png")
        for alpha in (0.0, 1.0)
    ]
    return (
        f'<figure><div class="unioncam-stack"><img src="{images[0]}" alt="the image">'
        f'<img src="{images[1]}" alt="the map of {escape(title)}"></div>'
        f"<figcaption><b>{escape(title)}</b><br>{escape(caption)}</figcaption></figure>"
    )


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def gains_html(found: ClassExplanation) -> str:
    """Returns the gains of the maps that each union chose from, as bars."""
    entries = found.explanation.to_dict()["images"][0]["details"]
    return "".join(_chart(title_of(name), entry) for name, entry in entries.items())


def _chart(title: str, entry: dict[str, Any]) -> str:
    """Returns a bar for each gain; the map that was selected is marked."""
    parts = ("denoised", "region", "fused")
    gains = [entry[f"{part}_gain"] for part in parts]
    channels = (
        f"{entry['scored_channels']} of {entry['active_channels']} active channels "
        f"scored; estimated fidelity {entry['fidelity']:.4f}"
    )
    rows = "".join(
        _row(part, gain, share, part == entry["selected"])
        for part, gain, share in zip(parts, gains, bar_shares(gains), strict=True)
    )
    return (
        f'<table class="unioncam-gains"><caption>Score gains of {escape(title)}'
        f"</caption>{rows}</table><p>{escape(channels)}</p>"
    )


def _row(part: str, gain: float, share: float, selected: bool) -> str:
    mark = " class=unioncam-selected" if selected else ""
    name = f"{part} (selected)" if selected else part
    sign = " unioncam-negative" if gain < 0 else ""
    return (
        f'<tr{mark}><th scope="row">{name}</th><td><div class="unioncam-bar{sign}" '
        f'style="width:{share:.1%}"></div></td><td>{gain:.3f}</td></tr>'
    )


def bar_shares(gains: Sequence[float]) -> list[float]:
    """Returns the length of each bar, in [0, 1]: the size of a gain.

    The longest gain has the whole width, unless all are 0.
    """
    longest = max(map(abs, gains))
    return [abs(gain) / longest if longest > 0 else 0.0 for gain in gains]
