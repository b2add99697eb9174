"""Draws what the sample images of the web page are made of: walls, windows, trees, cars, people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Point = tuple[float, float]
Floats = npt.NDArray[np.float64]


def clouds(height: int, width: int, rng: np.random.Generator, roughness: float = 0.55) -> Floats:
    """Returns smooth noise [H,W] of mean 0 and about 1 high: a sum of ever finer grids."""
    total = np.zeros((height, width))
    strength = 1.0
    for cells in (3, 6, 12, 24, 48, 96, 192):
        coarse = rng.normal(0, 1, (cells, max(2, cells * width // height))).astype(np.float32)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += strength * np.asarray(fine, np.float64)
        strength *= roughness
    scaled: Floats = total / total.std()
    return scaled


def surface(
    height: int, width: int, color: RGB, rng: np.random.Generator, grain: float, patches: float
) -> Image.Image:
    """Draws a wall or a ground. grain: of pixels, patches: of stains, both in grey levels."""
    base = np.asarray(color, np.float64) + patches * clouds(height, width, rng)[..., None]
    base += rng.normal(0, grain, (height, width, 1)) + rng.normal(0, grain / 3, (height, width, 3))
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def window(draw: ImageDraw.ImageDraw, box: Sequence[float], rng: np.random.Generator) -> None:
    """Draws a sash window with its frame, its sill and what it mirrors."""
    x0, y0, x1, y1 = box
    frame = int(rng.integers(205, 240))
    draw.rectangle((x0 - 5, y0 - 9, x1 + 5, y0 - 1), fill=(176, 166, 150))
    draw.rectangle((x0 - 7, y1 + 1, x1 + 7, y1 + 8), fill=(188, 182, 170))
    draw.rectangle(box, fill=(frame, frame, frame - 6))
    panes = [
        (x0 + 4, y0 + 4, x1 - 4, (y0 + y1) / 2 - 2),
        (x0 + 4, (y0 + y1) / 2 + 2, x1 - 4, y1 - 4),
    ]
    for a, b, c, d in panes:
        dark = int(rng.integers(38, 74))
        draw.rectangle((a, b, c, d), fill=(dark, dark + 6, dark + 12))
        sky = int(rng.integers(90, 150))
        draw.polygon([(a, d), (a, b), (c, b)], fill=(sky - 24, sky - 12, sky))
        if rng.random() < 0.5:  # a curtain
            draw.rectangle((a, b, a + (c - a) / 3.5, d), fill=(200, 194, 184))


def front(
    height: int, width: int, color: RGB, rng: np.random.Generator, *, floors: int, bays: int
) -> Image.Image:
    """Draws the front of a house, seen straight on: rows of bricks, windows, a door or a shop."""
    image = surface(height, width, color, rng, 7, 7)
    draw = ImageDraw.Draw(image, "RGBA")
    for row, y in enumerate(range(0, height, 8)):
        draw.line((0, y, width, y), fill=(40, 26, 20, 34))
        for x in range(-(row % 2) * 10, width, 20):
            draw.line((x, y, x, y + 8), fill=(40, 26, 20, 26))
    storey, bay = height / (floors + 0.25), width / bays
    draw.rectangle((0, 0, width, storey * 0.12), fill=(150, 140, 128))
    draw.rectangle((0, storey * 0.12, width, storey * 0.17), fill=(60, 52, 46, 150))
    for floor in range(floors):
        ceiling = storey * (0.25 + floor)
        for column in range(bays):
            side = bay * column
            if floor == floors - 1 and column % 3 == 1:
                door = tuple(int(value) for value in rng.integers(30, 110, 3))
                left, right = side + bay * 0.32, side + bay * 0.68
                top = ceiling + storey * 0.1
                draw.rectangle((left - 7, top, right + 7, height), fill=(214, 208, 198))
                draw.rectangle((left, top + storey * 0.16, right, height), fill=door)
            else:
                top, bottom = ceiling + storey * 0.16, ceiling + storey * 0.74
                window(draw, (side + bay * 0.28, top, side + bay * 0.72, bottom), rng)
        if floor:
            draw.rectangle((0, ceiling - 3, width, ceiling + 3), fill=(164, 154, 140, 200))
    return image


def warp(image: Image.Image, corners: Sequence[Point], size: tuple[int, int]) -> Image.Image:
    """Lays an image onto the quadrilateral, from its top left clockwise; RGBA of `size`."""
    width, height = image.size
    rows = []
    for (x, y), (u, v) in zip(
        corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True
    ):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    wanted = np.array([0, 0, width, 0, width, height, 0, height], np.float64)
    numbers = np.linalg.solve(np.array(rows, np.float64), wanted)
    clear = image.convert("RGBA")
    data: Any = numbers.tolist()
    return clear.transform(
        size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0, 0)
    )


def lay(scene: Image.Image, image: Image.Image, corners: Sequence[Point]) -> None:
    scene.alpha_composite(warp(image, corners, scene.size))


def sky(scene: Image.Image, rng: np.random.Generator, until: int) -> None:
    height, width = scene.height, scene.width
    down = np.linspace(0, 1, height)[:, None]
    haze = 0.5 * clouds(height, width, rng, 0.5).clip(-1, 2)
    blue = np.stack(
        [196 + 34 * down + 14 * haze, 208 + 22 * down + 11 * haze, 226 + 8 * down + 7 * haze], -1
    )
    part = Image.fromarray(blue.clip(0, 255).astype(np.uint8)).crop((0, 0, width, until))
    scene.paste(part, (0, 0))


def tree(
    scene: Image.Image, foot: Point, tall: float, wide: float, rng: np.random.Generator
) -> None:
    """Draws a trunk, and leaves in three depths, the light ones above and to the left."""
    x, y = foot
    layer = Image.new("RGBA", scene.size)
    draw = ImageDraw.Draw(layer)
    trunk = max(3.0, wide * 0.05)
    draw.polygon(
        [
            (x - trunk, y),
            (x + trunk, y),
            (x + trunk * 0.6, y - tall * 0.6),
            (x - trunk * 0.6, y - tall * 0.6),
        ],
        fill=(72, 60, 48),
    )
    for depth, (tint, shift) in enumerate(((-26, 0.06), (0, 0.0), (28, -0.07))):
        for _ in range(1500):
            angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * (1 - 0.12 * depth)
            bumpy = 1 + 0.16 * np.sin(3 * angle + 1) + 0.1 * np.sin(7 * angle)
            px = x + wide * (0.5 * far * bumpy * np.cos(angle) + shift)
            py = y - tall * 0.64 + tall * (0.36 * far * bumpy * np.sin(angle) + shift)
            r = wide * rng.uniform(0.008, 0.03)
            c = rng.normal(0, 10) + tint
            color = tuple(int(np.clip(v + c, 0, 255)) for v in (74, 92, 50))
            draw.ellipse((px - r, py - r * 0.8, px + r, py + r * 0.8), fill=color)
    scene.alpha_composite(layer)


def shadow(scene: Image.Image, box: Sequence[float], strength: int = 150) -> None:
    layer = Image.new("RGBA", scene.size)
    ImageDraw.Draw(layer).ellipse(tuple(box), fill=(12, 12, 14, strength))
    scene.alpha_composite(layer.filter(ImageFilter.GaussianBlur(5)))


def car(scene: Image.Image, left: float, ground: float, wide: float, color: RGB) -> None:
    """Draws a car from behind, `wide` pixels wide, its wheels on `ground`."""
    tall = wide * 0.78
    top = ground - tall

    def at(x: float, y: float) -> Point:
        return left + wide * x, top + tall * y

    def shade(by: float) -> RGB:
        r, g, b = (int(min(255, value * by)) for value in color)
        return r, g, b

    shadow(scene, (*at(-0.08, 0.86), *at(1.08, 1.08)))
    layer = Image.new("RGBA", scene.size)
    draw = ImageDraw.Draw(layer)
    for x in (0.07, 0.75):
        draw.rounded_rectangle((*at(x, 0.72), *at(x + 0.18, 1.0)), wide * 0.03, fill=(22, 22, 24))
    draw.polygon([at(0.2, 0.03), at(0.8, 0.03), at(0.95, 0.45), at(0.05, 0.45)], fill=shade(0.92))
    draw.rounded_rectangle((*at(0.2, 0.0), *at(0.8, 0.1)), wide * 0.04, fill=shade(1.08))
    draw.polygon([at(0.24, 0.09), at(0.76, 0.09), at(0.87, 0.4), at(0.13, 0.4)], fill=(44, 52, 60))
    draw.polygon([at(0.24, 0.09), at(0.5, 0.09), at(0.3, 0.4), at(0.13, 0.4)], fill=(86, 98, 108))
    draw.rounded_rectangle((*at(0.0, 0.4), *at(1.0, 0.86)), wide * 0.07, fill=color)
    draw.rectangle((*at(0.03, 0.43), *at(0.97, 0.47)), fill=shade(1.2))
    draw.rounded_rectangle((*at(0.0, 0.68), *at(1.0, 0.88)), wide * 0.05, fill=shade(0.7))
    for x in (0.02, 0.82):
        draw.rounded_rectangle((*at(x, 0.46), *at(x + 0.16, 0.6)), wide * 0.02, fill=(150, 22, 20))
    draw.rectangle((*at(0.36, 0.56), *at(0.64, 0.66)), fill=(222, 206, 120))
    scene.alpha_composite(layer.filter(ImageFilter.GaussianBlur(0.8)))


def person(scene: Image.Image, x: float, ground: float, tall: float, coat: RGB) -> None:
    """Draws somebody who walks."""
    shadow(
        scene, (x - tall * 0.16, ground - tall * 0.03, x + tall * 0.2, ground + tall * 0.03), 120
    )
    layer = Image.new("RGBA", scene.size)
    draw = ImageDraw.Draw(layer)
    unit, top = tall, ground - tall
    for side in (-1, 1):
        foot = x + side * unit * 0.09
        hip = x + side * unit * 0.03
        draw.line(
            (hip, top + unit * 0.5, foot, ground),
            fill=(40, 42, 54),
            width=max(2, int(unit * 0.085)),
        )
        draw.line(
            (x + side * unit * 0.09, top + unit * 0.2, x + side * unit * 0.13, top + unit * 0.5),
            fill=coat,
            width=max(2, int(unit * 0.06)),
        )
    draw.rounded_rectangle(
        (x - unit * 0.11, top + unit * 0.15, x + unit * 0.11, top + unit * 0.56),
        unit * 0.05,
        fill=coat,
    )
    head = unit * 0.065
    draw.ellipse((x - head, top, x + head, top + unit * 0.145), fill=(176, 136, 112))
    draw.chord((x - head, top - 1, x + head, top + unit * 0.12), 180, 360, fill=(48, 38, 32))
    scene.alpha_composite(layer.filter(ImageFilter.GaussianBlur(0.7)))


def post(scene: Image.Image, x: float, top: float, ground: float, wide: float) -> None:
    draw = ImageDraw.Draw(scene)
    draw.rectangle((x - wide / 2, top, x + wide / 2, ground), fill=(74, 76, 76))
    draw.line((x - wide / 4, top, x - wide / 4, ground), fill=(112, 114, 114))


def photographed(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Adds what a camera does: a soft lens, darker corners, grain."""
    soft = np.asarray(scene.convert("RGB").filter(ImageFilter.GaussianBlur(0.9)), np.float64)
    height, width = soft.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    corners = 1 - 0.13 * (x**2 + y**2)
    grain = rng.normal(0, 2.6, (height, width, 3)) + rng.normal(0, 2.2, (height, width, 1))
    light = 1 + 0.03 * clouds(height, width, rng, 0.4)
    return Image.fromarray(
        (soft * (corners * light)[..., None] + grain).clip(0, 255).astype(np.uint8)
    )


