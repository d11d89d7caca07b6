"""What stands in a simulated street, each painted with its label: ground, trees, cars, people, posts and signs."""

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raydelta.data.simulator.canvas import (
    BICYCLIST,
    CAR,
    GROUND,
    PEDESTRIAN,
    POLE,
    RING,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    VEGETATION,
    Canvas,
    Colour,
    Outline,
    Point,
    ints,
)
from raydelta.data.simulator.textures import STYLES, noise, tree


def draw_tree(canvas: Canvas, offset: float, along: float, height: float, number: int, gain: float) -> None:
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
    (picture, *masks), affine = tree(canvas.scene.look, number), Image.Transform.AFFINE
    solid, whole = (mask.transform(extent, affine, matrix) for mask in masks)
    coarse, half = (2 * step, 0, matrix[2], 0, 2 * step, matrix[5]), (-(-extent[0] // 2), -(-extent[1] // 2))
    picture = canvas.lit(picture.transform(half, affine, coarse), VEGETATION, foot.depth, gain)
    picture = picture.resize((2 * half[0], 2 * half[1]), Image.Resampling.NEAREST).crop((0, 0, *extent))
    canvas.image.paste(picture, (x, y), solid)
    if masks[0] is not masks[1]:  # the gaps between the twigs keep their colour and are labelled tree, as in CamVid
        region = canvas.image.crop((x, y, x + extent[0], y + extent[1]))
        labels = region.getchannel("A")
        labels.paste(VEGETATION, mask=whole)
        region.putalpha(labels)
        canvas.image.paste(region, (x, y))


def draw_ground(canvas: Canvas) -> None:
    """Sky, road, pavements, kerbs and paint; `weather` gives the ground its grain."""
    scene, half, horizon = canvas.scene, canvas.scene.half, canvas.horizon
    rise = (
        np.clip((horizon - np.arange(0, max(4, min(canvas.height, horizon + 8)), 4)) / (0.55 * canvas.width), 0, 1)[
            :, None, None
        ].astype(np.float32)
        ** 0.6
    )
    rows = (rise[..., 0] * 200).astype(np.intp) + scene.tile
    clouds = noise(8, 4)[rows % 256, (np.arange(0, canvas.width, 4) * 200 // canvas.width)[None]][..., None]
    cover, haze = (
        np.clip(0.5 + 0.5 * clouds + scene.clouds, 0, 1) * min(1.0, 0.5 + scene.clouds),
        np.array(scene.haze, np.float32),
    )
    sky = (haze + (np.array(scene.zenith, np.float32) - haze) * rise) * (1 - cover) + cover * (haze * 1.03 + 9 * clouds)
    smooth = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize(
        (4 * sky.shape[1], 4 * sky.shape[0]), Image.Resampling.NEAREST
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
        (0, math.ceil(horizon + 1), canvas.width, canvas.height), fill=(*ints(leaf), VEGETATION | GROUND)
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


def weather(canvas: Canvas, pixels: np.ndarray, ground: np.ndarray) -> None:
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
    fine = noise(scene.tile % 8, 4)[(across * 14).astype(np.int32) & 255, (along * 14).astype(np.int32) & 255]
    worn = noise(scene.tile % 5, 8)[(across * 6).astype(np.int32) & 255, (along * 2.2).astype(np.int32) & 255]
    rough = 1 + grain * (0.08 * fine * near + 0.06 * worn)
    rough -= (
        0.16 * near * ((np.abs(across) > scene.half + 0.16) & ((across % 0.9 < 0.07) | (along % 0.7 < 0.06)))
    )  # slabs
    shade = Image.new("L", (width, height - first), 255)
    draw = ImageDraw.Draw(shade)
    for points, strength in sorted(
        (s for s in scene.shadows if s[1] > 0.09 and s[0][0][2] < 45), key=lambda shadow: shadow[1]
    ):
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


def draw_car(canvas: Canvas, kind: str, offset: float, along: float, turn: float, colour: Colour, brakes: bool) -> None:
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
        flank([(a * length, y) for a, y in cabin], colour, sunny, 0.94)
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


def draw_person(
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


def draw_post(
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
