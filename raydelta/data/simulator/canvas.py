"""What a simulated street is drawn with: labels, the scene's parameters, the camera and its RGBA canvas."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageDraw

Look = Literal["synthetic", "street"]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]  # metres: right of the road's middle, up, along the road
Outline = Sequence[tuple[float, float]]

SKY, BUILDING, POLE, ROAD, SIDEWALK, VEGETATION, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
GROUND = 16  # flag beside the label: bare ground, which is weathered, shaded and hazed pixel by pixel at the end
NEAR = 0.4  # metres before the camera where polygons are cut
RING = [(math.cos(t * math.pi / 5), math.sin(t * math.pi / 5)) for t in range(10)]


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
        if right - left < 16:  # too small for details
            self.draw.polygon(flat, fill=self.tint(texture.mean, depth, gain, label))
            return
        # the inverse of texture -> camera -> pixel, up to a factor: the adjugate of the product
        f, x0, y0 = self.focal, self.width / 2 - left, self.horizon - upper
        edges = (b[0] - ax, b[1] - ay, b[2] - az), (c[0] - ax, c[1] - ay, c[2] - az), (ax, ay, az)
        p, q, corner = ((f * x + x0 * z, -f * y + y0 * z, z) for x, y, z in edges)
        back = [_cross(q, corner), _cross(corner, p), _cross(p, q)]
        if back[2][2] == 0:  # edge on
            return
        width, height = right - left, lower - upper
        coarse = 2 if width * height > 1000 else 1  # large patches are worked out at the final picture's resolution
        detail = texture.levels[0].width / texture.metres[0] * depth / f * coarse  # texels per sample
        source = texture.levels[0 if detail < 1.5 else 1 if detail < 3 else 2]
        size = (-(-width // coarse), -(-height // coarse))
        (a, b_, c_), (d_, e, f_), (g, h, i) = back
        wide, high = source.width / i, source.height / i
        matrix = (a * wide * coarse, b_ * wide * coarse, c_ * wide, d_ * high * coarse, e * high * coarse, f_ * high,
                  g / i * coarse, h / i * coarse)  # fmt: skip
        rim = (*ints(texture.mean), label)  # a texel's width may be missing at the edges
        patch = source.transform(size, Image.Transform.PERSPECTIVE, matrix, fillcolor=rim)
        patch = self.lit(patch, label, depth, gain)
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


def ints(colour: Iterable[float]) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c))) for c in colour)
    return r, g, b
