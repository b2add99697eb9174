"""Draws what the sample of a meadow is made of: grass and sheep."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.sample_parts import RGB, shadow, surface


def grass(scene: Image.Image, top: int, rng: np.random.Generator) -> None:
    """Draws a meadow from the row `top` down, its blades the longer the nearer they are."""
    ground = surface(scene.height - top, scene.width, (104, 124, 62), rng, 10, 12)
    scene.paste(ground, (0, top))
    draw = ImageDraw.Draw(scene)
    depth = scene.height - top
    for y in np.sort(top + depth * rng.random(26000) ** 0.8):
        near = (y - top) / depth
        x, tall = rng.uniform(0, scene.width), 2 + 20 * near**1.3
        light = rng.normal(0, 16) + 14 * rng.random()
        color = tuple(int(np.clip(v + light, 0, 255)) for v in (102, 128, 56))
        draw.line((x, y, x + rng.normal(0, tall / 4), y - tall), color, max(1, int(2.4 * near)))


def sheep(
    scene: Image.Image,
    x: float,
    ground: float,
    tall: float,
    rng: np.random.Generator,
    *,
    looks: int = 1,
    face: RGB = (58, 52, 48),
) -> None:
    """Draws a sheep from its side, `tall` pixels high. looks: 1 to the right, -1 to the left."""
    shadow(scene, (x - 0.66 * tall, ground - 0.07 * tall, x + 0.66 * tall, ground + 0.06 * tall))
    layer = Image.new("RGBA", scene.size)
    draw = ImageDraw.Draw(layer)

    def at(right: float, up: float) -> tuple[float, float]:
        return x + looks * tall * right, ground - tall * up

    def blob(right: float, up: float, wide: float, high: float, color: RGB) -> None:
        px, py = at(right, up)
        box = (px - tall * wide, py - tall * high, px + tall * wide, py + tall * high)
        draw.ellipse(box, fill=color)

    def curl(right: float, up: float, wide: float, light: float) -> None:
        r, g, b = (int(np.clip(light * share, 0, 255)) for share in (1.0, 0.97, 0.88))
        blob(right, up, wide, wide, (r, g, b))

    for right, dark in ((-0.3, 0.7), (0.3, 0.7), (-0.4, 1.0), (0.4, 1.0)):
        color = tuple(int(value * dark) for value in face)
        draw.polygon(
            [
                at(right - 0.05, 0.46), at(right + 0.05, 0.46),
                at(right + 0.035, 0.0), at(right - 0.035, 0.0),
            ],
            fill=color,
        )  # fmt: skip
    for right in (-0.4, 0.4):
        blob(right, 0.44, 0.08, 0.12, (150, 142, 124))
    # The fleece: curls from the shaded belly up to the light back.
    for number in range(9000):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        bumpy = 1 + 0.03 * np.sin(5 * angle) + 0.02 * np.sin(11 * angle)
        right, up = 0.56 * far * bumpy * np.cos(angle), 0.27 * far * bumpy * np.sin(angle)
        round_ = np.sqrt(max(0.0, 1 - (up / 0.3 - 0.35) ** 2 * 0.75))
        light = 84 + 132 * round_ + rng.normal(0, 7) - (14 if number % 3 == 0 else 0)
        r = rng.uniform(0.006, 0.017)
        curl(right, 0.66 + up, r, light)
    for _ in range(1600):  # neck
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        right, up = 0.47 + 0.15 * far * np.cos(angle), 0.76 + 0.16 * far * np.sin(angle)
        light = 196 + rng.normal(0, 9)
        curl(right, up, 0.014, light)
    lighter = tuple(min(255, int(value * 1.35)) for value in face)
    draw.polygon([at(0.5, 0.93), at(0.34, 0.9), at(0.36, 0.84), at(0.52, 0.86)], fill=lighter)
    draw.polygon(
        [
            at(0.5, 0.98), at(0.62, 0.99), at(0.76, 0.8), at(0.84, 0.69),
            at(0.8, 0.63), at(0.7, 0.63), at(0.56, 0.74), at(0.48, 0.86),
        ],
        fill=face,
    )  # fmt: skip
    draw.polygon([at(0.6, 0.97), at(0.66, 0.92), at(0.8, 0.72), at(0.78, 0.79)], fill=lighter)
    draw.polygon([at(0.54, 0.95), at(0.4, 0.96), at(0.38, 0.89), at(0.52, 0.88)], fill=face)
    blob(0.635, 0.88, 0.014, 0.014, (18, 16, 14))
    blob(0.82, 0.665, 0.012, 0.012, (24, 20, 18))
    for _ in range(500):  # between the ears
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        right, up = 0.54 + 0.06 * far * np.cos(angle), 0.98 + 0.03 * far * np.sin(angle)
        light = 210 + rng.normal(0, 12)
        curl(right, up, 0.012, light)
    scene.alpha_composite(layer.filter(ImageFilter.GaussianBlur(max(0.6, tall / 400))))
