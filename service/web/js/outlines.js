// Where one class ends and another begins, as lines that show on any image: white, edged in black.

const WHITE = 0xffffffff; // RGBA as a canvas holds it in memory, little-endian
const BLACK = 0xb0000000;

/** Uint32Array(outWidth * outHeight) of RGBA. ids: Uint8Array(width * height). shown: what stands for
 * each id, so that hidden classes may count as one. */
export function outlines(ids, width, height, outWidth, outHeight, shown) {
  const out = new Uint32Array(outWidth * outHeight);
  const large = enlarged(ids, width, height, outWidth, outHeight, shown);
  for (let y = 0, at = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++, at++) {
      const id = large[at];
      const ends = x + 1 < outWidth && large[at + 1] !== id;
      const below = y + 1 < outHeight && large[at + outWidth] !== id;
      if (ends || below) out[at] = WHITE;
    }
  }
  for (let y = 1, at = outWidth; y < outHeight - 1; y++, at += outWidth) {
    for (let x = 1; x < outWidth - 1; x++) {
      if (out[at + x] !== WHITE) continue;
      for (const beside of [at + x - 1, at + x + 1, at + x - outWidth, at + x + outWidth]) {
        if (out[beside] === 0) out[beside] = BLACK;
      }
    }
  }
  return out;
}

function enlarged(ids, width, height, outWidth, outHeight, shown) {
  const large = new Uint8Array(outWidth * outHeight);
  const columns = Uint32Array.from({ length: outWidth }, (_, x) =>
    Math.floor(((x + 0.5) * width) / outWidth),
  );
  for (let y = 0, at = 0; y < outHeight; y++) {
    const row = Math.floor(((y + 0.5) * height) / outHeight) * width;
    for (let x = 0; x < outWidth; x++) large[at++] = shown[ids[row + columns[x]]];
  }
  return large;
}
