"""Palettes of the two looks, and the pictures that are drawn once and shared by all scenes."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raydelta.data.simulator.canvas import BUILDING, FENCE, VEGETATION, Colour, Texture, ints

FACADES, TREES, TEXTURE_SEED = 36, 24, 20260101  # all scenes share the textures


class Style(NamedTuple):
    """The palettes of a look, and how much of what there is."""

    walls: tuple[Colour, ...]
    cars: tuple[Colour, ...]
    clothes: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    bare_trees: float
    grain: float
    parking: float
    people: float
    trees: float


STYLES = {
    "synthetic": Style(
        ((178, 96, 74), (206, 184, 150), (222, 214, 200), (150, 140, 132), (196, 160, 110), (170, 176, 184)),
        ((190, 30, 34), (34, 70, 160), (226, 226, 228), (60, 62, 68), (20, 110, 90), (214, 170, 40), (150, 154, 160)),
        ((40, 60, 120), (170, 40, 40), (60, 110, 60), (220, 200, 170), (50, 50, 56), (120, 80, 140)),
        ((78, 134, 48), (104, 150, 58), (58, 112, 52)), 0.08, 0.7, 0.5, 1.9, 0.28,
    ),
    "street": Style(
        ((132, 104, 84), (166, 152, 128), (206, 198, 178), (116, 82, 68), (104, 102, 100), (146, 128, 102)),
        ((34, 36, 40), (56, 60, 70), (136, 140, 146), (190, 192, 194), (96, 28, 30), (36, 52, 86), (60, 80, 70)),
        ((24, 26, 32), (40, 38, 40), (58, 50, 44), (30, 36, 60), (88, 84, 80), (120, 34, 34)),
        ((84, 94, 50), (102, 98, 62), (66, 80, 46), (116, 96, 56)), 0.5, 1.3, 0.65, 2.7, 0.4,
    ),
}  # fmt: skip


@lru_cache(maxsize=64)
def noise(number: int, coarse: int) -> np.ndarray:
    """A (256, 256) float32 tile of octaves from `coarse` cells up, mean 0, deviation 1, that repeats seamlessly."""
    rng, total, cells, weight = (
        np.random.default_rng([TEXTURE_SEED, 1, number]),
        np.zeros((256, 256), np.float32),
        coarse,
        1.0,
    )
    while cells <= 256:
        grid, step = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap"), 256 // cells
        smooth = Image.fromarray(grid).resize((256 + 4 * step,) * 2, Image.Resampling.BICUBIC)
        total += weight * np.asarray(smooth)[2 * step : 2 * step + 256, 2 * step : 2 * step + 256]
        cells, weight = cells * 2, weight * 0.75
    return (total - total.mean()) / total.std()


@lru_cache(maxsize=4)
def static(size: int) -> np.ndarray:
    """White noise to take `size` values from, at any start below 2**16."""
    return np.random.default_rng(TEXTURE_SEED).standard_normal(size + 2**16, dtype=np.float32)


def _weathered(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blotches, grain, and dirt towards the ground."""
    rows, columns = np.ogrid[: image.height, : image.width]
    blotch, grain = (noise(int(rng.integers(8)), c)[rows % 256, columns % 256] for c in (4, 64))
    down = np.linspace(0, 1, image.height, dtype=np.float32)[:, None] ** 6
    rough = 1 + strength * (0.06 * blotch + 0.07 * grain - 0.2 * down)
    return Image.fromarray(np.clip(np.asarray(image) * rough[..., None], 0, 255).astype(np.uint8))


def _texture(image: Image.Image, label: int, metres: tuple[float, float]) -> Texture:
    levels = [image]
    levels += [levels[0].reduce(2), levels[0].reduce(4)]
    mean = np.asarray(levels[2]).mean((0, 1)).tolist()
    for level in levels:
        level.putalpha(label)
    return Texture(tuple(levels), metres, tuple(mean))


