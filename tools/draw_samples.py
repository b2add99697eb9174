"""Draws the sample images of the web page: a street, a house front and a meadow, for the shipped
models.

`python -m tools.draw_samples` writes service/web/samples/. Nothing in them was photographed, so
that they may be shipped with the project; they have the light, the grain and the perspective of
photos, because the models learned from photos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from tools.sample_animals import grass, sheep
from tools.sample_parts import (
    RGB,
    Point,
    balcony,
    car,
    front,
    lay,
    person,
    photographed,
    post,
    shadow,
    shop,
    sky,
    surface,
    tree,
)

FOLDER: Final = Path(__file__).resolve().parent.parent / "service" / "web" / "samples"
HEIGHT, WIDTH = 720, 960


class Camera:
    """Sees a street from a car: 1.5 m above the road, looking along it."""

    def __init__(self, height: int, width: int) -> None:
        self._focal_px = 0.95 * width
        self._center = 0.5 * width, 0.47 * height

    def at(self, right_m: float, up_m: float, ahead_m: float) -> Point:
        """Returns x and y in pixels of a point in the street."""
        x, y = self._center
        return (
            x + self._focal_px * right_m / ahead_m,
            y - self._focal_px * (up_m - 1.5) / ahead_m,
        )

    def px(self, metres: float, ahead_m: float) -> float:
        return self._focal_px * metres / ahead_m


BRICKS: Final[tuple[RGB, ...]] = (
    (148, 104, 84), (188, 172, 148), (128, 92, 78),
    (172, 152, 130), (160, 118, 96), (200, 190, 172),
)  # fmt: skip
ROAD_M, PAVEMENT_M, END_M = 3.7, 6.4, 70.0


def street(seed: int = 4) -> Image.Image:
    """Draws a street of houses with parked cars, trees and somebody on the pavement."""
    rng = np.random.default_rng(seed)
    scene = Image.new("RGBA", (WIDTH, HEIGHT), (222, 228, 234, 255))
    camera = Camera(HEIGHT, WIDTH)
    at, px = camera.at, camera.px
    sky(scene, rng, HEIGHT // 2 + 40)

    for ahead in (78.0, 72.0):  # where the street ends
        for right in np.arange(-16.0, 17.0, 4.5):
            foot = at(right + rng.uniform(-1, 1), 0, ahead)
            tree(scene, foot, px(rng.uniform(8, 11), ahead), px(7, ahead), rng)

    def ground(
        left_m: float, right_m: float, color: RGB, grain: float, near_m: float = 2.0
    ) -> None:
        texture = surface(1600, 500, color, rng, grain, 5)
        corners = [
            at(left_m, 0, END_M), at(right_m, 0, END_M),
            at(right_m, 0, near_m), at(left_m, 0, near_m),
        ]  # fmt: skip
        lay(scene, texture, corners)

    ground(-ROAD_M, ROAD_M, (112, 112, 114), 7)
    for side in (-1, 1):
        inner, outer = side * ROAD_M, side * PAVEMENT_M
        ground(min(inner, outer), max(inner, outer), (158, 152, 146), 6)
        ground(min(inner, inner + side * 0.18), max(inner, inner + side * 0.18), (186, 182, 174), 4)
    draw = ImageDraw.Draw(scene)
    for begin in np.arange(3.0, END_M, 6.0):
        dash = [
            at(-0.07, 0, begin),
            at(0.07, 0, begin),
            at(0.07, 0, begin + 3),
            at(-0.07, 0, begin + 3),
        ]
        draw.polygon(dash, fill=(212, 210, 202))

    for side in (-1, 1):
        for number, far in enumerate(np.arange(END_M - 4, 3, -7.0)):
            near, up = max(3.0, far - 7.0), rng.uniform(8.5, 10.5)
            color = BRICKS[(number * 2 + (side > 0)) % len(BRICKS)]
            house = front(700, 500, color, rng, floors=3, bays=3)
            if side < 0:
                left, right = near, far
            else:
                left, right = far, near
            x = side * PAVEMENT_M
            lay(scene, house, [at(x, up, left), at(x, up, right), at(x, 0, right), at(x, 0, left)])

    things: list[tuple[float, str, float]] = [
        (46, "tree", -4.9), (38, "car", 2.75), (34, "tree", 4.9), (30, "car", -2.8),
        (27, "post", 4.1),
        (24, "tree", -4.9), (21.5, "car", 2.75), (19, "person", 4.7), (17, "car", -1.5),
        (15, "post", -4.1),
        (13.2, "car", 2.8), (12.2, "person", -4.8), (10.4, "tree", 5.3),
    ]  # fmt: skip
    paints: list[RGB] = [(38, 52, 92), (150, 28, 30), (176, 178, 180), (36, 38, 42), (70, 92, 84)]
    for number, (ahead, kind, right) in enumerate(things):
        x, y = at(right, 0, ahead)
        if kind == "tree":
            shadow(
                scene,
                (x - px(1.6, ahead), y - px(0.3, ahead), x + px(1.6, ahead), y + px(0.3, ahead)),
            )
            tree(scene, (x, y), px(6.6, ahead), px(4.4, ahead), rng)
        elif kind == "car":
            car(scene, x - px(0.9, ahead), y, px(1.8, ahead), paints[number % len(paints)])
        elif kind == "person":
            person(scene, x, y, px(1.75, ahead), [(120, 40, 44), (44, 66, 96)][number % 2])
        else:
            post(scene, x, at(right, 6.4, ahead)[1], y, max(3, px(0.13, ahead)))
    return photographed(scene, rng)


def house(seed: int = 7) -> Image.Image:
    """Draws the front of a house with balconies over a shop, seen from across the street."""
    rng = np.random.default_rng(seed)
    scene = Image.new("RGBA", (WIDTH, HEIGHT), (206, 218, 230, 255))
    sky(scene, rng, HEIGHT, (150, 182, 222))
    for x, y, color, floors in ((-190, 170, (176, 160, 140), 4), (740, 210, (150, 112, 92), 4)):
        scene.paste(front(620 - y, 420, color, rng, floors=floors, bays=3), (x, y))
    body = front(560, 540, (214, 200, 172), rng, floors=4, bays=4)
    scene.paste(body, (220, 64))
    draw = ImageDraw.Draw(scene)
    draw.polygon([(206, 66), (774, 66), (738, 26), (242, 26)], fill=(92, 84, 80))
    draw.rectangle((206, 62, 774, 72), fill=(190, 182, 166))
    for row in (0, 1, 2):
        for column in (0, 3) if row else (1, 2):
            left, top = 242 + 135 * column, 155 + 132 * row
            balcony(draw, (left, top, left + 91, top + 44))
    shop(draw, (232, 456, 748, 612), (122, 34, 38))
    scene.paste(surface(30, WIDTH, (176, 170, 160), rng, 4, 3), (0, 606))
    draw.rectangle((0, 632, WIDTH, 637), fill=(198, 194, 186))
    scene.paste(surface(HEIGHT - 637, WIDTH, (92, 92, 95), rng, 8, 4), (0, 637))
    for x in range(-30, WIDTH, 190):
        draw.polygon([(x, 700), (x + 100, 700), (x + 104, 708), (x, 708)], fill=(214, 212, 204))
    shadow(scene, (60, 620, 260, 648))
    tree(scene, (140, 630), 340, 240, rng)
    tree(scene, (880, 628), 250, 190, rng)
    person(scene, 690, 630, 104, (44, 66, 96))
    car(scene, 245, 668, 150, (150, 28, 30))
    car(scene, 800, 664, 138, (176, 178, 180))
    return photographed(scene, rng)


def meadow(seed: int = 5) -> Image.Image:
    """Draws sheep in a meadow before a row of trees."""
    rng = np.random.default_rng(seed)
    scene = Image.new("RGBA", (WIDTH, HEIGHT), (206, 218, 230, 255))
    horizon = 250
    sky(scene, rng, horizon + 20, (150, 182, 222))
    for x in np.arange(-40, WIDTH + 80, 74):
        tree(scene, (x + rng.uniform(-20, 20), horizon + 14), rng.uniform(110, 170), 120, rng)
    grass(scene, horizon, rng)
    for right, ground, tall, looks in (
        (640, 430, 120, -1),
        (470, 410, 105, 1),
        (560, 560, 215, -1),
    ):
        sheep(scene, right, ground, tall, rng, looks=looks)
    sheep(scene, 280, 650, 300, rng)
    sheep(scene, 810, 520, 165, rng, looks=-1)
    return photographed(scene, rng)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, image in (("street", street()), ("house", house()), ("meadow", meadow())):
        image.save(FOLDER / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
