"""Procedural street scenes with exact masks in the 11 CamVid classes: a small stand-in for a driving simulator.

Here: scene layout, textures, the painter and the two looks. Not here: what makes a data set of them (shards, splits).
`look="synthetic"` is a clean game-like daylight; `look="street"` is a *stand-in* for photographs (other palettes,
weather, sensor and street statistics), for users who have none yet. It is not real, and never called so.

A scene is laid out in road coordinates (metres to the right of the road's middle, up, along the road), which a
constant curvature bends, and painted from far to near on an RGBA canvas of twice the size whose fourth channel is the
class id: every draw call writes colour and label at once, so that they cannot drift apart. The colours are then
averaged 2x2, the labels taken from one of the four pixels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raydelta.errors import UserError

Look = Literal["synthetic", "street"]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]  # metres: right of the road's middle, up, along the road
Outline = Sequence[tuple[float, float]]

SKY, BUILDING, POLE, ROAD, SIDEWALK, VEGETATION, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
GROUND = 16  # flag beside the label: bare ground, which is weathered, shaded and hazed pixel by pixel at the end
NEAR = 0.4  # metres before the camera where polygons are cut
FACADES, TREES, TEXTURE_SEED = 36, 24, 20260101  # all scenes share the textures
RING = [(math.cos(t * math.pi / 5), math.sin(t * math.pi / 5)) for t in range(10)]


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
        ((84, 94, 50), (102, 98, 62), (66, 80, 46), (116, 96, 56)), 0.5, 1.3, 0.75, 3.2, 0.42,
    ),
}  # fmt: skip


@dataclass
class Scene:
    """Everything random about a street; nothing here knows the picture's size."""

    look: str
    height: float  # camera above ground
    offset: float  # camera to the right of the road's middle
    heading: float
    curve: float  # offset = curve * distance^2
    horizon: float  # share of the image height
    view: float  # horizontal view angle
    half: float  # half the road's width
    pavement: float
    sun: float  # where the light comes from: -1 left .. 1 right
    shade: float  # strength of cast shadows
    haze: Colour
    reach: float  # metres in which 1/e of a colour is left
    zenith: Colour
    clouds: float
    asphalt: float
    tile: int  # where in the noise the ground starts
    crossing: float  # distance of a zebra crossing, or negative
    side_street: tuple[int, float, float]  # side (0: none), from, to
    items: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    shadows: list[tuple[list[Point], float]] = field(default_factory=list)

    def add(self, depth: float, paint: Callable[..., None], *arguments: object) -> None:
        self.items.append((depth, paint, arguments))

    def shadow(self, offset: float, along: float, wide: float, deep: float, tall: float) -> None:
        """A footprint's contact shadow and the shadow it casts to the side."""
        for shift, strength in ((0.0, 0.6), (-self.sun * tall, self.shade)):
            left, right = offset - wide + min(shift, 0), offset + wide + max(shift, 0)
            near, far = along - deep, along + deep
            self.shadows.append(([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], strength))


class Texture(NamedTuple):
    """A picture in full, half and quarter size, and what it measures."""

    levels: tuple[Image.Image, ...]
    metres: tuple[float, float]
    mean: Colour


class Foot(NamedTuple):
    """Where something upright stands: pixel, pixels per metre, distance."""

    u: float
    v: float
    scale: float
    depth: float