@lru_cache(maxsize=256)
def facade(look: str, number: int) -> Texture:
    """A house front: brick, stone or render, rows of windows, a shop or a door on the ground floor."""
    style, rng = STYLES[look], np.random.default_rng([TEXTURE_SEED, 2, number, len(look)])
    u, m, storeys, bays, bay, storey = (
        rng.uniform,
        18,
        2 + number // 4 % 3,
        2 + number % 3,
        rng.uniform(2.1, 3.1),
        rng.uniform(2.7, 3.3),
    )
    metres = (bays * bay, storeys * storey + 0.6)
    width, height = int(metres[0] * m), int(metres[1] * m)
    wall = np.array(style.walls[number % len(style.walls)]) * u(0.95, 1.25)
    image = Image.new("RGB", (width, height), ints(wall))
    draw = ImageDraw.Draw(image)
    if number % 5 < 3:  # courses of brick or stone
        course = 2 + number % 5
        for row in range(0, height, course * 2):
            draw.rectangle((0, row, width, row + course - 1), fill=ints(wall * u(0.88, 1.1)))
            for column in range(-int(rng.integers(course * 5)), width, course * 5):
                draw.rectangle((column, row, column + course * 2, row + course), fill=ints(wall * u(0.82, 1.12)))
    trim, shop, office = (
        ints(wall * 0.55 if u() < 0.3 else u(130, 235) * np.array((1, 0.98, 0.93))),
        u() < 0.55,
        u() < 0.15,
    )
    wide, high = (0.86 * bay, 0.7 * storey) if office else (u(0.36, 0.56) * bay, u(0.48, 0.62) * storey)
    glass, panes = np.array((62, 72, 84)) * u(0.7, 1.4), int(rng.integers(1, 4))
    for floor in range(storeys):
        base = height - floor * storey * m
        draw.rectangle((0, base - 3, width, base - 1), fill=ints(wall * u(0.7, 1.2)))
        for place in range(bays):
            x, half, low, top = (place + 0.5) * bay * m, wide * m / 2, base - 0.8 * m, base - 0.8 * m - high * m
            pane = ints(glass * u(0.6, 1.5))
            if floor == 0 and shop:
                half, low, top = 0.46 * bay * m, base - 0.35 * m, base - 2.2 * m
            elif floor == 0 and place == number % bays:  # a door
                half, low, top, pane = 0.5 * m, base - 1, base - 2.15 * m, ints(u(20, 140, 3))
            draw.rectangle((x - half - 2, top - 3, x + half + 2, low + 2), fill=trim)
            draw.rectangle((x - half, top, x + half, low), fill=pane)
            draw.rectangle(
                (x - half, top, x + half, top + (low - top) * u(0.15, 0.5)), fill=ints(np.array(pane) * 1.5 + 20)
            )
            if u() < 0.4:  # curtains, goods on display
                draw.rectangle(
                    (x - half, (top + low) / 2, x + half * u(-0.6, 0.6), low), fill=ints(glass * 0.5 + u(20, 130, 3))
                )
            for split in range(1, panes + 1):
                draw.line(
                    (x - half + 2 * half * split / (panes + 1), top, x - half + 2 * half * split / (panes + 1), low),
                    fill=trim,
                )
    if shop:
        fascia, top, letter = u(30, 215, 3), height - 2.85 * m, 0.1 * width
        draw.rectangle((0, top, width, top + 0.6 * m), fill=ints(fascia))
        while letter < 0.85 * width:  # its name
            draw.rectangle((letter, top + 3, letter + u(1, 5), top + 0.45 * m), fill=ints(255 - fascia))
            letter += u(3, 7)
    draw.rectangle((0, 0.2 * m, width, 0.42 * m), fill=ints(wall * 0.5))  # the shadow of the eaves
    return _texture(_weathered(image, rng, style.grain), BUILDING, metres)


