"""Draws one SVG: no program, but a language in which a few lines can ask for any amount of work."""

import importlib.util
import io
import os
import re
from xml.etree import ElementTree

import prefork
import resvg_py
from PIL import Image

TEXT = {"text", "tspan", "textpath", "tref", "altglyph"}
BANNED = {
    **{name: "text" for name in TEXT},
    **{name: "embedded picture" for name in ("image", "feimage")},
    **{name: "script" for name in ("script", "handler", "listener")},
    **{name: "foreign content" for name in ("foreignobject", "iframe", "object", "embed", "audio", "video", "canvas")},
}
ADDRESS = re.compile(r"url\s*\(\s*['\"]?\s*(?!['\"]?#)|@import|javascript:", re.IGNORECASE)
REFERENCES = ("href", "src", "base", "srcset", "data")


def fonts():
    """Matplotlib's, so that words look the same on every machine."""
    found = importlib.util.find_spec("matplotlib")
    return [os.path.join(os.path.dirname(found.origin), "mpl-data", "fonts", "ttf")]


def refusals(svg, allow_text):
    """What the drawing has that no drawing may have, in order and without repeats."""
    if re.search(r"<!(ENTITY|DOCTYPE[^>]*\[)", svg, re.IGNORECASE):
        return ["entity"]  # before a parser expands it
    found = []
    for element in ElementTree.fromstring(svg).iter():
        if not isinstance(element.tag, str):  # comments, instructions
            continue
        kind = BANNED.get(local(element.tag))
        if kind and not (allow_text and kind == "text"):
            found.append(kind)
        for name, value in element.attrib.items():
            found += refused_attribute(local(name), value)
        if local(element.tag) == "style" and ADDRESS.search("".join(element.itertext())):
            found.append("external reference")
    return list(dict.fromkeys(found))


def local(name):
    return name.rpartition("}")[2].lower()


def refused_attribute(name, value):
    if name.startswith("on"):
        return ["script"]
    if name in REFERENCES and not value.strip().startswith("#"):
        return ["embedded picture" if value.strip().lower().startswith("data:") else "external reference"]
    return ["external reference"] if ADDRESS.search(value) else []


def work(item, settings):
    svg, size, allow_text = item, settings["size"], settings["allow_text"]
    if settings["judged"]:
        found = refusals(svg, allow_text)
        if found:
            raise prefork.Refused("banned: " + ", ".join(found))
    content = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=size,
        height=size,
        background="white",
        skip_system_fonts=True,
        font_dirs=fonts() if allow_text else None,
        font_family="DejaVu Sans",
    )
    drawn = Image.open(io.BytesIO(bytes(content))).convert("RGB")
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return {}, canvas.tobytes()


if __name__ == "__main__":
    Image.preinit()
    prefork.serve(work)
