"""Procedural street scenes with exact masks in the 11 CamVid classes: a small stand-in for a driving simulator.

This module decides where things stand in a scene, and adds the faults of a camera; ``canvas``, ``textures`` and
``things`` draw them, and ``dataset`` makes a data set of scenes.
`look="synthetic"` is a clean game-like daylight; `look="street"` is a *stand-in* for photographs (other palettes,
weather, sensor and street statistics), for users who have none yet. It is never called real.

A scene is laid out in road coordinates (metres to the right of the road's middle, up, along the road), which a
constant curvature bends, and painted from far to near on an RGBA canvas of twice the size whose fourth channel is the
class id: every draw call writes colour and label together. The colours are then
averaged 2x2, the labels taken from one of the four pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from PIL import Image, ImageFilter

from raydelta.data.simulator.canvas import BUILDING, FENCE, GROUND, RING, VEGETATION, Canvas, Colour, Look, Scene
from raydelta.data.simulator.textures import FACADES, STYLES, TREES, facade, noise, static, surface
from raydelta.data.simulator.things import (
    CARS,
    SIGNS,
    WHITE,
    draw_car,
    draw_ground,
    draw_person,
    draw_post,
    draw_tree,
    weather,
)
from raydelta.errors import UserError

VERSION = 1  # goes up when the same seed gives other pixels, so that no set made before is taken for the new one


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
        front = facade(look, number)
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
                surface(look, "roof", number % 6),
                (o + side * 4.5, height + 3),
            )
            if height > last + 1.2:  # its end shows
                wall = facade(look, number * 7 % FACADES)
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
                surface(look, bound, number),
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
            scene.add(s, draw_tree, o, s, tall, int(rng.random() * TREES), u(0.8, 0.99))
            scene.shadows.append(
                (
                    [(o - scene.sun * tall * 0.6 + 0.3 * tall * x, 0, s + 0.3 * tall * y) for x, y in RING[::2]],
                    scene.shade * 0.8,
                )
            )
        s += u(5, 14) if kind == "terrace" else u(4, 12)
    spacing, s, grey = u(18, 32), u(4, 20), _pick(rng, [(120, 124, 126), (84, 86, 84), (60, 70, 64)])
    while s < min(end, 60):  # street lamps, signs and lights between them
        scene.add(s, draw_post, side * (kerb + 0.5), s, u(5.5, 8.5), u(0.11, 0.18), grey, -side * u(0.9, 2), "", WHITE)
        for _ in range(int(u(1, 5))):
            sign, at = list(SIGNS)[int(rng.random() * len(SIGNS))], s + u(-1, spacing)
            paint = _pick(rng, [(30, 60, 150), (20, 96, 60), (180, 40, 40), (236, 190, 60)])
            if sign == "hanging" and kind == "terrace" and not open_from - 1 < at < open_to + 1:
                scene.add(at, draw_post, side * (back - 0.85 * (side > 0)), at, 3.3, 0.0, grey, 0.0, sign, paint)
            elif sign != "hanging":
                scene.add(
                    at,
                    draw_post,
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
    scene.add(s, draw_person, o, s, rng.uniform(1.58, 1.88), rng.uniform(-1, 1), colours, ride)
    scene.shadow(o, s, 0.25, 0.2, 1.4)


def _traffic(scene: Scene, rng: np.random.Generator) -> None:
    """Cars at the kerb, on the road and in the side street; cyclists; people crossing."""
    u, half, style, (open_side, open_from, open_to) = _uniform(rng), scene.half, STYLES[scene.look], scene.side_street
    left_hand = scene.look == "street" or u() < 0.5

    def car(o: float, s: float, turn: float, kinds: str = "hatch hatch saloon saloon van") -> None:
        kind = kinds.split()[int(u(0, len(kinds.split())))]
        scene.add(s, draw_car, kind, o, s, turn, _pick(rng, style.cars), u() < 0.4)
        length, wide = CARS[kind][:2]
        scene.shadow(o, s, *((wide, length / 2) if abs(math.sin(turn)) < 0.7 else (length / 2, wide)), 1.3)

    for side in (-1, 1):
        away = (side < 0) == left_hand
        s, density = u(3.5, 12), u(0.3, 0.95)
        while s < 48 and density < 0.3 + 0.65 * style.parking:
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
    end, o = u(45, 90), -50.0
    for side in (-1, 1):
        _roadside(scene, rng, side, end)
    while o < 50:  # what closes the view
        number, s, wide = int(rng.random() * FACADES), end + u(5, 30), u(10, 22)
        if u() < 0.5:
            high, roof = u(5, 11), surface(look, "roof", number % 6)
            top, across, ridge = (o, high, s), (o + wide, high, s), high + 2.5
            scene.add(s + 1, Canvas.panel, roof, (o, ridge, s + 3), (o + wide, ridge, s + 3), top, BUILDING, 0.85)
            scene.add(s, Canvas.panel, facade(look, number), top, across, (o, -1, s), BUILDING, 0.8)
        else:
            scene.add(s, draw_tree, o, s, u(7, 14), number % TREES, 0.85)
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
    pixels *= (1 + coat * noise(int(rng.integers(8)), 16)[rows, columns])[..., None]
    if look == "synthetic":
        return np.clip(pixels * np.float32(1.06) - np.float32(4), 0, 255).astype(np.uint8)
    far = ((np.arange(height) / height - 0.5) ** 2)[:, None] + ((np.arange(width) / width - 0.5) ** 2)[None]
    light = u(0.78, 1.25) * (1 - u(0.1, 0.6) * far.astype(np.float32))
    pixels *= light[..., None].astype(np.float32)
    picture = Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))
    picture = Image.blend(picture.convert("L").convert("RGB"), picture, u(0.5, 0.9))
    # white balance, deep shadows, burnt sky
    tone = (255 * (np.arange(256) / 235 * u(0.94, 1.06, (3, 1))) ** u(1.0, 1.45)).clip(0, 255)
    picture = picture.point(tone.ravel().tolist()).filter(ImageFilter.BoxBlur(u(0.15, 0.5) * width / 256))
    start, shape = int(rng.integers(2**16)), (height, width, 3)
    speckle = static(math.prod(shape))[start : start + math.prod(shape)].reshape(shape) * np.float32(u(1.5, 4.5))
    return np.clip(np.asarray(picture) + speckle, 0, 255).astype(np.uint8)


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
    draw_ground(canvas)
    for _, paint, arguments in scene.items:
        paint(canvas, *arguments)
    labels = np.asarray(canvas.image)[1::2, 1::2, 3]
    pixels, mask = np.asarray(canvas.image.convert("RGB").reduce(2)).astype(np.float32), labels & (GROUND - 1)
    weather(canvas, pixels, labels >= GROUND)
    return _develop(pixels, mask, np.random.default_rng(camera), look), mask
