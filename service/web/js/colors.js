// Colours for classes: the project's own, which can be told apart, or those of the data set.

/** RGB. Any two of the first twelve are far apart to every kind of eyes, colour-blind ones too, and
 * of all twenty-four far enough; none is as dark as a dark page. tests/browser/ computes it. */
export const SAFE = [
  [120, 0, 240],
  [225, 255, 30],
  [180, 90, 15],
  [135, 195, 255],
  [225, 135, 0],
  [120, 0, 150],
  [120, 255, 255],
  [30, 120, 135],
  [75, 165, 165],
  [195, 210, 135],
  [165, 120, 255],
  [150, 0, 30],
  [0, 90, 90],
  [180, 255, 180],
  [150, 105, 195],
  [135, 180, 120],
  [135, 60, 180],
  [255, 180, 0],
  [90, 150, 105],
  [90, 225, 225],
  [195, 135, 225],
  [180, 30, 45],
  [135, 90, 240],
  [255, 15, 75],
];
const BEST = 12; // the first so many are the farthest apart
const NOT_DRAWN = [110, 116, 110]; // background, which is left as the image is

function distance([r, g, b], [otherR, otherG, otherB]) {
  return Math.hypot(r - otherR, g - otherG, b - otherB);
}

/** For each class its RGB, by id. infos: [{id, name, color}]. kind: "data", the colours of the data
 * set, or "safe": in the order of the classes, each takes the colour most like the data set's that
 * is left. Where there are more classes than colours they begin anew: names and outlines tell. */
export function colorsOf(infos, kind, background) {
  if (kind === "data") return new Map(infos.map(({ id, color }) => [id, color]));
  const others = infos.filter(({ id }) => id !== background?.id);
  const taken = new Map(background ? [[background.id, NOT_DRAWN]] : []);
  let left = [];
  for (const { id, color } of others) {
    if (!left.length) left = SAFE.slice(0, Math.max(BEST, others.length));
    left.sort((one, other) => distance(one, color) - distance(other, color));
    taken.set(id, left.shift());
  }
  return taken;
}
