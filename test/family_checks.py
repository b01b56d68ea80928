"""Checks for every family adapter: a tiny checkpoint against transformers' own results."""

from __future__ import annotations

import numpy as np
import torch
from sam2_scenes import disc

from benchmarks.literal import literal_ask
from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.mllm import answer_margin, forward
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.pipeline import Decaf
from decaf_ros.stages import finish
from decaf_ros.types import Frame, Window

SIZES = [(90, 130), (480, 854), (320, 180), (150, 150), (97, 61), (41, 187)]
TEXTS = ["What is meant by the red ball?", "Describe the surroundings of it, and nothing else."]
PATCHED = [(480, 854), (854, 480), (400, 400), (95, 131)]
PLACES = [(0.15, 0.2), (0.8, 0.3), (0.4, 0.85)]


def noise(count, size_hw, seed=0):
    """(count, H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size_hw, 3), dtype=np.uint8)


def view(mllm, kind, pictures):
    """A view of all pictures as a video, or of the first picture only."""
    used = pictures if kind == "video" else pictures[:1]
    frames = tuple(Frame(picture, stamp + 1) for stamp, picture in enumerate(used))
    return View(mllm.layout(kind, len(used), used.shape[1:3]), frames)


def encode(mllm, view):
    """Features of all units of a view."""
    return mllm.encode(view.layout, np.stack([np.stack([frame.image for frame in unit]) for unit in view.units]))


def processed(mllm, view, text, system):
    """The family processor's output for a system prompt, the view's images (if any) and a text."""
    content, media = [{"type": "text", "text": text}], {}
    if view is not None:
        pictures = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in view.frames]
        media = {"videos": [torch.stack(pictures)]} if view.layout.kind == "video" else {"images": pictures}
        content.insert(0, {"type": "video" if view.layout.kind == "video" else "image"})
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": content}]
    chat = mllm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = mllm.processor(text=[chat], **media, return_tensors="pt")
    # Unused with one-dimensional positions, and `generate` refuses it.
    inputs.pop("mm_token_type_ids", None)
    return inputs


def tiles_alone(mllm, view, text, system):
    """As `processed`, for LLaVA-OneVision: transformers' own embeddings without base image and newline tokens."""
    inputs, seen = processed(mllm, view, text, system), []
    if view is None:
        return inputs
    hook = mllm.model.get_decoder().register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    with torch.inference_mode():
        mllm.model(**inputs, logits_to_keep=1)
    hook.remove()
    ids = inputs["input_ids"][0]
    kept = torch.ones_like(ids, dtype=torch.bool)
    (slots,) = torch.isin(ids, torch.tensor([mllm.processor.image_token_id, mllm.processor.video_token_id])).nonzero().T
    if view.layout.kind == "video":
        kept[slots[-1:]] = False
    else:
        base, (height, width) = mllm.processor.num_image_tokens, view.layout.grid[1:]
        kept[slots[:base]] = False
        kept[slots[base:].reshape(height, width + 1)[:, -1]] = False
    return {"input_ids": ids[kept][None], "inputs_embeds": seen[0]["inputs_embeds"][:, kept]}