@lru_cache(maxsize=64)
def surface(look: str, kind: str, number: int) -> Texture:
    """Eight by two metres of roof tiles, hedge, boards or railings."""
    style, rng = STYLES[look], np.random.default_rng([TEXTURE_SEED, 3, number, len(look), len(kind)])
    leaf, u = np.array(style.leaves[number % len(style.leaves)]), rng.uniform
    image = Image.new("RGB", (192, 48), ints(leaf * 0.6))
    draw = ImageDraw.Draw(image)
    if kind == "hedge":
        for _ in range(500):
            x, y, r = u(0, 192), u(0, 48), u(1, 4)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ints(leaf * u(0.5, 1.2) * (1.2 - y / 100)))
    elif kind == "railing":
        for bar in [*((x, 0, x + 1, 48) for x in range(0, 192, 6)), (0, 4, 192, 7), (0, 40, 192, 42)]:
            draw.rectangle(bar, fill=((44, 46, 50), (160, 162, 164), (40, 70, 52))[number % 3])
    else:
        base = np.array(
            ((140, 84, 64), (100, 98, 104), (124, 104, 86))
            if kind == "roof"
            else ((140, 108, 74), (108, 96, 82), (80, 98, 74))
        )
        for place in range(0, 192, 6):  # boards stand, rows of tiles lie
            box = (0, place // 2, 192, place // 2 + 2) if kind == "roof" else (place, 0, place + 4, 48)
            draw.rectangle(box, fill=ints(base[number % 3] * u(0.75, 1.15)))
    label = {"hedge": VEGETATION, "roof": BUILDING}.get(kind, FENCE)
    return _texture(_weathered(image, rng, style.grain), label, (8, 2))


@lru_cache(maxsize=64)
def tree(look: str, number: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A tree, 160 x 200: picture, solid mask, and whole mask, in which the gaps between bare twigs count as tree."""
    style, rng = STYLES[look], np.random.default_rng([TEXTURE_SEED, 4, number, len(look)])
    u, picture, solid, outline = rng.uniform, *(Image.new(mode, (160, 200)) for mode in ("RGB", "L", "L"))
    draws = [ImageDraw.Draw(image) for image in (picture, solid, outline)]
    bark, leaf = np.array((96, 82, 66)) * u(0.6, 1.2), np.array(style.leaves[number % len(style.leaves)]) * u(0.9, 1.25)

    def inks(colour: np.ndarray) -> tuple[tuple[int, ...] | int, ...]:
        return ints(colour), 255, 255

    def limb(x: float, y: float, angle: float, length: float, thick: float) -> None:
        end = (x + length * math.sin(angle), y - length * math.cos(angle))
        for draw, fill, extra in zip(draws, inks(bark * u(0.7, 1.2)), (0, 0, 11 * (y < 130)), strict=True):
            draw.line((x, y, *end), fill=fill, width=max(1, round(thick + extra)))
        if length > 7 and thick > 0.5:
            for turn in (u(-0.75, -0.2), u(-0.2, 0.2), u(0.2, 0.75)):
                limb(*end, angle + turn, length * u(0.62, 0.86), thick * 0.62)

    if number < round(style.bare_trees * TREES):
        limb(80, 199, u(-0.05, 0.05), u(48, 62), 7)
        picture = _weathered(picture, rng, 1.5)
        picture.putalpha(VEGETATION)
        return picture, solid, outline
    for draw, fill in zip(draws, inks(bark), strict=True):
        draw.polygon([(74, 200), (77, 90), (83, 90), (87, 200)], fill=fill)
    width, height, middle = u(42, 64), u(52, 74), u(78, 96)
    for clump in range(260):  # from the dark inside and below to the lit top
        angle, reach, r = u(0, 2 * math.pi), math.sqrt(u()), u(4, 13) * (1.15 - clump / 520)
        x, y = 80 + width * reach * math.cos(angle), middle + height * reach * math.sin(angle)
        lit = 0.5 + 0.4 * clump / 260 + 0.25 * (middle - y) / height + u(-0.12, 0.12)
        for draw, fill in zip(draws, inks(leaf * lit), strict=True):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    rim, ragged = np.asarray(solid.filter(ImageFilter.MinFilter(7))) == 0, noise(number % 8, 32)[:200, :160] > 0.5
    solid = Image.fromarray(
        np.where(rim & ragged & (np.arange(200) < 150)[:, None], 0, np.asarray(solid)).astype(np.uint8)
    )
    picture = _weathered(picture, rng, 1.5)
    picture.putalpha(VEGETATION)
    return picture, solid, solid
