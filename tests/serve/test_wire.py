"""What is on the wire comes out as it went in, bit by bit; what is malformed is refused by the name of its field."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from plaudit.data.prompt import Prompt
from plaudit.rewards.calling.request import make_request
from plaudit.serve.pack import Packer, Unsendable
from plaudit.serve.wire import (
    DTYPES,
    JSON,
    SAFETENSORS,
    Limits,
    UnknownMedia,
    WireError,
    decode_request,
    tensor_hash,
    tensor_part,
)

LIMITS = Limits(media_bytes=2**20, items=64)


def decode(document, find=lambda sha256: None, limits=LIMITS):
    return decode_request(json.dumps(document).encode(), JSON, limits, find)


def decode_file(tensors, document, find=lambda sha256: None, limits=LIMITS):
    return decode_request(save(tensors, {"request": json.dumps(document)}), SAFETENSORS, limits, find)


def items(*outputs, **rest):
    return {"reward": "r", "items": [{"output": output} for output in outputs], **rest}


def output_of(part):
    return decode(items(part)).request.outputs[0]


def same(left, right) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and tensor_hash(left) == tensor_hash(right)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (), (0, 3)], ids=str)
def test_a_tensor_comes_back_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 300 - 100).to(dtype)
    assert same(output_of(tensor_part(tensor)), tensor)
    if tensor.ndim:
        file = decode_file({"x": tensor[None]}, items({"kind": "part", "name": "x", "row": 0}))
        assert same(file.request.outputs[0], tensor)


@settings(max_examples=50, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_every_float_survives(bits: list[int]) -> None:
    """Infinities, denormals and every NaN too: what a generator made is the reward's to judge."""
    tensor = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())
    assert same(output_of(tensor_part(tensor)), tensor)
    packed = Packer("r", make_request([Prompt(id="0", text="")], tensor[None])).pack()
    assert same(decode_request(packed.body, packed.content_type, LIMITS, lambda h: None).request.outputs[0], tensor)


def test_a_png_is_read_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    assert same(output_of(png(Image.fromarray(pixels))), expected)
    grey = output_of(png(Image.fromarray(pixels[..., 0])))
    assert same(grey, expected[:1].expand(3, -1, -1).contiguous())


def png(image: Image.Image, **options) -> dict:
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return {"kind": "png", "data": base64.b64encode(data.getvalue()).decode()}


def test_a_data_url_is_a_png_and_any_other_text_is_a_text() -> None:
    part = png(Image.new("RGB", (3, 2), (255, 0, 51)))
    assert same(output_of("data:image/png;base64," + part["data"]), output_of(part))
    assert output_of("data: none") == "data: none"
    for url in ("data:image/jpeg;base64,AAAA", "data:image/png,AAAA", "data:image/png;charset=x;base64,AAAA"):
        with pytest.raises(WireError, match="must be data:image/png;base64"):
            output_of(url)


def test_a_body_may_be_one_picture() -> None:
    part = png(Image.new("RGB", (3, 2), (255, 0, 51)))
    body = base64.b64decode(part["data"])
    query = {"reward": "tone", "prompt": "a red circle"}
    decoded = decode_request(body, "image/png", LIMITS, lambda h: None, query)
    assert decoded.reward == "tone" and decoded.request.prompts[0].text == "a red circle"
    assert same(decoded.request.outputs[0], output_of(part))
    for wrong, said in (({}, "reward"), ({**query, "promt": "x"}, r"\?promt")):
        with pytest.raises(WireError, match=said):
            decode_request(body, "image/png", LIMITS, lambda h: None, wrong)
    with pytest.raises(WireError, match="not a PNG"):
        decode_request(b"GIF89a" + body, "image/png", LIMITS, lambda h: None, query)