def balcony(draw: ImageDraw.ImageDraw, box: Sequence[float]) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 4, y1, x1 + 4, y1 + 8), fill=(168, 160, 148))
    draw.line((x0, y0, x1, y0), fill=(30, 32, 34), width=5)
    draw.line((x0, y1 - 3, x1, y1 - 3), fill=(30, 32, 34), width=4)
    for x in np.arange(x0, x1 + 1, 9):
        draw.line((x, y0, x, y1), fill=(34, 36, 38), width=3)


def shop(draw: ImageDraw.ImageDraw, box: Sequence[float], color: RGB) -> None:
    """Draws a shop's sign, awning and windows."""
    x0, y0, x1, y1 = box
    tall = y1 - y0
    draw.rectangle((x0, y0, x1, y1), fill=(52, 46, 42))
    draw.rectangle((x0, y0, x1, y0 + tall * 0.17), fill=color)
    for x in np.linspace(x0 + 40, x1 - 150, 9):
        draw.rectangle((x, y0 + tall * 0.06, x + 11, y0 + tall * 0.12), fill=(236, 226, 196))
    for number, x in enumerate(np.arange(x0, x1 - 1, 26)):
        stripe = (226, 220, 206) if number % 2 else color
        draw.polygon(
            [
                (x, y0 + tall * 0.17), (min(x + 26, x1), y0 + tall * 0.17),
                (min(x + 30, x1 + 6), y0 + tall * 0.34), (x + 4, y0 + tall * 0.34),
            ],
            fill=stripe,
        )  # fmt: skip
    third = (x1 - x0) / 3
    for number in range(3):
        a, b = x0 + third * number + 10, x0 + third * (number + 1) - 10
        draw.rectangle((a, y0 + tall * 0.37, b, y1 - tall * 0.1), fill=(70, 78, 84))
        draw.polygon(
            [(a, y1 - tall * 0.3), (a, y0 + tall * 0.4), (b, y0 + tall * 0.4)], fill=(112, 120, 124)
        )
        for x in np.linspace(a + 12, b - 26, 4):
            draw.rectangle((x, y1 - tall * 0.24, x + 14, y1 - tall * 0.11), fill=(186, 128, 70))