def check_inputs(mllm, view, text, expected):
    """Ids equal the processor's; queries, keys and next token equal those of the model's own forward pass.

    expected: the processor's output for the view and the text.
    """
    prompt = mllm.prompt(view.layout, text)
    expected = dict(expected)
    assert torch.equal(prompt.ids, expected["input_ids"][0])
    if "inputs_embeds" in expected:
        del expected["input_ids"]
    with torch.inference_mode(), record_attention(0) as theirs:
        logits = mllm.model(**expected, logits_to_keep=1).logits[:, -1]
    features = encode(mllm, view)
    assert len(features) == view.layout.units
    inputs = mllm.embed(prompt.ids, prompt.slots, [features])
    ours = forward(mllm.model, inputs, prompt.positions, None, 0, wants_token=True)
    assert len(ours.layers) == len(theirs.layers) == mllm.layers
    for our_layer, their_layer in zip(ours.layers, theirs.layers):
        torch.testing.assert_close(our_layer.query, their_layer.query, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(our_layer.key, their_layer.key, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.logits.argmax(dim=-1), logits.argmax(dim=-1))


def check_margin(engine, question):
    """The margin of a text without images equals that of one full pass."""
    mllm = engine.mllm
    prompt = mllm.prompt(None, question)
    inputs = mllm.embed(prompt.ids, prompt.slots, [()])
    logits = forward(mllm.model, inputs, prompt.positions, None, mllm.layers, wants_token=True).logits
    expected = float(answer_margin(mllm.tokenizer, logits, "several", "one"))
    assert abs(engine.margin(question, "several", "one") - expected) <= 1e-4 and expected != 0


def check_maps(mllm, kind, pictures):
    """The engine's maps and margins, with prefix and suffixes, equal those of one full pass (maps: Eq. 1-4)."""
    views = [view(mllm, kind, pictures[start:]) for start in ((0,) if kind == "video" else range(2))]
    engine = Engine(mllm, EngineConfig())
    results = finish(engine.ask(views, TEXTS, ReadOptions(2)))
    question = "Is there a red ball? Answer yes or no."
    for one, margin in zip(views, finish(engine.yes_margins(views, question, ReadOptions(2)))):
        prompt = mllm.prompt(one.layout, question)
        inputs = mllm.embed(prompt.ids, prompt.slots, [encode(mllm, one)])
        logits = forward(mllm.model, inputs, prompt.positions, None, mllm.layers, wants_token=True).logits
        assert abs(margin - float(answer_margin(mllm.tokenizer, logits, "yes", "no"))) <= 1e-4 and margin != 0
    check_margin(engine, question)
    for text, text_results in zip(TEXTS, results):
        for one, result in zip(views, text_results):
            expected = literal_ask(mllm, one, text, 2)[0]
            assert result.map.shape == one.layout.grid
            assert np.abs(result.map - expected).max() <= 1e-6 and expected.max() > 1e-4


def check_decoding(mllm, view, text, expected):
    """The answer equals that of `generate`. expected: the processor's output, for the text only if `view` is None."""
    engine = Engine(mllm, EngineConfig())
    if view is None:
        answer = finish(engine.answer(text, 6)).text
    else:
        answer = finish(engine.ask([view], [text], ReadOptions(mllm.layers // 2, max_new_tokens=6)))[0][0].answer
    tokens = mllm.model.generate(**expected, max_new_tokens=6, do_sample=False)[0]
    generated = mllm.tokenizer.decode(tokens[expected["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == " ".join("".join(char if char.isprintable() else " " for char in generated).split())


def check_places(mllm, kind, size_hw, tolerance):
    """A bright disc appears at its place and time in the map.

    mllm: its features are the brightness of a token's pixels. tolerance: distance in cells between the centres
    of brightness of the map and of the image averaged to the grid.
    """
    for number, (x, y) in enumerate(PLACES):
        pictures = np.full((3, *size_hw, 3), 40, np.uint8)
        bright = disc(size_hw, x, y, 0.12 * min(1, size_hw[1] / size_hw[0]))
        shown = number if kind == "video" else 0
        pictures[shown][bright] = 250
        disc_view = view(mllm, kind, pictures)
        prompt = mllm.prompt(disc_view.layout, "where is it?")
        inputs = mllm.embed(prompt.ids, prompt.slots, [encode(mllm, disc_view)])
        brightness_map = inputs["inputs_embeds"][0, prompt.cells, 0].reshape(prompt.grid).detach().numpy()
        brightness_map = brightness_map - np.median(brightness_map)
        assert brightness_map.reshape(len(brightness_map), -1).sum(axis=1).argmax() == shown
        assert np.abs(np.delete(brightness_map, shown, axis=0)).max(initial=0) < 1e-3
        rows, columns = (shares(*sizes) for sizes in zip(prompt.grid[1:], size_hw))
        expected = centre(rows @ bright @ columns.T)
        distance = np.abs(centre(brightness_map[shown]) - expected).max()
        assert distance <= tolerance, (
            f"{size_hw}: expected {expected} of {prompt.grid}, got {centre(brightness_map[shown])}"
        )


def check_patches(mllm, kind, size_hw, monkeypatch, answer):
    """A bright patch appears at its place and time in the map.

    For a family whose processor cuts images into patches, of which four in sequence form a token.

    answer: wraps the tokens (n, C) of each unit as the model returns vision features; here a token is as bright as its
    pixels.
    """
    hidden_size = mllm.model.config.get_text_config().hidden_size

    def brightness(pixels, grid):
        tokens = pixels.mean(dim=1).reshape(-1, 4).mean(dim=1)[:, None].expand(-1, hidden_size)
        return answer(list(tokens.split((grid.prod(dim=1) // 4).tolist())))

    monkeypatch.setattr(mllm.model, "get_video_features", brightness)
    monkeypatch.setattr(mllm.model, "get_image_features", brightness)
    height, width = size_hw
    levels = []
    for x, y, frame in ((0.1, 0.2, 0), (0.6, 0.3, 4), (0.9, 0.85, 2)):
        pictures = np.zeros((6, *size_hw, 3), dtype=np.uint8)
        top, left = round(y * height) - height // 16, round(x * width) - width // 16
        pictures[frame, top : top + height // 8, left : left + width // 8] = 255
        one = view(mllm, kind, pictures if kind == "video" else pictures[frame:])
        prompt = mllm.prompt(one.layout, "where is it?")
        inputs = mllm.embed(prompt.ids, prompt.slots, [encode(mllm, one)])
        found = inputs["inputs_embeds"][0, prompt.cells, 0].reshape(prompt.grid).detach()
        shown = torch.from_numpy(np.stack([frame.image for frame in one.frames])[..., 0]).float()[:, None] / 255
        expected = torch.nn.functional.interpolate(shown, size=prompt.grid[1:], mode="area")[:, 0]
        if kind == "video":
            expected = expected.reshape(-1, 2, *prompt.grid[1:]).mean(dim=1)
        # Processors normalise differently: scale by black and the brightest token.
        dark = found.flatten().median()
        assert expected.flatten()[int(found.argmax())] > 0.9 * expected.max()
        levels.append(float((found.max() - dark) / expected.max()))
        error = (found - dark) / levels[-1] - expected
        assert error.abs().max() < 0.15 * expected.max()
    assert max(levels) < 1.3 * min(levels)


def shares(cells, pixels):
    """Matrix (cells, pixels) that averages pixels over equal cells."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    covered = np.clip(edges - np.arange(pixels), 0, 1)
    return np.diff(covered, axis=0) * cells / pixels


def centre(values):
    """Centre of mass (row, column) in cells, without values below a tenth of the maximum."""
    weight = np.maximum(values - 0.1 * values.max(), 0)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    return np.array([(rows * weight).sum(), (columns * weight).sum()]) / weight.sum()


def check_segment(mllm, sam2, mode, contrast=True, size_hw=(96, 128), branches="both"):
    """The whole method runs, and the fused map has the frame branch's grid. Returns the segmentation.

    contrast: False for random weights whose background map may exceed the object map everywhere.
    """
    frames = noise(4, size_hw) // 4
    for place, picture in enumerate(frames):
        picture[30:60, 10 + 6 * place : 40 + 6 * place] = (220, 40, 40)
    window = Window(tuple(Frame(picture, stamp + 1, "camera", stamp) for stamp, picture in enumerate(frames)))
    options = {
        "grounding.mode": mode,
        "grounding.contrast": contrast,
        "grounding.branches": branches,
        "mllm.max_new_tokens": 8,
        "presence.threshold": 0.0,
        "segmentation.fallback": "best",
        "segmentation.point_threshold": 0.9,
    }
    result = Decaf(mllm, sam2, replace(DecafConfig(), options)).segment(window, "the red square")
    assert result.grounding.maps.fused.shape == (4, *mllm.layout("frames", 1, size_hw).grid[1:])
    assert result.grounding.maps.fused.max() == 1 and result.selected
    assert bool(result.grounding.answers) == (mode == "paper")
    assert 0 < result.presence.asked < 1 and result.presence.asked == result.grounding.asked
    return result