def png48(red: int) -> dict:
    """Two by two pixels of three times 16 bits."""
    pixels = b"".join(b"\0" + struct.pack(">HHH", red, 0, 0) * 2 for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return {"kind": "png", "data": base64.b64encode(data).decode()}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_stack_is_not_taken_apart() -> None:
    pictures = torch.rand(4, 3, 2, 2)
    rows = [{"kind": "part", "name": "outputs", "row": i} for i in range(4)]
    whole = decode_file({"outputs": pictures}, items(*rows)).request.outputs
    assert isinstance(whole, torch.Tensor) and torch.equal(whole, pictures)
    turned = decode_file({"outputs": pictures}, items(*rows[::-1])).request.outputs
    assert all(torch.equal(row, pictures[3 - i]) for i, row in enumerate(turned))


def test_groups_are_as_given_or_by_prompt() -> None:
    document = items(*[{"kind": "text", "text": "x"}] * 3)
    for item, (id_, text) in zip(document["items"], [("a", "t"), ("b", "t"), ("a", "t")], strict=True):
        item["prompt"] = {"id": id_, "text": text}
    assert decode(document).request.group == [0, 1, 0]
    for item, group in zip(document["items"], [5, 5, 9], strict=True):
        item["group"] = group
    assert decode(document).request.group == [5, 5, 9]


def test_media_by_hash() -> None:
    tensor = torch.rand(3, 2, 2)
    sha256 = tensor_hash(tensor)
    assert sha256 == hashlib.sha256(b"float32 3x2x2\n" + tensor.numpy().tobytes()).hexdigest()
    brought = decode(items({**tensor_part(tensor), "sha256": sha256}))
    assert list(brought.seen) == [sha256]
    named = items({"kind": "hash", "sha256": sha256}, {"kind": "hash", "sha256": "0" * 64})
    with pytest.raises(UnknownMedia) as caught:
        decode(named, {sha256: tensor}.get)
    assert caught.value.hashes == ["0" * 64]
    lie = items({**tensor_part(tensor + 1), "sha256": sha256})
    with pytest.raises(WireError, match=r"items\.0\.output\.sha256: is not the hash"):
        decode(lie)


@pytest.mark.parametrize("value", [{7: 1}, {"a": {7: 1}}, [{"b": [{7: 1}]}], {None: 1}, {True: 1}], ids=str)
@pytest.mark.parametrize("place", ["facts", "inputs", "outputs"])
def test_only_keys_that_are_text_are_sent(place: str, value) -> None:
    """JSON would make text of them, and the reward would look in vain."""
    named = {place: {"x": value}} if place != "outputs" else {}
    output = value if place == "outputs" else "text"
    with pytest.raises(Unsendable, match=rf"{place}\b.* has the key (7|None|True);"):
        Packer("r", make_request([Prompt(id="0", text="", **named)], [output])).pack()


def test_the_same_bytes_in_another_shape_have_another_hash() -> None:
    tensor = torch.zeros(4, 6)
    others = [tensor.reshape(6, 4), tensor.to(torch.int32), tensor.reshape(24), tensor.reshape(1, 4, 6)]
    assert len({tensor_hash(each) for each in [tensor, *others]}) == 5


# --- what is refused --------------------------------------------------------------------------------------------------

TENSOR = tensor_part(torch.zeros(2, 2))
BAD_ITEMS = {
    "output": {"kind": "text", "txt": "x"},
    "output.tensor.shape": {**TENSOR, "shape": [-1, 2]},
    "output.data: the sizes": {**TENSOR, "shape": [0, 10**23], "data": ""},
    "output.data: the sizes of": {**TENSOR, "shape": [0, 2**63 - 1, 2**63 - 1], "data": ""},
    "output.dtype": {**TENSOR, "dtype": "complex64"},
    "output.data": {**TENSOR, "shape": [2, 3]},
    "output.name": {"kind": "part", "name": "x", "row": 0},
    "output.hash.sha256": {"kind": "hash", "sha256": "short"},
    "output.tensor.data": {**TENSOR, "data": 5},
    "output.tensor.shape.0": {**TENSOR, "shape": ["2", 2]},
    "output.tensor.shape.1": {**TENSOR, "shape": [2, 2.0]},
}


@pytest.mark.parametrize("field", BAD_ITEMS)
def test_a_malformed_item_is_named(field: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(items({"kind": "text", "text": "fine"}, BAD_ITEMS[field]))
    assert caught.value.status == 422 and str(caught.value).startswith(f"items.1.{field}")


@pytest.mark.parametrize(
    "document, where",
    [
        ({"items": []}, "reward"),
        ({"reward": "r", "items": []}, "items"),
        ({"reward": 5, "items": [{"output": TENSOR}]}, "reward"),
        ({"reward": "r", "items": [{}]}, "items.0.output"),
        (items(TENSOR, step=-1), "step"),
        (items(TENSOR, step="0"), "step"),
        (items(TENSOR, deadline_ms=0), "deadline_ms"),
        (items(TENSOR, wieght=1), "wieght"),
        ({"reward": "r", "items": [{"output": TENSOR, "group": 1}, {"output": TENSOR}]}, "items.1.group"),
        ({"reward": "r", "items": [{"output": TENSOR, "prompt": {"inputs": {"a": 5}}}]}, "items.0.prompt.inputs.a"),
        ([], ""),
        ("text", ""),
    ],
    ids=str,
)
def test_a_malformed_document_is_named(document, where: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(document)
    assert caught.value.where.startswith(where)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 10**5, b'{"reward": NaN}', b"9" * 10**5, b'{"a": "\\ud800', b"\x80\x04N."],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(WireError, match="not JSON"):
        decode_request(body, JSON, LIMITS, lambda h: None)


def test_other_content_types_are_refused() -> None:
    for kind in ("", "text/plain", "application/octet-stream", "application/x-pickle"):
        with pytest.raises(WireError) as caught:
            decode_request(b"{}", kind, LIMITS, lambda h: None)
        assert caught.value.status == 415


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
META = {"request": json.dumps(items({"kind": "part", "name": "x", "row": 0}))}
BAD_FILES = {
    "empty": b"",
    "no header": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": safetensors_file(b"nonsense"),
    "metadata of null": safetensors_file({"x": ENTRY, "__metadata__": None}, bytes(8)),
    "nothing of a huge shape": safetensors_file(
        {"x": {**ENTRY, "shape": [0, 2**62], "data_offsets": [0, 0]}, "__metadata__": META}
    ),
    "no request": safetensors_file({"x": ENTRY}, bytes(8)),
    "request is no text": safetensors_file({"x": ENTRY, "__metadata__": {"request": 5}}, bytes(8)),
    "too short": safetensors_file({"x": ENTRY, "__metadata__": META}, bytes(4)),
    "too long": safetensors_file({"x": ENTRY, "__metadata__": META}, bytes(12)),
    "wrong shape": safetensors_file({"x": {**ENTRY, "shape": [3]}, "__metadata__": META}, bytes(8)),
    "huge shape": safetensors_file({"x": {**ENTRY, "shape": [2**62, 2**62]}, "__metadata__": META}, bytes(8)),
    "unknown dtype": safetensors_file({"x": {**ENTRY, "dtype": "OBJ"}, "__metadata__": META}, bytes(8)),
    "float8": safetensors_file(
        {"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "__metadata__": META}, bytes(8)
    ),
    "row too far": save({"x": torch.zeros(2)}, {"request": json.dumps(items({"kind": "part", "name": "x", "row": 2}))}),
    "bool of 2": safetensors_file(
        {"x": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}, "__metadata__": META}, b"\x02\x01"
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_malformed_file_is_refused(fault: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_request(BAD_FILES[fault], SAFETENSORS, LIMITS, lambda h: None)
    assert caught.value.status == 422


def test_a_row_named_often_counts_as_often() -> None:
    """A small body must not become gigabytes: every reward is given a copy of each output."""
    row = {"kind": "part", "name": "x", "row": 0}
    tensors = {"x": torch.zeros(1, 2**16)}  # a quarter of the limit
    assert len(decode_file(tensors, items(*[row] * 4)).request) == 4
    with pytest.raises(WireError) as caught:
        decode_file(tensors, items(*[row] * 5))
    assert caught.value.status == 413
    kept = torch.zeros(2**16)
    with pytest.raises(WireError):
        decode(items(*[{"kind": "hash", "sha256": tensor_hash(kept)}] * 5), {tensor_hash(kept): kept}.get)


def test_sizes_are_refused_before_anything_is_unpacked() -> None:
    for shape in ([2**40], [2**20, 2**20, 2**20], [2**19]):
        with pytest.raises(WireError) as caught:
            decode(items({**TENSOR, "shape": shape}))
        assert caught.value.status == 413
    with pytest.raises(WireError) as caught:
        decode(items(*[{"kind": "text", "text": "x"}] * 65))
    assert caught.value.status == 413


def test_a_png_bomb_is_refused_by_its_header() -> None:
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )
    with pytest.raises(WireError):
        decode(items({"kind": "png", "data": base64.b64encode(bomb).decode()}))


def test_pngs_that_would_lose_something_are_refused() -> None:
    for image in (Image.new("RGBA", (2, 2)), Image.new("I;16", (2, 2)), Image.new("LA", (2, 2))):
        with pytest.raises(WireError, match="would lose"):
            decode(items(png(image)))
    with pytest.raises(WireError, match="would lose"):
        decode(items(png(Image.new("P", (2, 2)), transparency=0)))
    with pytest.raises(WireError, match="16 bit would lose"):  # Pillow reads its upper bytes and calls it RGB
        decode(items(png48(0x80FF)))
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    with pytest.raises(WireError, match="animated PNG would lose"):
        decode(items(png(frames[0], save_all=True, append_images=frames[1:])))
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(WireError, match="not a PNG"):
            decode(items({"kind": "png", "data": base64.b64encode(data).decode()}))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_body_is_refused_or_read_but_never_raises_anything_else(data) -> None:
    whole = save({"outputs": torch.zeros(2, 3)}, {"request": json.dumps(items({"kind": "part", "name": "outputs"}))})
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_request(bytes(body), SAFETENSORS, LIMITS, lambda h: None)
    except (WireError, UnknownMedia):
        return
    assert math.prod(decoded.request.outputs[0].shape) * 4 <= LIMITS.media_bytes