class Canvas:
    """A double-size RGBA picture of a scene, and the camera that projects onto it."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene, self.width, self.height = scene, 2 * width, 2 * height
        self.focal = width / math.tan(scene.view / 2)
        self.horizon = scene.horizon * self.height
        self.cos, self.sin = math.cos(scene.heading), math.sin(scene.heading)
        self.image = Image.new("RGBA", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    def view(self, points: Iterable[Point]) -> list[Point]:
        """Road coordinates to camera coordinates (right, up, forward)."""
        offset, height, curve, cos, sin = self.scene.offset, self.scene.height, self.scene.curve, self.cos, self.sin
        out = []
        for o, y, s in points:
            x = o + curve * s * abs(s) - offset
            out.append((x * cos - s * sin, y - height, x * sin + s * cos))
        return out

    def project(self, seen: Sequence[Point]) -> list[tuple[float, float]]:
        """Camera coordinates to pixels, cut at the near plane; empty when nothing can be in the picture."""
        if min([p[2] for p in seen]) < NEAR:
            cut: list[Point] = []
            for a, b in zip(seen, [*seen[1:], seen[0]], strict=True):
                if a[2] >= NEAR:
                    cut.append(a)
                if (a[2] < NEAR) != (b[2] < NEAR):
                    t = (NEAR - a[2]) / (b[2] - a[2])
                    cut.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), NEAR))
            seen = cut
        middle, horizon, focal = self.width / 2, self.horizon, self.focal
        flat = [(middle + focal * x / z, horizon - focal * y / z) for x, y, z in seen]
        return flat if flat and max(flat)[0] > 0 and min(flat)[0] < self.width else []

    def foot(self, offset: float, along: float) -> Foot | None:
        ((x, y, z),) = self.view([(offset, 0, along)])
        scale = self.focal / max(z, 1.5)
        u = self.width / 2 + scale * x
        return (
            Foot(u, self.horizon - scale * y, scale, z) if z > 1.5 and -4 * scale < u < self.width + 4 * scale else None
        )

    def tint(self, colour: Colour, depth: float, gain: float, label: int) -> tuple[int, int, int, int]:
        """A colour under light and haze, with its label."""
        clear = math.exp(-abs(depth) / self.scene.reach)
        (r, g, b), (hr, hg, hb), gain, rest = colour, self.scene.haze, gain * clear, 1 - clear
        return (
            min(255, int(r * gain + hr * rest)),
            min(255, int(g * gain + hg * rest)),
            min(255, int(b * gain + hb * rest)),
            label,
        )

    def polygon(self, points: Sequence[Point], colour: Colour, label: int, gain: float = 1.0) -> None:
        seen = self.view(points)
        flat = self.project(seen)
        if len(flat) > 2:
            self.draw.polygon(flat, fill=self.tint(colour, 0.0 if label & GROUND else seen[0][2], gain, label))

    def plate(self, foot: Foot, outline: Outline, colour: Colour, label: int, gain: float = 1.0) -> None:
        """A flat shape towards the camera, in metres from where it stands."""
        u, v, scale, depth = foot
        self.draw.polygon(
            [(u + a * scale, v - b * scale) for a, b in outline], fill=self.tint(colour, depth, gain, label)
        )

    def stroke(self, foot: Foot, line: Outline, thick: float, colour: Colour, label: int, gain: float = 1.0) -> None:
        u, v, scale, depth = foot
        flat = [(u + a * scale, v - b * scale) for a, b in line]
        self.draw.line(flat, fill=self.tint(colour, depth, gain, label), width=max(1, round(thick * scale)))

    def panel(self, texture: Texture, top: Point, across: Point, down: Point, label: int, gain: float) -> None:
        """A texture on the parallelogram with these three corners (top left, top right, bottom left)."""
        (ax, ay, az), b, c = self.view((top, across, down))
        d = (b[0] + c[0] - ax, b[1] + c[1] - ay, b[2] + c[2] - az)
        flat = self.project(((ax, ay, az), b, d, c))
        if len(flat) < 3:
            return
        us, vs = [p[0] for p in flat], [p[1] for p in flat]
        left, right = max(0, int(min(us))), min(self.width, int(max(us)) + 1)
        upper, lower = max(0, int(min(vs))), min(self.height, int(max(vs)) + 1)
        depth = (max(az, NEAR) + max(b[2], NEAR)) / 2
        if right <= left or lower <= upper:
            return
        if right - left < 14:  # too small for details
            self.draw.polygon(flat, fill=self.tint(texture.mean, depth, gain, label))
            return
        # the inverse of texture -> camera -> pixel, up to a factor: the adjugate of the product
        f, x0, y0 = self.focal, self.width / 2 - left, self.horizon - upper
        edges = (b[0] - ax, b[1] - ay, b[2] - az), (c[0] - ax, c[1] - ay, c[2] - az), (ax, ay, az)
        p, q, corner = ((f * x + x0 * z, -f * y + y0 * z, z) for x, y, z in edges)
        back = [_cross(q, corner), _cross(corner, p), _cross(p, q)]
        if back[2][2] == 0:  # edge on
            return
        detail = texture.levels[0].width / texture.metres[0] * depth / f
        source = texture.levels[0 if detail < 1.5 else 1 if detail < 3 else 2]
        width, height = right - left, lower - upper
        # a patch of magnified texels is worked out at half size: it has no finer detail to lose
        coarse = 2 if detail < 0.7 and width * height > 3000 else 1
        size = (-(-width // coarse), -(-height // coarse))
        (a, b_, c_), (d_, e, f_), (g, h, i) = back
        wide, high = source.width / i, source.height / i
        matrix = (a * wide * coarse, b_ * wide * coarse, c_ * wide, d_ * high * coarse, e * high * coarse, f_ * high,
                  g / i * coarse, h / i * coarse)  # fmt: skip
        patch = self.lit(source.transform(size, Image.Transform.PERSPECTIVE, matrix), label, depth, gain)
        if coarse == 2:
            patch = patch.resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST)
        mask = Image.new("L", patch.size)
        ImageDraw.Draw(mask).polygon([(x - left, y - upper) for x, y in flat], fill=255)
        self.image.paste(patch, (left, upper), mask)

    def lit(self, patch: Image.Image, label: int, depth: float, gain: float) -> Image.Image:
        """A sprite that carries its label in the fourth channel, under light and haze."""
        clear = math.exp(-abs(depth) / self.scene.reach)
        keep = min(gain * clear, 0.995)
        r, g, b = (min(255, int(h * (1 - clear) / (1 - keep))) for h in self.scene.haze)
        return Image.blend(patch, Image.new("RGBA", patch.size, (r, g, b, label)), 1 - keep)


def _cross(a: Point, b: Point) -> Point:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@lru_cache(maxsize=64)
def _noise(number: int, coarse: int) -> np.ndarray:
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
def _static(size: int) -> np.ndarray:
    """White noise to take `size` values from, at any start below 2**16."""
    return np.random.default_rng(TEXTURE_SEED).standard_normal(size + 2**16, dtype=np.float32)


def _ints(colour: Iterable[float]) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c))) for c in colour)
    return r, g, b


def _weathered(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blotches, grain, and dirt towards the ground."""
    rows, columns = np.ogrid[: image.height, : image.width]
    blotch, grain = (_noise(int(rng.integers(8)), c)[rows % 256, columns % 256] for c in (4, 64))
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
def _facade(look: str, number: int) -> Texture:
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
    image = Image.new("RGB", (width, height), _ints(wall))
    draw = ImageDraw.Draw(image)
    if number % 5 < 3:  # courses of brick or stone
        course = 2 + number % 5
        for row in range(0, height, course * 2):
            draw.rectangle((0, row, width, row + course - 1), fill=_ints(wall * u(0.88, 1.1)))
            for column in range(-int(rng.integers(course * 5)), width, course * 5):
                draw.rectangle((column, row, column + course * 2, row + course), fill=_ints(wall * u(0.82, 1.12)))
    trim, shop, office = (
        _ints(wall * 0.55 if u() < 0.3 else u(130, 235) * np.array((1, 0.98, 0.93))),
        u() < 0.55,
        u() < 0.15,
    )
    wide, high = (0.86 * bay, 0.7 * storey) if office else (u(0.36, 0.56) * bay, u(0.48, 0.62) * storey)
    glass, panes = np.array((62, 72, 84)) * u(0.7, 1.4), int(rng.integers(1, 4))
    for floor in range(storeys):
        base = height - floor * storey * m
        draw.rectangle((0, base - 3, width, base - 1), fill=_ints(wall * u(0.7, 1.2)))
        for place in range(bays):
            x, half, low, top = (place + 0.5) * bay * m, wide * m / 2, base - 0.8 * m, base - 0.8 * m - high * m
            pane = _ints(glass * u(0.6, 1.5))
            if floor == 0 and shop:
                half, low, top = 0.46 * bay * m, base - 0.35 * m, base - 2.2 * m
            elif floor == 0 and place == number % bays:  # a door
                half, low, top, pane = 0.5 * m, base - 1, base - 2.15 * m, _ints(u(20, 140, 3))
            draw.rectangle((x - half - 2, top - 3, x + half + 2, low + 2), fill=trim)
            draw.rectangle((x - half, top, x + half, low), fill=pane)
            draw.rectangle(
                (x - half, top, x + half, top + (low - top) * u(0.15, 0.5)), fill=_ints(np.array(pane) * 1.5 + 20)
            )
            if u() < 0.4:  # curtains, goods on display
                draw.rectangle(
                    (x - half, (top + low) / 2, x + half * u(-0.6, 0.6), low), fill=_ints(glass * 0.5 + u(20, 130, 3))
                )
            for split in range(1, panes + 1):
                draw.line(
                    (x - half + 2 * half * split / (panes + 1), top, x - half + 2 * half * split / (panes + 1), low),
                    fill=trim,
                )
    if shop:
        fascia, top, letter = u(30, 215, 3), height - 2.85 * m, 0.1 * width
        draw.rectangle((0, top, width, top + 0.6 * m), fill=_ints(fascia))
        while letter < 0.85 * width:  # its name
            draw.rectangle((letter, top + 3, letter + u(1, 5), top + 0.45 * m), fill=_ints(255 - fascia))
            letter += u(3, 7)
    draw.rectangle((0, 0.2 * m, width, 0.42 * m), fill=_ints(wall * 0.5))  # the shadow of the eaves
    return _texture(_weathered(image, rng, style.grain), BUILDING, metres)


@lru_cache(maxsize=64)
def _surface(look: str, kind: str, number: int) -> Texture:
    """Eight by two metres of roof tiles, hedge, boards or railings."""
    style, rng = STYLES[look], np.random.default_rng([TEXTURE_SEED, 3, number, len(look), len(kind)])
    leaf, u = np.array(style.leaves[number % len(style.leaves)]), rng.uniform
    image = Image.new("RGB", (192, 48), _ints(leaf * 0.6))
    draw = ImageDraw.Draw(image)
    if kind == "hedge":
        for _ in range(500):
            x, y, r = u(0, 192), u(0, 48), u(1, 4)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_ints(leaf * u(0.5, 1.2) * (1.2 - y / 100)))
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
            draw.rectangle(box, fill=_ints(base[number % 3] * u(0.75, 1.15)))
    label = {"hedge": VEGETATION, "roof": BUILDING}.get(kind, FENCE)
    return _texture(_weathered(image, rng, style.grain), label, (8, 2))


@lru_cache(maxsize=64)
def _tree(look: str, number: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A tree, 160 x 200: picture, solid mask, and whole mask, in which the gaps between bare twigs count as tree."""
    style, rng = STYLES[look], np.random.default_rng([TEXTURE_SEED, 4, number, len(look)])
    u, picture, solid, outline = rng.uniform, *(Image.new(mode, (160, 200)) for mode in ("RGB", "L", "L"))
    draws = [ImageDraw.Draw(image) for image in (picture, solid, outline)]
    bark, leaf = np.array((96, 82, 66)) * u(0.6, 1.2), np.array(style.leaves[number % len(style.leaves)]) * u(0.9, 1.25)

    def inks(colour: np.ndarray) -> tuple[tuple[int, ...] | int, ...]:
        return _ints(colour), 255, 255

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
    rim, ragged = np.asarray(solid.filter(ImageFilter.MinFilter(7))) == 0, _noise(number % 8, 32)[:200, :160] > 0.5
    solid = Image.fromarray(
        np.where(rim & ragged & (np.arange(200) < 150)[:, None], 0, np.asarray(solid)).astype(np.uint8)
    )
    picture = _weathered(picture, rng, 1.5)
    picture.putalpha(VEGETATION)
    return picture, solid, solid


def _plant(canvas: Canvas, offset: float, along: float, height: float, number: int, gain: float) -> None:
    """A tree from its sprite, upright towards the camera."""
    foot = canvas.foot(offset, along)
    size = foot.scale * height if foot else 0
    if foot is None or size < 4:
        return
    left, top = foot.u - 0.4 * size, foot.v - size
    x, y = max(0, int(left)), max(0, int(top))
    extent, step = (min(canvas.width, int(left + 0.8 * size)) - x, min(canvas.height, int(foot.v) + 1) - y), 200 / size
    if min(extent) <= 0:
        return
    matrix = (step, 0, (x - left) * step, 0, step, (y - top) * step)
    tree = _tree(canvas.scene.look, number)
    picture, solid = (image.transform(extent, Image.Transform.AFFINE, matrix) for image in tree[:2])
    whole = solid if tree[1] is tree[2] else tree[2].transform(extent, Image.Transform.AFFINE, matrix)
    picture = canvas.lit(picture, VEGETATION, foot.depth, gain)
    canvas.image.paste(picture, (x, y), solid)
    if solid is not whole:  # the gaps between the twigs keep their colour and are labelled tree, as in CamVid
        region = canvas.image.crop((x, y, x + extent[0], y + extent[1]))
        labels = region.getchannel("A")
        labels.paste(VEGETATION, mask=whole)
        region.putalpha(labels)
        canvas.image.paste(region, (x, y))


def _ground(canvas: Canvas) -> None:
    """Sky, road, pavements, kerbs and paint; `_weather` gives the ground its grain."""
    scene, half, horizon = canvas.scene, canvas.scene.half, canvas.horizon
    rise = (
        np.clip((horizon - np.arange(0, canvas.height, 4)) / (0.55 * canvas.width), 0, 1)[:, None, None].astype(
            np.float32
        )
        ** 0.6
    )
    rows = (rise[..., 0] * 200).astype(np.intp) + scene.tile
    clouds = _noise(8, 4)[rows % 256, (np.arange(0, canvas.width, 4) * 200 // canvas.width)[None]][..., None]
    cover, haze = (
        np.clip(0.5 + 0.5 * clouds + scene.clouds, 0, 1) * min(1.0, 0.5 + scene.clouds),
        np.array(scene.haze, np.float32),
    )
    sky = (haze + (np.array(scene.zenith, np.float32) - haze) * rise) * (1 - cover) + cover * (haze * 1.03 + 9 * clouds)
    smooth = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize(
        (canvas.width, canvas.height), Image.Resampling.NEAREST
    )
    smooth.putalpha(SKY)
    canvas.image.paste(smooth)
    a, leaf = scene.asphalt, STYLES[scene.look].leaves[scene.tile % 3]
    road, paved, kerb, white = (
        (a, a, a * 1.03),
        (a * 1.28, a * 1.24, a * 1.2),
        (a * 1.5, a * 1.46, a * 1.42),
        (224, 224, 220),
    )
    steps = (0, 4, 10, 20, 35, 60, 90, 140)

    def strip(left: float, right: float, start: float, stop: float, colour: Colour, label: int) -> None:
        along = [start, *(s for s in steps if start < s < stop), stop]
        canvas.polygon([(left, 0, s) for s in along] + [(right, 0, s) for s in reversed(along)], colour, label | GROUND)

    canvas.draw.rectangle(
        (0, math.ceil(horizon + 1), canvas.width, canvas.height), fill=(*_ints(leaf), VEGETATION | GROUND)
    )
    for side in (-1, 1):
        back = half + scene.pavement
        strip(side * half, side * (back + (18 if (scene.tile >> (side > 0)) & 1 else 0.2)), -3, 300, paved, SIDEWALK)
        if scene.side_street[0] == side:
            strip(side * half, side * 90, *scene.side_street[1:], road, ROAD)
        for start, stop in (
            ((-3, scene.side_street[1]), (scene.side_street[2], 90)) if scene.side_street[0] == side else ((-3, 90),)
        ):
            strip(side * half, side * (half + 0.16), start, stop, kerb, SIDEWALK)
    strip(-half, half, -3, 300, road, ROAD)
    style = scene.tile % 4  # edge lines: none, white, yellow, double yellow
    for edge in [half - 0.3, half - 0.55][: max(0, style - 1) if style > 1 else style]:
        for side in (-1, 1):
            strip(side * (edge - 0.06), side * (edge + 0.06), -3, 70, white if style == 1 else (206, 172, 62), ROAD)
    for dash in range(-1, 11) if scene.tile % 5 else ():
        strip(-0.07, 0.07, 6 * dash, 6 * dash + (6 if scene.tile % 7 == 0 else 2.6), white, ROAD)
    for bar in range(int(2 * half / 1.2)) if scene.crossing > 0 else ():
        strip(0.4 - half + 1.2 * bar, 1.0 - half + 1.2 * bar, scene.crossing - 1.5, scene.crossing + 1.5, white, ROAD)


def _weather(canvas: Canvas, pixels: np.ndarray, ground: np.ndarray) -> None:
    """Grain, wear, shadows and haze on the bare ground, in place: pixels (height, width, 3) float32, ground bool."""
    scene, (height, width) = canvas.scene, ground.shape
    horizon, focal = canvas.horizon / 2, canvas.focal / 2
    first = max(0, math.ceil(horizon))
    if first >= height:
        return
    depth = (focal * scene.height / (np.arange(first, height, dtype=np.float32) + 0.5 - np.float32(horizon)))[:, None]
    right = (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2))[None] * (depth / np.float32(focal))
    along = np.float32(canvas.cos) * depth - np.float32(canvas.sin) * right
    across = np.float32(canvas.cos) * right + np.float32(canvas.sin) * depth + np.float32(scene.offset)
    across -= np.float32(scene.curve) * along * np.abs(along)
    grain, near = STYLES[scene.look].grain, 1 / (1 + depth / 18)
    fine = _noise(scene.tile % 8, 4)[(across * 14).astype(np.int32) & 255, (along * 14).astype(np.int32) & 255]
    worn = _noise(scene.tile % 5, 8)[(across * 6).astype(np.int32) & 255, (along * 2.2).astype(np.int32) & 255]
    rough = 1 + grain * (0.08 * fine * near + 0.06 * worn)
    rough -= (
        0.16 * near * ((np.abs(across) > scene.half + 0.16) & ((across % 0.9 < 0.07) | (along % 0.7 < 0.06)))
    )  # slabs
    shade = Image.new("L", (width, height - first), 255)
    draw = ImageDraw.Draw(shade)
    for points, strength in sorted((s for s in scene.shadows if s[1] > 0.09), key=lambda shadow: shadow[1]):
        flat = canvas.project(canvas.view(points))
        if len(flat) > 2:
            draw.polygon([(x / 2, y / 2 - first) for x, y in flat], fill=int(255 * (1 - strength)))
    rough *= np.asarray(shade.filter(ImageFilter.BoxBlur(0.7 * width / 256)), np.float32) / 255
    clear = np.exp(-depth / np.float32(scene.reach))
    bare = ground[first:]
    pixels[first:] *= np.where(bare, rough * clear, np.float32(1))[..., None]
    pixels[first:] += np.where(bare, 1 - clear, np.float32(0))[..., None] * np.array(scene.haze, np.float32)


CARS: dict[str, tuple[float, float, Outline, Outline]] = {
    # length, half width, body and cabin outlines: (share of the length from the middle, height)
    "hatch": (4.0, 0.86,
              ((-0.5, 0.28), (-0.5, 0.7), (-0.47, 0.92), (0.2, 0.94), (0.43, 0.82), (0.5, 0.62), (0.5, 0.28)),
              ((-0.46, 0.9), (-0.36, 1.43), (0.0, 1.48), (0.25, 0.92))),
    "saloon": (4.5, 0.88,
               ((-0.5, 0.28), (-0.5, 0.78), (-0.34, 0.95), (0.18, 0.95), (0.44, 0.8), (0.5, 0.6), (0.5, 0.28)),
               ((-0.38, 0.93), (-0.22, 1.4), (0.03, 1.44), (0.22, 0.93))),
    "van": (5.0, 0.98, ((-0.5, 0.3), (-0.5, 1.1), (0.32, 1.1), (0.46, 0.95), (0.5, 0.7), (0.5, 0.3)),
            ((-0.5, 1.08), (-0.49, 2.1), (0.2, 2.15), (0.36, 1.08))),
    "bus": (9.5, 1.25, ((-0.5, 0.35), (-0.5, 1.3), (0.5, 1.3), (0.5, 0.35)),
            ((-0.5, 1.28), (-0.495, 3.9), (0.485, 3.9), (0.5, 1.28))),
}  # fmt: skip


def _car(canvas: Canvas, kind: str, offset: float, along: float, turn: float, colour: Colour, brakes: bool) -> None:
    """A car as two extruded outlines; `turn` 0 drives away from the camera, pi towards it."""
    scene, (length, wide, body, cabin) = canvas.scene, CARS[kind]
    foot = canvas.foot(offset, along)
    if foot is None and along > 12:
        return
    cos, sin = math.cos(turn), math.sin(turn)
    # straight to camera coordinates: a car is too short to feel the bend
    ((x0, _, z0), (x1, _, z1)) = canvas.view([(offset, 0, along), (offset, 0, along + 1)])
    ahead, beside = (x1 - x0, z1 - z0), (canvas.cos, canvas.sin)
    ax, az = ahead[0] * cos + beside[0] * sin, ahead[1] * cos + beside[1] * sin
    bx, bz = beside[0] * cos - ahead[0] * sin, beside[1] * cos - ahead[1] * sin
    to_o = scene.offset - offset - scene.curve * along * abs(along)
    eye, eye_b = to_o * sin - along * cos, to_o * cos + along * sin  # the camera along the car and to its right
    side, end = (1 if eye_b > 0 else -1), (0.5 * length if eye > 0 else -0.5 * length)
    size = canvas.focal * 1.7 / max(math.hypot(to_o, along), 1)  # pixels across, decides on details
    glass: Colour = (52, 62, 72) if scene.look == "street" else (60, 80, 100)
    sunny = 0.9 + 0.14 * scene.sun * side * (1 if cos > 0 else -1)

    def face(corners: Iterable[Point], fill: Colour, gain: float = 1.0) -> None:  # (along the car, to its right, up)
        seen = [(x0 + a * ax + b * bx, y - scene.height, z0 + a * az + b * bz) for a, b, y in corners]
        flat = canvas.project(seen)
        if len(flat) > 2:
            canvas.draw.polygon(flat, fill=canvas.tint(fill, z0, gain, CAR))

    def across(a: float, left: float, right: float, low: float, high: float, fill: Colour) -> None:
        face([(a, left, low), (a, right, low), (a, right, high), (a, left, high)], fill)

    def flank(outline: Outline, fill: Colour, gain: float = 1.0, out: float = 1.0) -> None:
        face([(a, side * wide * out * (0.8 if y > 1.2 else 1), y) for a, y in outline], fill, gain)

    if abs(eye) > length / 2 and size > 14:
        across(end * 0.92, -wide, wide, 0.1, 0.32, (16, 16, 18))
        for left in (-0.92, 0.68):  # tyres below the bumper
            across(end * 0.92, left * wide, (left + 0.24) * wide, 0, 0.3, (20, 20, 22))
    if abs(eye_b) > wide and size > 14:
        flank(
            [(-0.45 * length, 0.05), (0.45 * length, 0.05), (0.45 * length, 0.32), (-0.45 * length, 0.32)],
            (16, 16, 18),
            out=0.9,
        )
    for outline, inset in ((body, 1.0), (cabin, 0.94)):
        for (a0, y0), (a1, y1) in pairwise(outline):
            a0, a1 = a0 * length, a1 * length
            if (y1 - y0) * (a0 - eye) - (a1 - a0) * (y0 - scene.height) < 0:  # turned away
                continue
            w0, w1 = (wide * inset * (0.8 if y > 1.2 else 1) for y in (y0, y1))
            flat = abs(a1 - a0) / (abs(a1 - a0) + abs(y1 - y0))
            face([(a0, -w0, y0), (a0, w0, y0), (a1, w1, y1), (a1, -w1, y1)], colour, 0.72 + 0.42 * flat)
            if outline is cabin and abs(y1 - y0) > 0.3 and not (kind == "van" and a1 < 0):
                (a, y, w), (c, z, v) = [
                    (a0 + (a1 - a0) * t, y0 + (y1 - y0) * t, (w0 + (w1 - w0) * t) * 0.9) for t in (0.1, 0.84)
                ]
                face([(a, -w, y), (a, w, y), (c, v, z), (c, -v, z)], glass)
                if size > 30:  # the sky in the glass
                    face(
                        [(c, -v, z), (c, v, z), ((a + c) / 2, v, (y + z) / 2), ((2 * a + c) / 3, -v, (2 * y + z) / 3)],
                        glass,
                        1.5,
                    )
    if abs(eye_b) > wide:
        sized = [(a * length, y) for a, y in body]
        flank(sized, colour, sunny)
        if size > 14:
            flank([(a, min(y, 0.55)) for a, y in sized], colour, sunny * 0.78)
        flank([(a * length, y) for a, y in cabin], colour, sunny, 0.96)
        (r0, s0), (r1, s1), (f1, t1), (f0, _) = ((a * length, y) for a, y in cabin)
        if kind != "van":
            flank(
                [(r0 * 0.86, s0 + 0.06), (r1 * 0.92, s1 - 0.09), (f0 * 0.08, t1 - 0.09), (f0 * 0.08, s0 + 0.06)],
                glass,
                1,
                0.97,
            )
        flank(
            [(f0 * 0.16, s0 + 0.06), (f0 * 0.16, t1 - 0.09), (f1 + 0.02, t1 - 0.09), (f0 * 0.84, s0 + 0.06)],
            glass,
            1.1,
            0.97,
        )
        for axle in (-0.3 * length, 0.31 * length) if size > 10 else ():
            for radius, fill in ((0.35, (16, 16, 18)), (0.18, (120, 122, 126)))[: 2 if size > 22 else 1]:
                flank([(axle + radius * x, max(0, 0.31 + radius * y)) for x, y in RING], fill, 1, 1.01)
    if abs(eye) > length / 2:
        lamp: Colour = (238, 234, 215) if eye > 0 else (255, 40, 30) if brakes else (160, 26, 24)
        for left in (-0.97, 0.67):
            across(end * 1.01, left * wide, (left + 0.3) * wide, 0.6, 0.78, lamp)
        if size > 22:
            across(end * 1.01, -0.95 * wide, 0.95 * wide, 0.3, 0.46, (44, 44, 48))
            across(end * 1.01, -0.26, 0.26, 0.4, 0.5, (224, 222, 214) if eye > 0 else (214, 186, 60))


def _person(
    canvas: Canvas, offset: float, along: float, tall: float, stride: float, clothes: tuple[Colour, ...], ride: float
) -> None:
    """Somebody on foot (`ride` < 0), or on a bicycle seen from behind (0) to the side (1)."""
    foot, (coat, trousers, skin, hair) = canvas.foot(offset, along), clothes
    if foot is None:
        return
    foot, label, lean = (
        foot._replace(scale=foot.scale * tall / 1.75),
        PEDESTRIAN if ride < 0 else BICYCLIST,
        max(0.0, 0.3 * ride),
    )
    if ride < 0 and foot.scale < 9:  # a few pixels tall
        wide, hip = 0.19, 0.84
        canvas.plate(foot, _box(-0.15, 0.15, 0, hip), trousers, label)
    elif ride < 0:
        wide, hip = 0.19, 0.84
        for leg, gain in ((-1, 0.8), (1, 1.0)):
            toe = (0.3 * stride + 0.08) * leg
            canvas.stroke(
                foot,
                [(0.07 * leg, 0.86), (0.55 * toe, 0.46), (toe, 0.03), (toe + 0.1, 0.03)],
                0.15,
                trousers,
                label,
                gain,
            )
    else:
        wide, hip = 0.2 - 0.05 * ride, 0.9
        for wheel in (-1, 1):
            rim = [(0.52 * ride * wheel + (0.33 * ride + 0.03) * x, 0.34 + 0.34 * y) for x, y in [*RING, RING[0]]]
            canvas.stroke(foot, rim, 0.06, (26, 26, 28), label)
        frame = [(-0.5, 0.34), (-0.12, 0.85), (0.42, 0.9), (0.52, 0.34), (0.42, 1.05), (0, 0.34), (-0.12, 0.85)]
        canvas.stroke(foot, [(a * ride, b) for a, b in frame], 0.05, trousers, label, 1.4)
        for leg, gain in ((-1, 0.75), (1, 1.0)):
            knee = (0.26 * ride + 0.1 * leg, 0.62 + 0.12 * leg * stride)
            canvas.stroke(
                foot, [(-0.1 * ride, 0.95), knee, (0.1 * leg, 0.25 + 0.1 * leg * stride)], 0.14, trousers, label, gain
            )
    torso = [
        (-0.8 * wide - 0.3 * lean, hip),
        (0.8 * wide - 0.3 * lean, hip),
        (wide + lean, 1.4),
        (lean, 1.48),
        (lean - wide, 1.4),
    ]
    canvas.plate(foot, torso, coat, label)
    for arm, gain in ((-1, 0.7), (1, 0.85)) if foot.scale > 9 else ():
        hand = (arm * (wide - 0.2 * stride), 0.85) if ride < 0 else (0.42 * ride + 0.22 * (1 - ride) * arm, 1.05)
        canvas.stroke(foot, [(lean + wide * arm * 0.9, 1.36), hand], 0.09, coat, label, gain)
    for size, colour, shift in ((1.0, hair, 0.0), (0.72, skin, 0.03)):
        canvas.plate(
            foot,
            [(lean * 1.25 + shift + 0.1 * size * x, 1.62 - shift + 0.13 * size * y) for x, y in RING],
            colour,
            label,
        )


def _disc(radius: float, up: float = 0.0) -> Outline:
    return [(radius * x, up + radius * y) for x, y in RING]


def _box(left: float, right: float, low: float, high: float) -> Outline:
    return [(left, low), (right, low), (right, high), (left, high)]


RED, WHITE, PAINT = (204, 32, 36), (236, 236, 230), (-1, -1, -1)
SIGNS: dict[str, list[tuple[Outline, Colour]]] = {  # metres from the top of the post; PAINT: the sign's own colour
    "": [],
    "disc": [(_disc(0.38), RED), (_disc(0.28), WHITE)],
    "triangle": [([(-0.45, -0.3), (0.45, -0.3), (0, 0.45)], RED), ([(-0.27, -0.19), (0.27, -0.19), (0, 0.25)], WHITE)],
    "board": [(_box(-0.7, 0.7, -0.4, 0.4), WHITE), (_box(-0.65, 0.65, -0.35, 0.35), PAINT),
              (_box(-0.5, 0.4, 0.06, 0.18), WHITE), (_box(-0.5, 0.25, -0.18, -0.06), WHITE)],
    "plate": [(_box(-0.35, 0.35, -0.45, 0.45), PAINT), (_disc(0.22), WHITE)],
    "lights": [(_box(-0.24, 0.24, -0.95, 0.1), (24, 26, 26)), (_disc(0.12, -0.1), RED),
               (_disc(0.12, -0.42), (50, 48, 44)), (_disc(0.12, -0.74), (50, 48, 44))],
    "hanging": [(_box(0, 0.8, -0.4, 0.4), PAINT), (_box(0.12, 0.68, -0.1, 0.15), WHITE)],
}  # fmt: skip


def _post(
    canvas: Canvas, offset: float, along: float, height: float, thick: float, colour: Colour, arm: float, sign: str,
    paint: Colour,
) -> None:  # fmt: skip
    """A post with a lamp on an arm (metres to the right), or with a sign; a hanging sign has no post."""
    foot = canvas.foot(offset, along)
    if foot is None:
        return
    if thick:
        thick = max(thick, 1.6 / foot.scale)
        canvas.plate(foot, _box(-thick / 2, thick / 2, 0, height), colour, POLE, 1.1)
        canvas.plate(foot, _box(thick * 0.05, thick / 2, 0, height), colour, POLE, 0.75)
    if arm:
        canvas.stroke(foot, [(0, height - 0.3), (0.3 * arm, height), (arm, height + 0.1)], thick * 0.7, colour, POLE)
        canvas.plate(foot, [(arm + 0.35 * x, height + 0.1 + 0.1 * y) for x, y in RING], (190, 190, 180), POLE)
    for outline, fill in SIGNS[sign]:
        canvas.plate(foot, [(a, height + b) for a, b in outline], paint if fill is PAINT else fill, SIGN)


def _uniform(rng: np.random.Generator) -> Callable[..., float]:
    """`rng.uniform` for single numbers, several times as fast."""
    random = rng.random
    return lambda low=0.0, high=1.0: low + (high - low) * random()


def _pick(rng: np.random.Generator, options: Sequence[Colour]) -> Colour:
    r, g, b = options[int(rng.random() * len(options))]
    gain = 0.8 + 0.35 * rng.random()
    return r * gain, g * gain, b * gain


def _roadside(scene: Scene, rng: np.random.Generator, side: int, end: float) -> None:
    """One side of the road: houses or greenery, what bounds it, trees, posts, people."""
    u, kerb, back, style, look = _uniform(rng), scene.half, scene.half + scene.pavement, STYLES[scene.look], scene.look
    kind = ("terrace", "terrace", "terrace", "terrace", "suburb", "suburb", "park")[int(rng.random() * 7)]
    setback = {"terrace": u(0.05, 0.4), "suburb": u(3, 8), "park": u(14, 22)}[kind]
    open_from, open_to = scene.side_street[1:] if scene.side_street[0] == side else (-99.0, -99.0)
    s, last, lit, o = -8.0, 0.0, 0.75 - 0.2 * scene.sun * side, side * (back + setback)
    while s < end:
        number = int(rng.random() * FACADES)
        front = _facade(look, number)
        wide, height = front.metres[0] * u(0.9, 1.3), front.metres[1] * u(0.85, 1.15)
        gap = u(1.5, 7) if kind != "terrace" or u() < 0.1 else 0.0
        if s < open_to and s + wide > open_from - 1:
            far = side * (back + 25)
            scene.add(400, Canvas.panel, front, (far, 7, s - 20), (far, 7, s + 40), (far, 0, s - 20), BUILDING, lit)
            s, last = max(s, open_to + scene.pavement * 0.7), 0.0
        stop, roof = s + wide, u() < 0.6
        if stop > 1 and (kind != "park" or u() < 0.4):
            top, deep, tiles, ridge = (
                (o, height, s),
                o + side * 9,
                _surface(look, "roof", number % 6),
                (o + side * 4.5, height + 3),
            )
            if height > last + 1.2:  # its end shows
                wall = _facade(look, number * 7 % FACADES)
                scene.add(stop + 0.02, Canvas.panel, wall, top, (deep, height, s), (o, 0, s), BUILDING, lit * 0.9)
                if roof:
                    gable = [top, (deep, height, s), (*ridge, s)]
                    scene.add(stop + 0.02, Canvas.polygon, gable, wall.mean, BUILDING, lit * 0.8)
            if roof:
                scene.add(stop + 0.01, Canvas.panel, tiles, (*ridge, s), (*ridge, stop), top, BUILDING, lit + 0.1)
                x, z = ridge[0], s + wide * u(0.1, 0.9)
                stack = [(x, height + 4, z), (x + 0.9, height + 4, z), (x + 0.9, height + 2, z), (x, height + 2, z)]
                scene.add(stop + 0.03, Canvas.polygon, stack, (130, 94, 76), BUILDING, lit)
            scene.add(stop, Canvas.panel, front, top, (o, height, stop), (o, 0, s), BUILDING, lit)
            if side * scene.sun > 0.15:
                shaded = o - scene.sun * (height + 2 * roof) * 1.1
                scene.shadows.append(([(o, 0, s), (shaded, 0, s), (shaded, 0, stop), (o, 0, stop)], scene.shade))
        last, s = (0.0 if gap else height), stop + gap
    bound, o = ("hedge", "boards", "railing")[int(rng.random() * 3)], side * (back + 0.1)
    tall, number, s, stop = u(0.9, 2.2), int(rng.random() * 6), -4.0, 54.0
    if kind == "terrace":  # at most a railing at the kerb
        bound, o, tall, s = "railing", side * (kerb + 0.35), 1.05, u(4, 25)
        stop = s + 8 * int(u(1, 4)) if u() < 0.35 else s
    while s < stop:
        if not open_from - 8 < s < open_to and u() < 0.92:
            label = VEGETATION if bound == "hedge" else FENCE
            scene.add(
                s + 8,
                Canvas.panel,
                _surface(look, bound, number),
                (o, tall, s),
                (o, tall, s + 8),
                (o, 0, s),
                label,
                lit,
            )
        s += 8
    s = u(3, 14) if u() < style.trees + 0.35 * (kind != "terrace") else end
    while s < end:
        o, tall = (
            (side * (kerb + u(0.5, 0.9)), u(5, 8.5)) if kind == "terrace" else (side * (back + u(0.8, 7)), u(5, 13))
        )
        if not open_from - 2 < s < open_to + 2:
            scene.add(s, _plant, o, s, tall, int(rng.random() * TREES), u(0.8, 0.99))
            scene.shadows.append(
                (
                    [(o - scene.sun * tall * 0.6 + 0.3 * tall * x, 0, s + 0.3 * tall * y) for x, y in RING[::2]],
                    scene.shade * 0.8,
                )
            )
        s += u(5, 14) if kind == "terrace" else u(4, 12)
    spacing, s, grey = u(18, 32), u(4, 20), _pick(rng, [(120, 124, 126), (84, 86, 84), (60, 70, 64)])
    while s < min(end, 70):  # street lamps, signs and lights between them
        scene.add(s, _post, side * (kerb + 0.5), s, u(5.5, 8.5), u(0.11, 0.18), grey, -side * u(0.8, 1.8), "", WHITE)
        for _ in range(int(u(1, 5))):
            sign, at = list(SIGNS)[int(rng.random() * len(SIGNS))], s + u(-1, spacing)
            paint = _pick(rng, [(30, 60, 150), (20, 96, 60), (180, 40, 40), (236, 190, 60)])
            if sign == "hanging" and kind == "terrace" and not open_from - 1 < at < open_to + 1:
                scene.add(at, _post, side * (back - (0.85 if side > 0 else 0)), at, 3.3, 0.0, grey, 0.0, sign, paint)
            elif sign != "hanging":
                scene.add(
                    at,
                    _post,
                    side * (kerb + u(0.3, 0.6)),
                    at,
                    u(2.3, 3.2) if sign else u(0.9, 1.3),
                    0.1,
                    grey,
                    0.0,
                    sign,
                    paint,
                )
        s += spacing
    for _ in range(int(rng.poisson(style.people))):
        o, s = side * u(kerb + 0.4, back - 0.3), 4 + 36 * u() ** 1.4
        for mate in range((1, 1, 1, 2, 2, 3)[int(rng.random() * 6)]):
            _walker(scene, rng, o + 0.5 * mate, s + 0.3 * mate, -1.0)


def _walker(scene: Scene, rng: np.random.Generator, o: float, s: float, ride: float) -> None:
    clothes = STYLES[scene.look].clothes
    skin, hair = (
        _pick(rng, [(212, 164, 136), (150, 104, 78), (226, 184, 160)]),
        _pick(rng, [(40, 30, 24), (96, 70, 44)]),
    )
    colours = (_pick(rng, clothes), _pick(rng, clothes[2:]), skin, hair)
    scene.add(s, _person, o, s, rng.uniform(1.58, 1.88), rng.uniform(-1, 1), colours, ride)
    scene.shadow(o, s, 0.25, 0.2, 1.4)


def _traffic(scene: Scene, rng: np.random.Generator) -> None:
    """Cars at the kerb, on the road and in the side street; cyclists; people crossing."""
    u, half, style, (open_side, open_from, open_to) = _uniform(rng), scene.half, STYLES[scene.look], scene.side_street
    left_hand = scene.look == "street" or u() < 0.5

    def car(o: float, s: float, turn: float, kinds: str = "hatch hatch saloon saloon van") -> None:
        kind = kinds.split()[int(u(0, len(kinds.split())))]
        scene.add(s, _car, kind, o, s, turn, _pick(rng, style.cars), u() < 0.4)
        length, wide = CARS[kind][:2]
        scene.shadow(o, s, *((wide, length / 2) if abs(math.sin(turn)) < 0.7 else (length / 2, wide)), 1.3)

    for side in (-1, 1):
        away = (side < 0) == left_hand
        s, density = u(3.5, 12), u(0.3, 0.95)
        while s < 55 and density < 0.3 + 0.65 * style.parking:
            if (
                u() < density
                and abs(s - scene.crossing) > 5
                and not (side == open_side and open_from - 4 < s < open_to + 4)
            ):
                car(side * (half - 0.95 + u(-0.1, 0.15)), s, (0.0 if away else math.pi) + rng.normal(0, 0.02))
            s += u(5.2, 7)
        s = u(9, 40) if away else u(6, 40)
        for _ in range(int(u(0, 4))):
            bus = u() < 0.07
            car(
                side * (half * 0.36 + 0.2) + u(-0.2, 0.2),
                s + 5 * bus,
                0.0 if away else math.pi,
                "bus" if bus else "hatch saloon van",
            )
            s += u(9, 25)
        for _ in range(int(rng.poisson(0.4))):
            _walker(scene, rng, side * (half - u(1.9, 2.6)), u(5, 28), u(0, 0.35) if u() < 0.6 else u(0.7, 1))
    if open_side and u() < 0.5:
        car(open_side * (half + u(1, 9)), (open_from + open_to) / 2 + u(-2, 2), math.pi / 2 * (1 if u() < 0.5 else -1))
    for _ in range(int(u(1, 5)) if scene.crossing > 0 and u() < 0.7 else 0):
        _walker(scene, rng, u(-half, half), scene.crossing + u(-1, 1), -1.0)


def _layout(rng: np.random.Generator, look: str) -> Scene:
    """Draw a street; items end up sorted from far to near."""
    u, street = _uniform(rng), look == "street"
    half = u(2.9, 4.8) if street else u(3.6, 6.4)
    mood = ("overcast", "overcast", "overcast", "low sun", "dusk")[int(rng.random() * 5)] if street else "day"
    haze, zenith, clouds, shade, reach = {
        "day": ((206, 222, 236), (72, 128, 204), u(-0.45, 0.25), u(0.35, 0.55), u(160, 400)),
        "overcast": ((236, 239, 240), (214, 220, 226), u(0.3, 0.6), u(0.04, 0.18), u(110, 260)),
        "low sun": ((250, 238, 214), (150, 180, 214), u(-0.3, 0.3), u(0.3, 0.55), u(100, 240)),
        "dusk": ((164, 162, 170), (96, 106, 130), u(0.0, 0.5), u(0.02, 0.1), u(100, 200)),
    }[mood]
    start = u(14, 45)
    side_street = ((-1, 1)[int(rng.random() * 2)], start, start + u(7, 11)) if u() < 0.45 else (0, -99.0, -99.0)
    scene = Scene(
        look=look, height=u(1.15, 1.5) if street else u(1.35, 2.1), heading=rng.normal(0, 0.07),
        offset=half * (u(-0.75, 0.1) if street else u(-0.6, 0.6)), curve=rng.normal(0, 0.0006),
        horizon=u(0.5, 0.62) if street else u(0.42, 0.56), view=math.radians(u(48, 62) if street else u(56, 72)),
        half=half, pavement=u(1.3, 2.8) if street else u(2.0, 4.0), sun=u(-1, 1), shade=shade, haze=haze, reach=reach,
        zenith=zenith, clouds=clouds, asphalt=u(88, 122) if street else u(92, 118), tile=int(rng.random() * 256),
        crossing=u(8, 30) if u() < 0.3 else -99.0, side_street=side_street,
    )  # fmt: skip
    end, o = u(50, 110), -50.0
    for side in (-1, 1):
        _roadside(scene, rng, side, end)
    while o < 50:  # what closes the view
        number, s, wide = int(rng.random() * FACADES), end + u(5, 30), u(10, 22)
        if u() < 0.5:
            high, roof = u(5, 11), _surface(look, "roof", number % 6)
            top, across, ridge = (o, high, s), (o + wide, high, s), high + 2.5
            scene.add(s + 1, Canvas.panel, roof, (o, ridge, s + 3), (o + wide, ridge, s + 3), top, BUILDING, 0.85)
            scene.add(s, Canvas.panel, _facade(look, number), top, across, (o, -1, s), BUILDING, 0.8)
        else:
            scene.add(s, _plant, o, s, u(7, 14), number % TREES, 0.85)
            wide *= 0.5
        o += wide
    _traffic(scene, rng)
    scene.items.sort(key=lambda item: -item[0])
    return scene


def _develop(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator, look: str) -> np.ndarray:
    """From clean colours (height, width, 3) float32 to what the look's camera delivers, uint8."""
    height, width = mask.shape
    rows, columns, u = np.arange(height)[:, None] & 255, np.arange(width)[None] & 255, rng.uniform
    coat = np.array([0, 0.02, 0.03, 0, 0, 0.03, 0.03, 0.04, 0.05, 0.08, 0.08], np.float32)[mask]
    pixels *= (1 + coat * _noise(int(rng.integers(8)), 16)[rows, columns])[..., None]
    if look == "synthetic":
        return np.clip(pixels * np.float32(1.06) - np.float32(4), 0, 255).astype(np.uint8)
    far = ((np.arange(height) / height - 0.5) ** 2)[:, None] + ((np.arange(width) / width - 0.5) ** 2)[None]
    light = u(0.78, 1.25) * (1 - u(0.1, 0.6) * far.astype(np.float32))
    pixels *= light[..., None].astype(np.float32) * u(0.94, 1.06, 3).astype(np.float32)
    picture = Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))
    picture = Image.blend(picture.convert("L").convert("RGB"), picture, u(0.5, 0.9))
    tone = (255 * (np.arange(256) / 235) ** u(1.0, 1.45)).clip(0, 255)  # deep shadows, burnt sky
    picture = picture.point(tone.tolist() * 3).filter(ImageFilter.BoxBlur(u(0.15, 0.5) * width / 256))
    noisy, start = np.asarray(picture, np.float32), int(rng.integers(2**16))
    noisy = noisy + _static(noisy.size)[start : start + noisy.size].reshape(noisy.shape) * (
        u(1, 3) + np.float32(0.012) * noisy
    )
    return np.clip(noisy, 0, 255).astype(np.uint8)


def simulate(
    index: int, *, seed: int = 0, look: Look = "synthetic", width: int = 256, height: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` of a seed: the same bits in every process; the same scene at every size of one aspect.

    Returns:
        image (height, width, 3) uint8 RGB, and mask (height, width) uint8 of CamVid ids 0..10, no ignored pixels.

    Raises:
        UserError: a side below 32 pixels, or an unknown look.
    """
    if look not in get_args(Look):
        raise UserError(f"look {look!r}: expected one of {', '.join(get_args(Look))}")
    if min(width, height) < 32:
        raise UserError(f"size {width}x{height}: width and height must be at least 32 pixels")
    layout, camera = np.random.SeedSequence([seed, index, get_args(Look).index(look)]).spawn(2)
    scene = _layout(np.random.default_rng(layout), look)
    canvas = Canvas(scene, width, height)
    _ground(canvas)
    for _, paint, arguments in scene.items:
        paint(canvas, *arguments)
    labels = np.asarray(canvas.image)[1::2, 1::2, 3]
    pixels, mask = np.asarray(canvas.image.convert("RGB").reduce(2)).astype(np.float32), labels & (GROUND - 1)
    _weather(canvas, pixels, labels >= GROUND)
    return _develop(pixels, mask, np.random.default_rng(camera), look), mask
